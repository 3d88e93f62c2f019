"""A training run that is stopped and a benchmark, as a user starts them: their output and their log files."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from mlflow_stores import new_store
from test_grid import write_dataset
from training_data import write_small_shards

from his2lip.models.provenance import read_meta

EPOCHS = 60  # of the run that is stopped; an epoch has two steps
LINE = re.compile(r"^\S+ \S+ (?:DEBUG|INFO|WARNING|ERROR) \S+:(\d+) (his2lip\S*): (.*)$")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, real_ihc: np.ndarray) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    write_small_shards(folder / "training", train=64, select=48)
    write_dataset(folder / "shards", "gamma", real_ihc)
    new_store(folder)
    return folder


def _his2lip(folder: Path, config: dict[str, object], *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as a user runs it, with its store in the folder."""
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"storage": str(folder / "runs")}))
    environment = {
        k: v for k, v in os.environ.items() if k != "HIS2LIP_LOG" and not k.startswith(("RAY_", "GLOO_"))
    }
    environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    command = [sys.executable, "-m", "his2lip", *arguments, "config.yaml"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
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


@contextmanager
def training_process(folder: Path, config: dict[str, Any]) -> Iterator[subprocess.Popen[str]]:
    """A `his2lip train` of its own, which signals reach."""
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "his2lip", "train", "config.yaml"]
    # A background job of a shell without job control ignores the signal, and so do its children.
    program = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "os.execv(sys.argv[1], sys.argv[1:])\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "GLOO_"))}
    environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    with subprocess.Popen(
        [sys.executable, "-c", program, *command], cwd=folder, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as train:  # fmt: skip
        yield train


@pytest.mark.slow
def test_ctrl_c_twice_ends_a_training_run_without_a_traceback_and_it_is_resumed(folder: Path) -> None:
    config = {
        "name": "stopped",
        "data": {"shards": str(folder / "training"), "batch_size": 32, "lanes": 4},
        "optim": {"epochs": EPOCHS},
        "storage": str(folder / "runs"),
    }
    last = folder / "runs/train/stopped/last"
    with training_process(folder, config) as train:
        while train.poll() is None and not last.exists():
            time.sleep(0.1)
        train.send_signal(signal.SIGINT)
        time.sleep(0.3)
        train.send_signal(signal.SIGINT)
        shown, _ = train.communicate(timeout=120)
    assert train.returncode == 130, shown
    assert "Traceback" not in shown
    step = read_meta(last)["step"]
    assert 0 < step < 2 * EPOCHS
    _his2lip(folder, config, "train")
    assert read_meta(last)["step"] == 2 * EPOCHS
    starts = re.findall(r"worker 0 of 1 on \S+: from step (\d+)", (last.parent / "his2lip.log").read_text())
    assert int(starts[-1]) >= step


@pytest.mark.slow
def test_sigterm_saves_a_checkpoint_within_an_epoch_and_the_run_is_resumed_from_it(folder: Path) -> None:
    config = {
        "name": "ended",
        "data": {"shards": str(folder / "training"), "batch_size": 16, "lanes": 4},
        "optim": {"epochs": EPOCHS},
        "storage": str(folder / "runs"),
    }
    log = folder / "runs/train/ended/his2lip.log"
    with training_process(folder, config) as train:
        while train.poll() is None and not (log.exists() and "worker 0: step" in log.read_text()):
            time.sleep(0.05)
        train.send_signal(signal.SIGTERM)
        shown, _ = train.communicate(timeout=120)
    assert train.returncode == 130, shown
    assert "Traceback" not in shown
    saved = int(re.findall(r"a checkpoint of step (\d+) is saved", shown)[-1])
    step = read_meta(log.parent / "last")["step"]
    assert 0 < saved <= step < 4 * EPOCHS, "the workers may do a few more steps before they end"
    _his2lip(folder, config, "train")
    assert f"from step {step}" in log.read_text()
    _his2lip(folder, config | {"name": "whole"}, "train")
    ends = [read_meta(folder / "runs/train" / name / "last") for name in ("ended", "whole")]
    assert ends[0]["tensor_digest"] == ends[1]["tensor_digest"]


@pytest.mark.slow  # test_jobs.py has the same of a benchmark that runs as a job
def test_a_benchmark_prints_nothing_else_and_its_log_file_has_the_lines_of_the_tasks(folder: Path) -> None:
    config = {
        "name": "logged",
        "models": ["tiny"],
        "datasets": ["gamma"],
        "protocols": ["default"],
        "baselines": [],
        "shards": str(folder / "shards"),
        "cache": str(folder / "cache"),
    }
    done = _his2lip(folder, config, "benchmark")
    lines = _lines(folder / "runs/benchmark/logged")
    scored = {pid for pid, said in lines.items() if any(s.startswith("scored: tiny on gamma") for s in said)}
    received = {pid for pid, said in lines.items() if any(s.startswith("received tiny") for s in said)}
    assert len(scored) == len(received) == 1
    assert scored != received
    assert done.stderr == ""
    assert "scored: " not in done.stdout
