"""After kill -9 of the driver of a sweep, the same command runs the trials that are left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import ray
from fork_server import until

from his2lip.tuning.study import rows
from his2lip.tuning.sweep import run_sweep

TRIALS = 5
POINTS = (0.25, 0.75)
# The second point hangs in the first call, so that a trial is running when the driver is killed.
SWEEP = """
import threading
from pathlib import Path
from his2lip.tuning import SweepConfig, run_sweep

def objective(params, report):
    report({"value": params["x"]})
    if params["x"] == 0.75 and not (Path(folder) / "second-life").exists():
        threading.Event().wait()
    report({"value": params["x"] + 1.0})

config = SweepConfig.model_validate({
    "name": "s", "train": {}, "metric": "value", "storage": folder, "trials": trials, "max_concurrent": 1,
    "space": {"x": {"kind": "uniform", "low": 0.0, "high": 2.0}}, "points": [{"x": x} for x in points],
    "scheduler": {"kind": "none"},
})
"""
DRIVER = f"""
import sys
from his2lip.runtime import start_ray
folder, trials, points = sys.argv[1], {TRIALS}, {POINTS}
{SWEEP}
start_ray()
run_sweep(config, objective, on_trial=lambda row: print("ended", row.number, flush=True))
"""


def test_after_kill_9_the_same_sweep_is_completed_with_every_trial_run_once(
    ray_local: None, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", DRIVER, str(tmp_path)]
    # A driver of its own on the Ray of this session, so that no other one is started.
    joins = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "RAY_AUTH_MODE": "token"}
    with subprocess.Popen(command, env=os.environ | joins, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "ended 0\n"
        url = f"sqlite:///{tmp_path}/tune/s/study.db"
        study = optuna.load_study(study_name="s", storage=url)
        until(lambda: len(study.trials) == 2 and study.trials[1].intermediate_values != {})
        first.send_signal(signal.SIGKILL)
    before = {row.number: row for row in rows(study)}
    assert [row.state for row in before.values()] == ["finished", "running"]

    (tmp_path / "second-life").touch()
    # As in `__main__`, so that Ray's processes get the objective itself and not the name of a module.
    names: dict[str, Any] = {
        "__name__": "__main__",
        "folder": str(tmp_path),
        "trials": TRIALS,
        "points": POINTS,
    }
    exec(SWEEP, names)
    second = run_sweep(names["config"], names["objective"])
    assert not second.finished_before
    after = rows(optuna.load_study(study_name="s", storage=url))
    finished = [row for row in after if row.state == "finished"]
    assert len(finished) == TRIALS
    assert {row.state for row in after} == {"finished", "interrupted"}
    assert after[0] == before[0]
    xs = [row.params["x"] for row in finished]
    assert len(set(xs)) == TRIALS
    assert set(POINTS) <= set(xs)
