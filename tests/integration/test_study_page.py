"""`his2lip ui --study`: optuna-dashboard shows a sweep's study on loopback, and changes nothing."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import optuna
import pytest
from loopback import on_loopback

from his2lip.cli.study_page import opened_study
from his2lip.config import validate
from his2lip.errors import RunError
from his2lip.tuning.config import SweepConfig
from his2lip.tuning.study import open_study


def ask(url: str, **options: Any) -> Any:
    with urllib.request.urlopen(urllib.request.Request(url, **options), timeout=30) as answer:
        return json.load(answer)


def test_a_study_is_read_from_the_api_of_its_page_and_cannot_be_changed_there(tmp_path: Path) -> None:
    space = {"x": {"kind": "uniform", "low": 0.0, "high": 1.0}}
    config = validate(SweepConfig, {"name": "mine", "train": {}, "space": space, "metric": "value"})
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = open_study(config, f"sqlite:///{tmp_path}/study.db", inputs={})
    for state in ("COMPLETE", "PRUNED", "FAIL"):
        trial = study.ask({"x": optuna.distributions.FloatDistribution(0.0, 1.0)})
        value = 0.5 if state == "COMPLETE" else None
        study.tell(trial, value, state=optuna.trial.TrialState[state])

    command = [sys.executable, "-m", "his2lip", "ui", "--study", str(tmp_path), "--no-browser"]
    with on_loopback(command, cwd=tmp_path, host=(), health="/api/studies") as url:
        (found,) = ask(f"{url}/api/studies")["study_summaries"]
        assert found["study_name"] == "mine"
        detail = ask(f"{url}/api/studies/{found['study_id']}")
        assert [trial["state"] for trial in detail["trials"]] == ["Complete", "Pruned", "Fail"]
        for options in ({"method": "DELETE"}, {"headers": {"Host": "elsewhere.example"}}):
            with pytest.raises(urllib.error.HTTPError) as refused:
                ask(f"{url}/api/studies/{found['study_id']}", **options)
            assert refused.value.code == 403
    assert len(study.trials) == 3


def test_a_sweep_that_does_not_exist_is_refused_by_its_option() -> None:
    with pytest.raises(RunError) as refused, opened_study("no-such-sweep"):
        pass
    assert (refused.value.key, refused.value.where) == ("--study", "no-such-sweep")
