"""Points that are crossed with seeds: which parameters each trial of such a sweep is given."""

from __future__ import annotations

from pathlib import Path

import optuna

from his2lip.config import validate
from his2lip.tuning.config import SweepConfig
from his2lip.tuning.search import StudySearch
from his2lip.tuning.study import open_study, prepare_resume


def test_each_point_is_run_under_each_seed_with_the_keys_that_it_sets_and_no_others(tmp_path: Path) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    tree = {
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
    config = validate(SweepConfig, tree)
    study = open_study(config, f"sqlite:///{tmp_path}/study.db", inputs={})
    assert prepare_resume(study, config) == 6
    search = StudySearch(study, config, on_trial=lambda row: None)
    given = [search.suggest(f"trial-{number}")["params"] for number in range(6)]
    assert given == [{**point, "seed": seed} for seed in (0, 1) for point in tree["points"]]
