"""A training run and a benchmark as a user starts them: their log files, and the addresses they listen on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from listeners import listeners
from training_data import write_small_shards

from his2lip.models.provenance import read_meta
from his2lip.synthetic.twins import write_twin

EPOCHS = 60  # of the run that is stopped; an epoch has two steps
LINE = re.compile(r"^\S+ \S+ (?:DEBUG|INFO|WARNING|ERROR) \S+:(\d+) (his2lip\S*): (.*)$")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    write_small_shards(folder / "training", train=64, select=48)
    write_twin("bcdata", folder / "shards/bcdata", scale=0.05)
    return folder


@dataclass(frozen=True)
class Finished:
    """A finished command: its output, and (process, address) of every port that its processes listened on."""

    stdout: str
    stderr: str
    listening: set[tuple[str, str]]


def _his2lip(folder: Path, config: dict[str, object], *arguments: str) -> Finished:
    """The command in a process of its own, as a user runs it, with its store in the folder."""
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"storage": str(folder / "runs")}))
    environment = {
        k: v for k, v in os.environ.items() if k != "HIS2LIP_LOG" and not k.startswith(("RAY_", "GLOO_"))
    }
    environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    command = [sys.executable, "-m", "his2lip", *arguments, "config.yaml"]
    seen: set[tuple[str, str]] = set()
    with (
        (folder / "stdout").open("w") as stdout,
        (folder / "stderr").open("w") as stderr,
        subprocess.Popen(command, cwd=folder, env=environment, stdout=stdout, stderr=stderr) as process,
    ):
        while process.poll() is None:
            seen |= listeners(process.pid)
            time.sleep(0.25)
    done = Finished((folder / "stdout").read_text(), (folder / "stderr").read_text(), seen)
    assert process.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def training(folder: Path) -> Finished:
    """A training run with two workers."""
    config = {
        "name": "logged",
        "data": {"shards": str(folder / "training"), "batch_size": 32, "lanes": 4},
        "optim": {"epochs": 1},
        "workers": {"num": 2},
    }
    return _his2lip(folder, config, "--verbose", "train")


def _lines(folder: Path) -> dict[int, list[str]]:
    """The messages in the log of a run's folder, by the process that wrote them."""
    found: dict[int, list[str]] = {}
    for line in (folder / "his2lip.log").read_text().splitlines():
        match = LINE.match(line)
        if match:
            found.setdefault(int(match[1]), []).append(match[3])
    return found


def test_a_training_run_has_a_log_of_driver_and_workers_and_verbose_shows_both(
    training: Finished, folder: Path
) -> None:
    lines = _lines(folder / "runs/train/logged")
    driver = next(pid for pid, said in lines.items() if any(s.startswith("run logged (id ") for s in said))
    first, second = (
        next(pid for pid, said in lines.items() if any(s.startswith(f"worker {rank} of 2 ") for s in said))
        for rank in (0, 1)
    )
    assert len({driver, first, second}) == 3
    assert any("epoch 1" in said for said in lines[first])
    shown = training.stdout + training.stderr
    assert "run logged (id " in shown
    assert re.search(rf"pid={first}.*worker 0 of 2 ", shown), "Ray forwards the worker's lines"


def test_no_process_of_a_training_run_listens_on_an_external_address(training: Finished) -> None:
    names = {name for name, _ in training.listening}
    assert {"gcs_server", "raylet"} <= names
    assert any("Train" in name for name in names), "the workers of Ray were seen too"
    assert {address for _, address in training.listening} == {"127.0.0.1"}, training.listening


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
        "data": {"shards": str(folder / "training"), "batch_size": 4, "lanes": 4},
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
    assert 0 < saved <= step < 16 * EPOCHS, "the workers may do a few more steps before they end"
    _his2lip(folder, config, "train")
    assert f"from step {step}" in log.read_text()
    _his2lip(folder, config | {"name": "whole"}, "train")
    ends = [read_meta(folder / "runs/train" / name / "last") for name in ("ended", "whole")]
    assert ends[0]["tensor_digest"] == ends[1]["tensor_digest"]


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
