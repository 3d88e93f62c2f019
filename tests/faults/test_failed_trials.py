"""A trial of a sweep dies, hangs or reports NaN: the study says so once; its other trials are undisturbed."""

from __future__ import annotations

import dataclasses
import math
import os
import random
import signal
import threading
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from moments import FAULTS
from reliability_page import Record

from his2lip.config import validate
from his2lip.tuning.config import SweepConfig
from his2lip.tuning.study import TrialRow
from his2lip.tuning.sweep import SweepResult, run_sweep
from his2lip.tuning.trial import TrialReporter

pytestmark = pytest.mark.usefixtures("ray_local", "by_value")

TRIALS, REPORTS = 5, 3
HUNG_S = 2.0  # without a report, after which a trial counts as hung
FAULT = {
    "dies": ("a trial that dies", "kill -9 of its process", "it runs again in its place: the same study"),
    "hangs": ("a trial that hangs", f"it waits for ever; `trial_timeout` of {HUNG_S:.0f} s", "hung"),
    "nan": ("a trial that returns NaN", "its metric is NaN", "failed"),
}


class Moment(NamedTuple):
    """Before which report of which trial the fault strikes, once."""

    trial: int
    report: int


def moments_of(kind: str, count: int) -> list[Moment]:
    """`count` different moments, or all of them in turn where there are fewer; the same for each run."""
    every = [Moment(trial, report) for trial in range(TRIALS) for report in range(REPORTS)]
    random.Random(kind).shuffle(every)
    return [every[i % len(every)] for i in range(count)]


def config(folder: Path, name: str) -> SweepConfig:
    """A sweep of TRIALS known points, one at a time, whose values rise with their numbers."""
    tree = {
        "name": name, "train": {}, "metric": "value", "storage": str(folder / "runs"), "trials": TRIALS,
        "max_concurrent": 1, "space": {"x": {"kind": "uniform", "low": 0.0, "high": 2.0}},
        "points": [{"x": 0.25 * i} for i in range(TRIALS)], "scheduler": {"kind": "none"},
        "trial_timeout": HUNG_S,
    }  # fmt: skip
    return validate(SweepConfig, tree)


def swept(folder: Path, name: str, kind: str, moment: Moment | None) -> SweepResult:
    struck = folder / f"{name}-struck"

    def objective(params: dict[str, Any], report: TrialReporter) -> None:
        for step in range(REPORTS):
            value = params["x"] + 0.1 * step
            if moment == (report.number, step) and not struck.exists():
                struck.touch()
                if kind == "dies":
                    os.kill(os.getpid(), signal.SIGKILL)
                elif kind == "hangs":
                    threading.Event().wait()
                value = math.nan
            report({"value": value})

    result = run_sweep(config(folder, name), objective)
    assert struck.exists() == (moment is not None)
    return result


def rows(result: SweepResult) -> list[TrialRow]:
    """The trials of a study, without their times."""
    return [dataclasses.replace(row, seconds=None) for row in result.trials]


@pytest.mark.parametrize("kind", FAULT)
@pytest.mark.parametrize("count", [pytest.param(2, marks=pytest.mark.slow), pytest.param(20, marks=FAULTS)])
def test_the_other_trials_are_undisturbed(tmp_path: Path, kind: str, count: int, record: Record) -> None:
    fault, how, outcome = FAULT[kind]
    wanted = rows(swept(tmp_path, "whole", kind, None))
    for i, moment in enumerate(moments_of(kind, count)):
        name = f"{kind}{i}"
        first = swept(tmp_path, name, kind, moment)
        found = rows(first)
        if kind == "dies":
            assert found == wanted
        else:
            assert found[moment.trial].state == outcome
            assert found[moment.trial].params == wanted[moment.trial].params
            others = [row for row in range(TRIALS) if row != moment.trial]
            assert [found[row] for row in others] == [wanted[row] for row in others]
            assert first.best is not None
            assert first.best.number == max(others)
        again = run_sweep(
            config(tmp_path, name), lambda params, report: pytest.fail("nothing is left to run")
        )
        assert again.finished_before
        assert rows(again) == found
    if kind != "dies":
        outcome = f"the trial ends as *{outcome}*, once; the others are those of the undisturbed study"
    record(fault, f"{how}, before a seeded report of a seeded trial", count, outcome)
