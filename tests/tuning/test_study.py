"""An interrupted study: which trials are marked as failed, and which points are enqueued again."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest

from his2lip.cli.tune import show_result
from his2lip.config import validate
from his2lip.errors import RunError
from his2lip.tuning.config import SweepConfig
from his2lip.tuning.search import PlacedTPE
from his2lip.tuning.study import (
    CODE_VERSION,
    RECORD_DIGEST,
    REPORTS_DIGEST,
    STOPPED,
    State,
    TrialRow,
    best_rows,
    damaged,
    open_study,
    prepare_resume,
    record_digest,
    reports_digest,
    rows,
)
from his2lip.tuning.sweep import SweepResult, keep_best
from his2lip.tuning.sweep_directory import TRIALS, SweepDir

SPACE = {"x": {"kind": "uniform", "low": 0.0, "high": 2.0}}
POINTS = ({"x": 0.0}, {"x": 1.0})


@pytest.fixture
def url(tmp_path: Path) -> str:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return f"sqlite:///{tmp_path}/study.db"


def sweep(**changes: Any) -> SweepConfig:
    tree = {"name": "s", "train": {}, "space": SPACE, "points": list(POINTS), "trials": 4, **changes}
    return validate(SweepConfig, tree)


def ask(study: optuna.Study) -> optuna.Trial:
    trial = study.ask({"x": optuna.distributions.FloatDistribution(0.0, 2.0)})
    trial.set_user_attr(CODE_VERSION, "1.0")
    return trial


def test_points_are_enqueued_once_however_often_the_study_is_opened(url: str) -> None:
    config = sweep()
    for _ in range(3):
        study = open_study(config, url, inputs={})
        assert prepare_resume(study, config) == 4
    assert [row.state for row in rows(study)] == ["waiting", "waiting"]
    assert [ask(study).params["x"] for _ in POINTS] == [0.0, 1.0]


def test_a_running_trial_of_a_dead_driver_fails_and_runs_again_once_with_its_parameters(url: str) -> None:
    config = sweep(points=[])
    study = open_study(config, url, inputs={})
    prepare_resume(study, config)
    lost = ask(study)
    study = open_study(config, url, inputs={})
    assert prepare_resume(study, config) == 4
    assert prepare_resume(study, config) == 4
    assert [row.state for row in rows(study)] == ["interrupted", "waiting"]
    again = ask(study)
    assert again.params == lost.params
    study.tell(again, 0.5)
    assert prepare_resume(study, config) == 3
    assert [row.state for row in rows(study)] == ["interrupted", "finished"]


def test_an_interrupted_point_is_enqueued_only_once(url: str) -> None:
    config = sweep()
    study = open_study(config, url, inputs={})
    prepare_resume(study, config)
    ask(study)
    prepare_resume(study, config)
    waiting = [t.system_attrs["fixed_params"]["x"] for t in study.trials if t.state.name == "WAITING"]
    assert sorted(waiting) == [0.0, 1.0]


def test_points_added_to_the_file_are_run_when_the_sweep_is_resumed(url: str) -> None:
    study = open_study(sweep(), url, inputs={})
    prepare_resume(study, sweep())
    more = sweep(points=[*POINTS, {"x": 2.0}])
    prepare_resume(open_study(more, url, inputs={}), more)
    assert len(rows(study)) == 3


def test_nothing_is_enqueued_after_all_trials_have_run(url: str) -> None:
    config = sweep(trials=1, points=[{"x": 0.0}])
    study = open_study(config, url, inputs={})
    prepare_resume(study, config)
    study.tell(ask(study), 1.0)
    left = ask(study)
    changed = sweep(trials=1, points=[{"x": 2.0}])
    assert prepare_resume(study, changed) == 0
    states = [row.state for row in rows(study)]
    assert states == ["finished", "interrupted"], left.number


@pytest.mark.parametrize(
    ("changes", "inputs", "difference"),
    [
        ({"seed": 3}, {"data": "a"}, "seed"),
        ({"space": {"x": {"kind": "uniform", "low": 0.0, "high": 3.0}}}, {"data": "a"}, "space.x.high"),
        ({}, {"data": "b"}, "data"),
    ],
)
def test_a_name_in_use_by_other_inputs_is_refused(
    url: str, changes: dict[str, Any], inputs: dict[str, str], difference: str
) -> None:
    open_study(sweep(), url, inputs={"data": "a"})
    open_study(sweep(trials=9), url, inputs={"data": "a"})
    with pytest.raises(RunError) as refused:
        open_study(sweep(**changes), url, inputs=inputs)
    assert refused.value.key == difference


def test_the_best_trials_are_those_with_the_best_values_that_did_not_fail(url: str) -> None:
    study = open_study(sweep(mode="min"), url, inputs={})
    values = [3.0, 1.0, 0.0, 1.0]
    for value in values:
        trial = ask(study)
        if value == 0.0:
            trial.set_user_attr("failed", "select/macro_f1 was nan")
        study.tell(trial, value)
    assert [row.number for row in best_rows(rows(study), "min", 2)] == [1, 3]
    assert [row.number for row in best_rows(rows(study), "max", 1)] == [0]


def test_the_best_trials_the_front_and_those_that_have_not_ended_keep_their_folders(tmp_path: Path) -> None:
    def row(number: int, state: State, value: float | None = None, recall: float = 0.0) -> TrialRow:
        metrics = {} if value is None else {"f1": value, "recall": recall}
        return TrialRow(number=number, name=str(number), state=state, params={}, value=value, metrics=metrics)

    ended = [row(0, "finished", 0.1), row(1, "finished", 0.9), row(2, "failed"), row(5, "finished", 0.3)]
    ended.append(row(4, "stopped", 0.5, recall=1.0))
    for name in ("0", "1", "2", "3", "4", "notes"):
        (tmp_path / TRIALS / name).mkdir(parents=True)
    config = sweep(metric=["f1", "recall"], keep=1, scheduler={"kind": "none"})
    keep_best(config, SweepDir(tmp_path), ended)
    assert {folder.name for folder in (tmp_path / TRIALS).iterdir()} == {"1", "3", "4", "notes"}


def test_of_equal_trials_the_table_begins_with_the_one_that_is_reported_as_the_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def row(number: int, value: float | None, **more: Any) -> TrialRow:
        metrics = {} if value is None else {"select/macro_f1": value}
        state: State = "interrupted" if value is None else "finished"
        return TrialRow(
            number=number, name=str(number), state=state, params={}, value=value, metrics=metrics, **more
        )

    table = [row(0, None), row(1, 0.5), row(2, 0.5, retry_of=0)]
    (best,) = best_rows(table, "max", 1)
    show_result(sweep(), SweepResult("s", SweepDir(tmp_path), "sqlite://", table, best, False))
    _, first, *_ = capsys.readouterr().out.splitlines()
    assert first.split()[0] == str(best.number) == "2"


@pytest.mark.parametrize("wrong", ["nonsense", "nosuchdialect://host/study", "sqlite:////proc/no/study.db"])
def test_a_database_that_cannot_be_opened_is_refused_in_one_sentence(wrong: str) -> None:
    with pytest.raises(RunError) as caught:
        open_study(sweep(), wrong, inputs={})
    assert (caught.value.key, caught.value.where) == ("study", wrong)
    assert "\n" not in str(caught.value)


def test_a_trial_whose_stored_value_was_changed_counts_as_an_error_and_is_replaced(
    url: str, tmp_path: Path
) -> None:
    study = open_study(sweep(trials=2, points=[]), url, inputs={})
    for value in (0.25, 0.5):
        trial = ask(study)
        trial.set_user_attr(RECORD_DIGEST, record_digest(trial.params, [value], trial.user_attrs))
        study.tell(trial, value)
    assert [(row.state, row.value) for row in rows(study)] == [("finished", 0.25), ("finished", 0.5)]
    with closing(sqlite3.connect(tmp_path / "study.db")) as database, database:
        database.execute("UPDATE trial_values SET value = 0.75 WHERE value = 0.25")
    again = open_study(sweep(trials=2, points=[]), url, inputs={})
    assert [(row.state, row.value) for row in rows(again)] == [("error", None), ("finished", 0.5)]
    assert [row.number for row in best_rows(rows(again), "max", 2)] == [1]
    assert prepare_resume(again, sweep(trials=2, points=[])) == 1
    assert rows(again)[-1].retry_of == 0
    assert ask(again).params == study.trials[0].params


def test_a_trial_whose_parameters_were_not_all_drawn_is_repeated_with_those_that_the_sampler_would_draw(
    url: str,
) -> None:
    def drawn(trial: optuna.Trial) -> list[float]:
        return [trial.suggest_float(key, 0.0, 2.0) for key in "xyz"]

    def opened() -> optuna.Study:
        study = open_study(config, url, inputs={})
        study.sampler = PlacedTPE(seed=0, startup=5, worst=-9.0)
        return study

    whole = optuna.create_study(sampler=PlacedTPE(seed=0, startup=5, worst=-9.0))
    undisturbed = [drawn(whole.ask()) for _ in range(4)]
    space = {key: {"kind": "uniform", "low": 0.0, "high": 2.0} for key in "xyz"}
    config = sweep(points=[], space=space)
    opened().ask()  # killed before the first parameter is stored
    opened().ask().suggest_float("x", 0.0, 2.0)  # and before the second one
    complete = opened().ask()
    assert drawn(complete) == undisturbed[2]
    complete.set_user_attr(CODE_VERSION, "1.0")
    study = opened()
    assert prepare_resume(study, config) == 4
    for expected, retry_of in zip(undisturbed, (0, 1, 2, None), strict=True):
        trial = study.ask()
        assert trial.user_attrs.get("retry_of") == retry_of
        assert drawn(trial) == expected


def test_tpe_learns_nothing_from_trials_whose_value_or_reports_were_changed(url: str, tmp_path: Path) -> None:
    """One trial has got the best value, and one that was stopped the best report."""

    def told() -> None:
        """A study whose odd trials were stopped."""
        study = open_study(sweep(points=[]), url, inputs={})
        for number, x in enumerate([0.0, 0.1, 1.0, 1.1, 0.2, 0.3]):
            study.enqueue_trial({"x": x})
            trial, stopped = ask(study), number % 2 == 1
            trial.report(x, step=1)
            trial.set_user_attr(REPORTS_DIGEST, reports_digest({1: x}))
            if stopped:
                trial.set_user_attr(STOPPED, [x])
            trial.set_user_attr(RECORD_DIGEST, record_digest(trial.params, [x], trial.user_attrs))
            if stopped:
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            else:
                study.tell(trial, x)

    def learns_from(study: optuna.Study, *, ignored: frozenset[int]) -> list[int]:
        """The numbers of the ended trials that TPE sees when it draws for the next one."""
        study.sampler = sampler = PlacedTPE(seed=0, startup=1, worst=-9.0, ignored=ignored)
        ask(study)
        states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        return [trial.number for trial in sampler._seen._get_trials(states=states)]

    told()
    with closing(sqlite3.connect(tmp_path / "study.db")) as database, database:
        database.execute("UPDATE trial_values SET value = 9.0 WHERE value = 0.0")
        database.execute(
            "UPDATE trial_intermediate_values SET intermediate_value = 9.0 WHERE intermediate_value = 0.1"
        )
    changed = open_study(sweep(points=[]), url, inputs={})
    assert damaged(changed) == {0, 1}
    assert [row.state for row in rows(changed)][:3] == ["error", "error", "finished"]
    assert learns_from(changed, ignored=damaged(changed)) == [2, 3, 4, 5]
    assert learns_from(changed, ignored=frozenset()) == [0, 1, 2, 3, 4, 5]
