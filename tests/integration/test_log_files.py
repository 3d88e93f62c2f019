"""The log file of a small training run and benchmark: lines of the driver and of the workers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from training_data import write_small_shards

from his2lip.synthetic.twins import write_twin

LINE = re.compile(r"^\S+ \S+ (?:DEBUG|INFO|WARNING|ERROR) \S+:(\d+) (his2lip\S*): (.*)$")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    write_small_shards(folder / "training", train=64, select=48)
    write_twin("bcdata", folder / "shards/bcdata", scale=0.05)
    return folder


def _his2lip(folder: Path, config: dict[str, object], *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as a user runs it, with its store in the folder."""
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"storage": str(folder / "runs")}))
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "HIS2LIP_LOG")}
    environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    command = [sys.executable, "-m", "his2lip", *arguments, "config.yaml"]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def _lines(folder: Path) -> dict[int, list[str]]:
    """The messages in the log of a run's folder, by the process that wrote them."""
    found: dict[int, list[str]] = {}
    for line in (folder / "his2lip.log").read_text().splitlines():
        match = LINE.match(line)
        if match:
            found.setdefault(int(match[1]), []).append(match[3])
    return found


def test_a_training_run_has_a_log_of_driver_and_worker_and_verbose_shows_both(folder: Path) -> None:
    config = {
        "name": "logged",
        "data": {"shards": str(folder / "training"), "batch_size": 32, "lanes": 4},
        "optim": {"epochs": 1},
    }
    done = _his2lip(folder, config, "--verbose", "train")
    lines = _lines(folder / "runs/train/logged")
    driver = next(pid for pid, said in lines.items() if any(s.startswith("run logged (id ") for s in said))
    worker = next(pid for pid, said in lines.items() if any(s.startswith("worker 0 of 1 ") for s in said))
    assert driver != worker
    assert any("epoch 1" in said for said in lines[worker])
    shown = done.stdout + done.stderr
    assert "run logged (id " in shown
    assert re.search(rf"pid={worker}.*worker 0 of 1 ", shown), "Ray forwards the worker's lines"


def test_a_benchmark_prints_no_log_lines_and_its_log_file_has_those_of_the_tasks(folder: Path) -> None:
    config = {
        "name": "logged",
        "models": ["tiny"],
        "datasets": ["bcdata"],
        "protocols": ["default"],
        "baselines": [],
        "shards": str(folder / "shards"),
        "cache": str(folder / "cache"),
    }
    done = _his2lip(folder, config, "benchmark")
    lines = _lines(folder / "runs/benchmark/logged")
    scored = {pid for pid, said in lines.items() if any(s.startswith("scored: tiny on bcdata") for s in said)}
    received = {pid for pid, said in lines.items() if any(s.startswith("received tiny") for s in said)}
    assert len(scored) == len(received) == 1
    assert scored != received
    assert done.stderr == ""
    assert "scored: " not in done.stdout
