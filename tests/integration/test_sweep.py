"""Sweeps on real Ray Tune and Optuna, with fast objectives."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest

from his2lip.config import validate
from his2lip.errors import ConfigError, RunError
from his2lip.resources import code_version
from his2lip.tuning.config import SweepConfig
from his2lip.tuning.plots import save_plots
from his2lip.tuning.search import PlacedTPE
from his2lip.tuning.study import TrialRow, open_study
from his2lip.tuning.sweep import SweepResult, _resources, run_sweep
from his2lip.tuning.trial import Objective, TrialReporter

pytestmark = pytest.mark.usefixtures("ray_local", "by_value")

Sweep = Callable[..., SweepResult]


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """sweep(objective, …) runs a sweep in a folder of this test, as `swept` does."""
    return functools.partial(swept, tmp_path)


def swept(
    folder: Path,
    objective: Objective,
    *,
    on_trial: Callable[[TrialRow], None] | None = None,
    inputs: dict[str, str] | None = None,
    fresh: bool = False,
    **changes: Any,
) -> SweepResult:
    """Runs a sweep over x in [0, 2]; keyword arguments change its configuration.

    One trial at a time by default, because each process of trials takes seconds to start.
    """
    tree = {
        "name": "s",
        "train": {},
        "space": {"x": {"kind": "uniform", "low": 0.0, "high": 2.0}},
        "trials": 4,
        "max_concurrent": 1,
        "sampler": {"startup": 3},
        "scheduler": {"kind": "none"},
        "metric": "value",
        "storage": str(folder / "runs"),
        **changes,
    }
    config = validate(SweepConfig, tree)
    return run_sweep(config, objective, on_trial=on_trial, inputs=inputs, fresh=fresh)


def parabola(params: dict[str, Any], report: TrialReporter) -> None:
    """Has its maximum at x = 1. The second of its three reports has the best value."""
    for gain in (0.0, 0.1, 0.05):
        if report({"value": gain - (params["x"] - 1.0) ** 2, "gain": gain, "process": os.getpid()}):
            return


@pytest.fixture
def nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Ray Tune prints nothing."""
    yield
    assert tuple(capfd.readouterr()) == ("", "")


@pytest.mark.usefixtures("nothing_is_printed")
def test_a_sweep_runs_its_points_first_then_points_of_tpe_and_reports_when_it_is_finished(
    sweep: Sweep,
) -> None:
    told: list[TrialRow] = []
    points = [{"x": 0.0}, {"x": 1.0}]
    result = sweep(parabola, on_trial=told.append, points=points, trials=6, max_concurrent=2)
    assert [row.params["x"] for row in result.trials[:2]] == [0.0, 1.0]
    assert sorted(row.number for row in told) == list(range(6))
    assert {row.state for row in result.trials} == {"finished"}
    assert {row.reports for row in result.trials} == {3}
    assert result.params == {"x": 1.0}
    assert result.best is not None
    assert result.best.value == pytest.approx(0.1)  # the best report, not the last
    assert result.best.metrics["gain"] == pytest.approx(0.1)
    assert len({row.metrics["process"] for row in result.trials}) <= 2  # actors are reused
    assert not result.finished_before
    assert save_plots(result.study(), result.directory)[0].is_file()

    again = sweep(parabola, on_trial=lambda row: pytest.fail("a finished sweep runs nothing"), trials=6)
    assert again.finished_before
    assert again.trials == result.trials


@dataclass(frozen=True)
class Faulty:
    """A sweep with a trial of each fault, and the same sweep once more, when two of the faults are mended."""

    first: SweepResult
    second: SweepResult

    def row(self, fault: str) -> TrialRow:
        """The trial of the first call that had this fault."""
        return next(row for row in self.first.trials if row.params["fault"] == fault)

    def state(self, fault: str) -> str:
        """Optuna's state of that trial."""
        return str(self.first.study().trials[self.row(fault).number].state.name)


FAULTS = ("nan", "none", "inf", "-inf", "raises", "dies", "hangs", "none again")


@pytest.fixture(scope="module")
def faulty(ray_local: None, by_value: None, tmp_path_factory: pytest.TempPathFactory) -> Faulty:
    folder = tmp_path_factory.mktemp("faulty")
    mended = folder / "mended"

    def objective(params: dict[str, Any], report: TrialReporter) -> None:
        fault = params["fault"]
        if fault == "raises" and not mended.exists():
            raise OSError("the disk is full")
        if fault == "dies" and not mended.exists():
            os._exit(1)
        report({"value": 1.0 + FAULTS.index(fault)})
        if fault in ("nan", "inf", "-inf"):
            assert report({"value": float(fault)})
        if fault == "hangs":
            threading.Event().wait()

    options = {
        "space": {"fault": {"kind": "choice", "values": list(FAULTS)}},
        "points": [{"fault": fault} for fault in FAULTS],
        "trials": len(FAULTS),
        "trial_timeout": 2.0,
        "worst": -7.0,
    }
    first = swept(folder, objective, **options)
    mended.touch()
    return Faulty(first, swept(folder, objective, **options))


@pytest.mark.parametrize("fault", ["nan", "inf", "-inf"])
def test_a_metric_that_is_not_finite_ends_its_trial_as_failed(faulty: Faulty, fault: str) -> None:
    row = faulty.row(fault)
    assert (row.state, row.value, row.note) == ("failed", None, f"value was {fault} at report 2")
    assert faulty.state(fault) == "FAIL"


def test_other_trials_are_finished_and_one_of_them_is_the_best(faulty: Faulty) -> None:
    finished = [row.params["fault"] for row in faulty.first.trials if row.state == "finished"]
    assert finished == ["none", "none again"]
    assert {faulty.state(fault) for fault in finished} == {"COMPLETE"}
    assert faulty.first.params == {"fault": "none again"}


def test_a_trial_that_raises_is_reported_and_runs_again_at_the_next_call(faulty: Faulty) -> None:
    row = faulty.row("raises")
    assert (row.state, row.note) == ("error", "OSError: the disk is full")
    again = faulty.second.trials[len(FAULTS) :]
    assert [(row.params["fault"], row.state) for row in again] == [
        ("raises", "finished"),
        ("dies", "finished"),
    ]


def test_a_process_that_dies_is_started_again_and_reported_if_it_keeps_dying(faulty: Faulty) -> None:
    row = faulty.row("dies")
    assert row.state == "error"
    assert "process failed" in str(row.note)


def test_a_trial_that_hangs_is_ended_told_as_failed_and_not_run_again(faulty: Faulty) -> None:
    row = faulty.row("hangs")
    assert (row.state, faulty.state("hangs")) == ("hung", "FAIL")
    file = faulty.first.directory / "hung" / f"{row.number}.txt"
    assert "in objective" in file.read_text(encoding="utf-8")
    assert str(file) in str(row.note)
    assert "hangs" not in [row.params["fault"] for row in faulty.second.trials[len(FAULTS) :]]


def test_asha_stops_poor_trials_early_and_lets_good_trials_finish(sweep: Sweep) -> None:
    def objective(params: dict[str, Any], report: TrialReporter) -> None:
        for step in range(9):
            if report({"value": params["x"], "step": step}):
                return

    points = [{"x": x} for x in (2.0, 1.5, 1.0, 0.5, 0.25, 0.0)]
    asha = {"kind": "asha", "grace": 1, "reduction": 3}
    result = sweep(objective, points=points, trials=6, scheduler=asha)
    assert result.trials[0].state == "finished"
    assert result.trials[0].reports == 9
    assert result.trials[0].metrics["step"] == 8, "of equal reports the last, whose checkpoint is kept"
    stopped = [row for row in result.trials if row.state == "stopped"]
    assert {row.reports for row in stopped} == {1}
    assert len(stopped) >= 3
    assert [row.value for row in stopped] == [row.params["x"] for row in stopped]
    pruned = [trial for trial in result.study().trials if trial.state.name == "PRUNED"]
    assert [trial.number for trial in pruned] == [row.number for row in stopped]
    assert [trial.intermediate_values for trial in pruned] == [{1: row.value} for row in stopped]


@dataclass(frozen=True)
class Halves:
    """Seven trials in one call, and in two; the second of these has another version of the code."""

    whole: SweepResult
    first: SweepResult
    second: SweepResult


@pytest.fixture(scope="module")
def halves(ray_local: None, by_value: None, tmp_path_factory: pytest.TempPathFactory) -> Halves:
    folder, options = tmp_path_factory.mktemp("halves"), {"keep": 2, "inputs": {"data": "a"}}
    whole = swept(folder, saved_parabola, name="whole", trials=7, **options)
    first = swept(folder, saved_parabola, name="halves", trials=4, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("his2lip.tuning.search.code_version", lambda: "another")
        second = swept(folder, saved_parabola, name="halves", trials=7, **options)
    return Halves(whole, first, second)


def saved_parabola(params: dict[str, Any], report: TrialReporter) -> None:
    report.folder.mkdir(parents=True)
    (report.folder / "weights").write_text(str(params["x"]), encoding="utf-8")
    parabola(params, report)


def test_one_trial_at_a_time_gives_the_same_trials_also_after_a_restart(halves: Halves) -> None:
    assert [row.params for row in halves.second.trials] == [row.params for row in halves.whole.trials]
    assert halves.second.trials[:4] == halves.first.trials
    assert len(halves.second.trials) == 7


def test_each_trial_records_the_version_of_the_code_that_ran_it(halves: Halves) -> None:
    assert halves.first.code_versions == {code_version(): 4}
    assert halves.second.code_versions == {code_version(): 4, "another": 3}
    versions = [row.code_version for row in halves.second.trials]
    assert versions == [code_version()] * 4 + ["another"] * 3


def test_after_a_restart_asha_compares_with_the_trials_that_ended_before(
    sweep: Sweep, tmp_path: Path
) -> None:
    """Else the first trial at each rung would never be stopped, and the later ones be compared with few."""

    def objective(params: dict[str, Any], report: TrialReporter) -> None:
        for step in range(4):
            if report({"value": params["x"] + (math.nan if params["x"] == 0.75 and step else step)}):
                return

    points = [{"x": x} for x in (1.0, 0.5, 0.75, 1.5, 0.25, 1.25, 0.9)]
    options = {"points": points, "scheduler": {"kind": "asha", "grace": 1, "reduction": 2}}
    whole = sweep(objective, name="whole", trials=9, **options)
    assert {row.state for row in whole.trials} == {"finished", "stopped", "failed"}
    for trials in (4, 9):
        halves = sweep(objective, name="halves", trials=trials, **options | {"points": points[:trials]})
    ends = [
        [(row.number, row.state, row.params, row.value, row.reports) for row in x.trials]
        for x in (whole, halves)
    ]
    assert ends[0] == ends[1]


def test_only_the_best_trials_keep_their_files(halves: Halves) -> None:
    for result in (halves.whole, halves.second):
        kept = {int(path.name): path for path in (result.directory / "trials").iterdir()}
        best = sorted(result.trials, key=lambda row: row.value or 0.0)[-2:]
        assert kept.keys() == {row.number for row in best}
        for row in best:
            assert (kept[row.number] / "weights").read_text(encoding="utf-8") == str(row.params["x"])
        assert result.best == best[-1]


def test_a_name_in_use_by_another_sweep_is_refused_and_fresh_starts_over(
    halves: Halves, sweep: Sweep, tmp_path: Path
) -> None:
    shutil.copytree(halves.second.directory, tmp_path / "runs/tune/halves")
    with pytest.raises(RunError) as refused:
        sweep(parabola, name="halves", trials=7, inputs={"data": "b"})
    assert refused.value.key == "data"
    anew = sweep(parabola, name="halves", trials=2, inputs={"data": "b"}, fresh=True)
    assert not anew.finished_before
    assert [row.params for row in anew.trials] == [row.params for row in halves.whole.trials[:2]]


def test_another_seed_draws_other_trials() -> None:
    def drawn(seed: int) -> list[float]:
        study = optuna.create_study(sampler=PlacedTPE(seed=seed, startup=3, worst=-9.0))
        for _ in range(6):
            trial = study.ask()
            study.tell(trial, trial.suggest_float("x", 0.0, 2.0))
        return [trial.params["x"] for trial in study.trials]

    assert drawn(0) == drawn(0)
    assert not set(drawn(0)) & set(drawn(1))


DISTURBED = {"trials": 7, "points": [{"x": 0.25}, {"x": 0.5}], "scheduler": {"kind": "asha"}}


def test_trials_that_die_once_leave_the_study_of_an_undisturbed_sweep(sweep: Sweep, tmp_path: Path) -> None:
    """One raises an error and one is killed, both between two reports; two more before their first one."""
    killed = {(1, 1): True, (0, 1): False, (3, 0): True, (4, 0): False}  # whether, by trial and step

    def objective(params: dict[str, Any], report: TrialReporter) -> None:
        for step, gain in enumerate((0.0, 0.1, 0.05)):
            died = tmp_path / f"died-{report.number}"
            if (report.number, step) in killed and not died.exists():
                died.touch()
                if killed[report.number, step]:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise OSError("a disk that was away")
            if report({"value": gain - (params["x"] - 1.0) ** 2}):
                return

    disturbed = sweep(objective, name="disturbed", **DISTURBED)
    assert len(list(tmp_path.glob("died-*"))) == 4
    undisturbed = sweep(objective, name="undisturbed", **DISTURBED)
    assert [dataclasses.replace(row, seconds=None) for row in disturbed.trials] == [
        dataclasses.replace(row, seconds=None) for row in undisturbed.trials
    ]


@pytest.mark.parametrize("lost", ["all", "the last trials"])
def test_a_sweep_whose_study_was_lost_is_refused_and_keeps_its_trials(
    sweep: Sweep, tmp_path: Path, lost: str
) -> None:
    """It would start at trial 0, and its trials would take the folders of the former ones."""

    def objective(params: dict[str, Any], report: TrialReporter) -> None:
        report.folder.joinpath("best").mkdir(parents=True)
        report.folder.joinpath("best", "x").write_text(str(params["x"]))
        report({"value": params["x"]})

    study = tmp_path / "runs/tune/s/study.db"
    if lost != "all":
        sweep(objective, trials=1)
        shutil.copy(study, tmp_path / "backup.db")
    first = sweep(objective, trials=2, keep=2)
    kept = {row.name: (first.sweep.trial(row.name) / "best/x").read_text() for row in first.trials}
    study.unlink()
    if lost != "all":
        shutil.copy(tmp_path / "backup.db", study)
    for _ in range(2):
        with pytest.raises(RunError) as refused:
            sweep(objective, trials=3, points=[{"x": 0.0}, {"x": 1.0}])
        assert (refused.value.key, refused.value.where) == ("study", str(study.parent / "trials"))
    assert {row.name: (first.sweep.trial(row.name) / "best/x").read_text() for row in first.trials} == kept
    study.write_bytes(b"no database" * 99)
    again = sweep(objective, trials=2, keep=2, fresh=True)
    assert [row.number for row in again.trials] == [0, 1]


def test_two_metrics_have_a_pareto_front_whose_checkpoints_are_kept(sweep: Sweep) -> None:
    def objective(params: dict[str, Any], report: TrialReporter) -> None:
        report.folder.mkdir(parents=True)
        x = params["x"]
        report({"value": x, "other": 1 - x if x < 1.75 else -5.0})

    points = [{"x": x} for x in (1.0, 0.0, 2.0, 1.5)]
    result = sweep(objective, points=points, trials=6, metric=["value", "other"], keep=1)
    study = result.study()
    assert [row.number for row in sorted(result.front, key=lambda row: row.number)] == [
        trial.number for trial in sorted(study.best_trials, key=lambda trial: trial.number)
    ]
    assert {0, 1, 2, 3} <= {row.number for row in result.front}
    assert result.best is not None
    assert result.best.params == {"x": 2.0}, "the best is by the first metric"
    kept = {int(folder.name) for folder in (result.directory / "trials").iterdir()}
    assert kept == {row.number for row in result.front}
    assert study.metric_names == ["value", "other"]
    names = {path.stem for path in save_plots(study, result.directory, metrics=["value", "other"])}
    assert "pareto_front" in names


def test_a_conditional_space_draws_a_key_only_where_its_condition_holds(sweep: Sweep) -> None:
    def objective(params: dict[str, Any], report: TrialReporter) -> None:
        report({"value": params["x"], "keys": len(params)})

    space = {
        "x": {"kind": "uniform", "low": 0.0, "high": 2.0},
        "kappa": {"kind": "mixed", "values": ["scale"], "range": {"kind": "log", "low": 0.1, "high": 10.0}},
        "y": {"kind": "int", "low": 1, "high": 3, "when": {"kappa": "free"}},
    }
    points = [{"kappa": "scale", "x": 0.5}, {"kappa": 2.0, "x": 0.25, "y": 3}, {"kappa": 0.2}]
    result = sweep(objective, space=space, points=points, trials=10)
    assert result.trials[0].params == {"kappa": "scale", "x": 0.5}
    assert result.trials[1].params == {"kappa": 2.0, "x": 0.25, "y": 3}
    for row in result.trials:
        assert ("y" in row.params) == (row.params["kappa"] != "scale")
    assert {row.params["kappa"] == "scale" for row in result.trials[3:]} == {True, False}


def test_a_sweep_starts_with_the_best_points_of_an_earlier_one_and_of_the_paper(
    sweep: Sweep, tmp_path: Path
) -> None:
    key = "loss.weights.image_image"
    space = {key: {"kind": "uniform", "low": 0.0, "high": 2.0}}

    def objective(params: dict[str, Any], report: TrialReporter) -> None:
        report({"value": -((params[key] - 1.5) ** 2)})

    def tell_earlier(*drawn: float) -> None:
        """Adds finished trials to the study of a sweep in the same storage."""
        folder = tmp_path / "runs/tune/earlier"
        folder.mkdir(parents=True, exist_ok=True)
        config = validate(SweepConfig, {"name": "earlier", "train": {}, "space": space, "metric": "value"})
        study = open_study(config, f"sqlite:///{folder}/study.db", inputs={})
        for value in drawn:
            study.enqueue_trial({key: value})
            study.tell(study.ask({key: optuna.distributions.FloatDistribution(0.0, 2.0)}), -abs(value - 1.5))

    tell_earlier(0.25, 1.25, 1.95, 1.0)
    narrow = {key: {"kind": "uniform", "low": 0.0, "high": 1.9}}
    options = {"space": narrow, "warm_start": ["paper", "earlier"], "warm_start_best": 2}
    later = sweep(objective, name="later", trials=4, **options)
    assert [row.params[key] for row in later.trials[:3]] == [0.5, 1.25, 1.0], "1.95 is outside"
    tell_earlier(1.5)
    more = sweep(objective, name="later", trials=5, **options)
    assert more.trials[:4] == later.trials, "what was read at the start stays"
    assert more.trials[4].params[key] != 1.5
    with pytest.raises(RunError) as refused:
        sweep(objective, name="third", warm_start=["nosuch"])
    assert refused.value.key == "warm_start"


@pytest.mark.parametrize(
    ("gpus", "asked"), [("auto", {"cpu": 0, "memory": 1}), (0.25, {"cpu": 0, "gpu": 0.25})]
)
def test_a_trial_asks_for_the_share_of_a_gpu_that_its_sweep_says(gpus: Any, asked: dict[str, float]) -> None:
    space = {"x": {"kind": "int", "low": 0, "high": 1}}
    config = validate(SweepConfig, {"name": "s", "train": {}, "space": space, "gpus": gpus})
    assert _resources(config, {"CPU": 2.0, "GPU": 0.0}) == asked


def test_an_error_of_the_user_in_a_trial_ends_the_sweep_with_that_error(sweep: Sweep) -> None:
    def objective(params: dict[str, Any], report: TrialReporter) -> None:
        raise ConfigError("no such backbone", key="model.backbone")

    with pytest.raises(ConfigError) as refused:
        sweep(objective, trials=20)
    assert refused.value.key == "model.backbone"


def test_a_metric_that_no_trial_reports_is_refused_with_the_nearest_name(sweep: Sweep) -> None:
    with pytest.raises(ConfigError) as refused:
        sweep(parabola, metric="valeu")
    assert refused.value.key == "valeu"
    assert "'value'" in str(refused.value.fix)


def test_a_sweep_whose_trials_all_raise_stops_after_a_few_with_their_error(sweep: Sweep) -> None:
    told: list[TrialRow] = []

    def objective(params: dict[str, Any], report: TrialReporter) -> None:
        raise ZeroDivisionError("of course")

    with pytest.raises(RunError) as refused:
        sweep(objective, on_trial=told.append, trials=50)
    assert (refused.value.key, refused.value.where) == ("train", "sweep s")
    assert "ZeroDivisionError: of course" in refused.value.what, "the error of the last trial"
    assert len(told) < 10


def test_an_error_in_the_drivers_callback_is_raised(sweep: Sweep) -> None:
    class TrackingFailed(Exception):
        pass

    def on_trial(row: TrialRow) -> None:
        raise TrackingFailed

    with pytest.raises(TrackingFailed):
        sweep(parabola, on_trial=on_trial, trials=20)
