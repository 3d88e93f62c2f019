"""Trials that share a GPU: two of them work at the same time on half of it each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# A Ray with one logical GPU. Each of the first two trials waits until both have started.
DRIVER = """
import sys, time
from pathlib import Path
import ray
from his2lip.runtime import quiet_ray
from his2lip.tuning import SweepConfig, run_sweep

folder = Path(sys.argv[1])

def objective(params, report):
    (folder / f"started-{report.number}").touch()
    until = time.monotonic() + 60
    while len(list(folder.glob("started-*"))) < 2:
        assert time.monotonic() < until, "the other trial does not start"
        time.sleep(0.05)
    assert ray.get_gpu_ids() == [0], ray.get_gpu_ids()
    report({"value": params["x"]})

config = SweepConfig.model_validate({
    "name": "s", "train": {}, "metric": "value", "storage": str(folder), "trials": 3, "max_concurrent": 2,
    "space": {"x": {"kind": "uniform", "low": 0.0, "high": 2.0}}, "scheduler": {"kind": "none"},
})
quiet_ray()
ray.init(num_cpus=2, num_gpus=1, object_store_memory=100 << 20, include_dashboard=False, log_to_driver=False)
print([row.state for row in run_sweep(config, objective).trials])
"""


@pytest.mark.slow
def test_two_trials_work_at_the_same_time_on_one_gpu(tmp_path: Path) -> None:
    command = [sys.executable, "-c", DRIVER, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.stdout.splitlines()[-1:] == ["['finished', 'finished', 'finished']"], done.stderr
