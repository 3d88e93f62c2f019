"""After kill -9 of the driver of a sweep, the same command runs the trials that are left."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import optuna

from his2lip.tuning.study import rows

TRIALS = 6
POINTS = (0.25, 0.5, 0.75)
# The third point hangs in the first call, so that a trial is running when the driver is killed.
DRIVER = """
import sys, threading
from pathlib import Path
from his2lip.runtime import start_ray
from his2lip.tuning import SweepConfig, run_sweep

folder = Path(sys.argv[1])

def objective(params, report):
    report({"value": params["x"]})
    if params["x"] == 0.75 and not (folder / "second-life").exists():
        threading.Event().wait()
    report({"value": params["x"] + 1.0})

config = SweepConfig.model_validate({
    "name": "s", "train": {}, "metric": "value", "storage": str(folder),
    "trials": int(sys.argv[2]), "max_concurrent": 2,
    "space": {"x": {"kind": "uniform", "low": 0.0, "high": 2.0}},
    "points": [{"x": x} for x in (0.25, 0.5, 0.75)],
    "scheduler": {"kind": "none"},
})
start_ray(num_cpus=2, object_store_memory=100 << 20)
result = run_sweep(config, objective, on_trial=lambda row: print("ended", row.number, flush=True))
print("finished before" if result.finished_before else "done", flush=True)
"""


def start(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", DRIVER, str(folder), str(TRIALS)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_after_kill_9_the_same_command_completes_the_sweep_with_every_trial_run_once(tmp_path: Path) -> None:
    first = start(tmp_path)
    assert first.stdout is not None
    ended = {int(first.stdout.readline().split()[1]) for _ in range(3)}
    first.send_signal(signal.SIGKILL)
    first.wait()
    url = f"sqlite:///{tmp_path}/tune/s/study.db"
    study = optuna.load_study(study_name="s", storage=url)
    before = {row.number: row for row in rows(study)}
    assert 2 not in ended  # the third point was running
    assert before[2].state == "running"

    (tmp_path / "second-life").touch()
    second = start(tmp_path)
    output, _ = second.communicate(timeout=120)
    assert second.returncode == 0
    assert output.splitlines()[-1] == "done"
    after = rows(optuna.load_study(study_name="s", storage=url))
    finished = [row for row in after if row.state == "finished"]
    assert len(finished) == TRIALS
    assert {row.state for row in after} == {"finished", "interrupted"}
    assert [row for row in after if row.number in ended] == [before[number] for number in sorted(ended)]
    xs = [row.params["x"] for row in finished]
    assert len(set(xs)) == TRIALS
    assert set(POINTS) <= set(xs)
