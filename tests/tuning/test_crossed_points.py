"""Points that are crossed with seeds: which parameters each trial of such a sweep is given."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest

from his2lip.config import validate
from his2lip.tuning.config import SweepConfig
from his2lip.tuning.search import StudySearch
from his2lip.tuning.study import RECORD_DIGEST, open_study, prepare_resume, record_digest, rows
from his2lip.tuning.sweep_directory import SweepDir

TREE: dict[str, Any] = {
    "name": "s",
    "train": {},
    "space": {
        "loss.tau": {"kind": "uniform", "low": 0.5, "high": 2.0},
        "loss.kappa": {
            "kind": "mixed",
            "values": ["scale"],
            "range": {"kind": "log", "low": 1, "high": 9},
        },
    },
    "points": [{"loss.tau": 1.0}, {"loss.kappa": "scale"}, {"loss.tau": 2.0, "loss.kappa": 4.0}],
    "cross": {"seed": [0, 1]},
    "trials": 6,
}
GIVEN = [{**point, "seed": seed} for seed in (0, 1) for point in TREE["points"]]


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return open_study(validate(SweepConfig, TREE), f"sqlite:///{tmp_path}/study.db", inputs={})


def suggested(study: optuna.Study) -> list[dict[str, Any]]:
    """The parameters of the trials that remain, as the searcher gives them."""
    config = validate(SweepConfig, TREE)
    remaining = prepare_resume(study, config)
    search = StudySearch(study, config, SweepDir(Path()), on_trial=lambda row: None)
    return [search.suggest(f"trial-{number}")["params"] for number in range(remaining)]


def test_each_point_is_run_under_each_seed_with_the_keys_that_it_sets_and_no_others(
    study: optuna.Study,
) -> None:
    assert suggested(study) == GIVEN


def test_trials_with_a_damaged_record_are_run_again_with_the_parameters_of_their_points(
    study: optuna.Study, tmp_path: Path
) -> None:
    suggested(study)
    for trial in study.trials:
        digest = record_digest(trial.params, [trial.number / 8], trial.user_attrs)
        study._storage.set_trial_user_attr(trial._trial_id, RECORD_DIGEST, digest)
        study.tell(trial.number, trial.number / 8)
    damage = (
        "UPDATE trial_params SET param_value = 1.5 WHERE trial_id = 1 AND param_name = 'loss.tau'",
        "UPDATE trial_values SET value = 9 WHERE trial_id = 6",
    )
    with closing(sqlite3.connect(tmp_path / "study.db")) as database, database:
        assert [database.execute(statement).rowcount for statement in damage] == [1, 1]
    again = open_study(validate(SweepConfig, TREE), f"sqlite:///{tmp_path}/study.db", inputs={})
    assert [row.state for row in rows(again)] == ["error", *["finished"] * 4, "error"]
    assert suggested(again) == [GIVEN[0], GIVEN[5]]
    assert [row.retry_of for row in rows(again)[6:]] == [0, 5]
