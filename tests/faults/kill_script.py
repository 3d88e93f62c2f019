"""Works on a Ray cluster, kills processes or nodes of it at seeded moments, and tells how the work ended.

Usage: python kill_script.py train|grid CONFIG COUNT, or sweep STORAGE COUNT.
It prints a line of JSON for each disturbed piece of work. A run of `train` has four faults in turn.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import ray
from mlflow_content import models_of, points, runs_named
from moments import moments
from ray.cluster_utils import Cluster

from his2lip.cli.train import run_train
from his2lip.config import load
from his2lip.errors import His2lipError
from his2lip.evaluation import BenchmarkConfig, run_grid
from his2lip.models import is_checkpoint, read_meta
from his2lip.tracking import Tracker
from his2lip.training import TrainConfig
from his2lip.tuning import SweepConfig, run_sweep

KILLED = ["worker", "controller", "driver", "node"]
SMALL = {"object_store_memory": 100 << 20}
QUICK = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 4,
    "prestart_worker_first_driver": False,
}
SWEEP_DRIVER = """
import sys, ray
from his2lip.tuning import run_sweep
from kill_script import objective, sweep_config
ray.init(logging_level="ERROR", log_to_driver=False)
tell = lambda row: print("ended", row.number, flush=True)
run_sweep(sweep_config(sys.argv[1], sys.argv[2]), objective, on_trial=tell)
"""
DRIVER = """
import sys
from his2lip.cli.train import run_train
from his2lip.config import load
from his2lip.training import TrainConfig
run_train(load(TrainConfig, sys.argv[1], [f"name={sys.argv[2]}"]))
"""


def log_of(run: Path) -> str:
    log = run / "his2lip.log"
    return log.read_text() if log.exists() else ""


def logged_pid(run: Path) -> int:
    """The process that the run's log last named as worker 0."""
    lines = [line for line in log_of(run).splitlines() if " worker 0 of 1 " in line]
    assert lines, f"no worker has started in {run}"
    return int(lines[-1].split()[3].split(":")[1])


def own_processes(title: str) -> list[int]:
    """The processes of this cluster whose title starts so; there may be other clusters on this machine."""
    mark, found = f"FAULTS={os.environ['FAULTS']}".encode(), []
    for place in Path("/proc").iterdir():
        try:
            if (place / "comm").read_text().startswith(title) and mark in (place / "environ").read_bytes():
                found.append(int(place.name))
        except OSError:  # it has ended
            continue
    return found


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


class Moment:
    """When to inject: at a step of the run, or while it writes the next checkpoint from there."""

    def __init__(self, run: Path, *, step: int, in_checkpoint: bool, later: float) -> None:
        self.run, self.step, self.in_checkpoint, self.later = run, step, in_checkpoint, later

    @property
    def kind(self) -> str:
        return "checkpoint" if self.in_checkpoint else "epoch"

    def wait(self, over: threading.Event, since: int) -> bool:
        """Returns at the moment; False where the run ended before. Log lines before `since` do not count."""
        reached, left = False, set[str]()
        while not over.is_set():
            if not reached:
                left = unfinished(self.run)
                reached = f"worker 0: step {self.step}," in log_of(self.run)[since:]
            if reached and (not self.in_checkpoint or unfinished(self.run) - left):
                time.sleep(self.later)
                return True
            time.sleep(0.002)
        return False


def unfinished(run: Path) -> set[str]:
    """The folders of checkpoints that are being written, or were when a process was killed."""
    names = os.listdir(run) if run.is_dir() else []
    return {name for name in names if name.endswith(".tmp") and name[0] == "."}


class Nodes:
    """A head without CPUs, and two nodes of one CPU each, which this process has joined."""

    def __init__(self) -> None:
        head = {"num_cpus": 0, "_system_config": QUICK, **SMALL}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [self.cluster.add_node(num_cpus=1, **SMALL) for _ in range(2)]
        os.environ["RAY_ADDRESS"] = self.cluster.address
        ray.init(logging_level="ERROR", log_to_driver=False)

    def lose(self, run: Path, *, busy: bool) -> None:
        """Ends the node of the worker, or the other one, where blocks are read."""
        raylet = parent(logged_pid(run))
        of_worker = [
            node
            for node in self.nodes
            if any(one.process.pid == raylet for one in node.all_processes["raylet"])
        ]
        found = (i for i, node in enumerate(self.nodes) if (node in of_worker) == busy)
        self.lose_node(next(found, 0))

    def lose_node(self, place: int) -> None:
        """Ends a node as kill -9 does; another one joins at once."""
        lost = self.nodes.pop(place)
        self.cluster.remove_node(lost, allow_graceful=False)
        self.cluster._shutdown_at_exit = False  # it sets signal handlers, which only the main thread may do
        self.nodes.append(self.cluster.add_node(num_cpus=1, **SMALL))  # as an autoscaler does

    def close(self) -> None:
        ray.shutdown()
        self.cluster.shutdown()


def run_until_it_ends(config: TrainConfig) -> tuple[int, str]:
    """The same command until it ends: how often it was given, and what it said."""
    said = io.StringIO()
    for calls in itertools.count(1):
        try:
            with redirect_stdout(said):
                run_train(config)
        except His2lipError as error:
            print(error, file=said)
            if calls > 3:
                raise
        else:
            return calls, said.getvalue()
    raise AssertionError


def end_of(config: TrainConfig) -> list[Any]:
    """What equal runs have in common: both checkpoints, the history, and what MLflow has."""
    run = Path(config.storage) / "train" / config.name
    history = json.loads((run / "run.json").read_text())["result"]["history"]
    tracker = Tracker.open()
    (found,) = runs_named(tracker, config.name)
    weights = [read_meta(run / name)["tensor_digest"] for name in ("best", "last")]
    return [
        weights,
        [(epoch["step"], epoch["select/loss"]) for epoch in history],
        points(tracker, found),
        found.info.status,
        models_of(tracker, found, weights[0]),
    ]


def disturbed(
    nodes: Nodes, faults: Sequence[tuple[str, Moment]], config_file: str, config: TrainConfig
) -> dict[str, Any]:
    """Runs the command with the faults, each at its moment, and the same command until it ends."""
    run, over, began = Path(config.storage) / "train" / config.name, threading.Event(), time.monotonic()
    hits: list[tuple[int, int]] = []  # of each fault: length of the log, step of the last checkpoint

    def inject() -> None:
        for number, (what, moment) in enumerate(faults):
            if not moment.wait(over, hits[-1][0] if hits else 0):
                return
            place = len(log_of(run))
            if what == "node":
                nodes.lose(run, busy=(number + len(config.name)) % 2 == 0)
            elif what == "driver":
                driver.kill()
            else:
                pids = [logged_pid(run)] if what == "worker" else own_processes("ray::TrainContr")
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
            hits.append((place, read_meta(run / "last")["step"] if is_checkpoint(run / "last") else 0))

    thread = threading.Thread(target=inject)
    thread.start()
    if any(what == "driver" for what, _ in faults):
        command = [sys.executable, "-c", DRIVER, config_file, config.name]
        driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        driver.wait()
    calls, said = run_until_it_ends(config)
    over.set()
    thread.join()
    log, ends = log_of(run), [place for place, _ in hits[1:]] + [None]
    return {
        "faults": [[what, moment.kind] for what, moment in faults[: len(hits)]],
        "hit": len(hits) == len(faults),
        "resumed": all(
            int(step) >= saved
            for (place, saved), end in zip(hits, ends, strict=False)
            for step in re.findall(r"from step (\d+)", log[place:end])
        ),
        "calls": calls,
        "said": said,
        "seconds": round(time.monotonic() - began, 1),
    }


def training(nodes: Nodes, what: str, config_file: str, count: int) -> Iterator[dict[str, Any]]:
    config = load(TrainConfig, config_file)
    whole = config.model_copy(update={"name": "whole"})
    with redirect_stdout(io.StringIO()):
        steps = run_train(whole).steps
    wanted = end_of(whole)
    for number, part in enumerate(moments(what, count)):
        own = config.model_copy(update={"name": f"{what}{number}"})
        faults = in_turn(Path(config.storage) / "train" / own.name, number, part, steps)
        line = disturbed(nodes, faults, config_file, own)
        yield line | {"differs": differences(end_of(own), wanted)}


def in_turn(run: Path, number: int, part: float, steps: int) -> list[tuple[str, Moment]]:
    """All four faults in one run, one in each quarter of it; in the next run each is of the other kind."""
    order = random.Random(run.name).sample(KILLED, len(KILLED))
    quarter = steps // len(order)
    return [
        (
            what,
            Moment(
                run,
                step=1 + place * quarter + int(part * (quarter - 2)),
                in_checkpoint=(KILLED.index(what) + number) % 2 == 1,
                later=part * 0.05,
            ),
        )
        for place, what in enumerate(order)
    ]


def grid(nodes: Nodes, what: str, config_file: str, count: int) -> Iterator[dict[str, Any]]:
    """Loses a node at a seeded part of the time that the undisturbed benchmark takes."""
    config = load(BenchmarkConfig, config_file)

    def end_of_grid(name: str) -> list[Any]:
        own = config.model_copy(update={"name": name, "cache": f"{config.cache}/{name}"})
        result = run_grid(own)
        parts = Path(own.cache).glob("images/*/*.parquet")
        keys = [f"{p.parent.name} {key}" for p in parts for key in pq.read_table(p)["key"].to_pylist()]
        rows = [(cell.model, cell.dataset, cell.confusion, cell.macro_f1) for cell in result.cells]
        return [rows, [failure.reason for failure in result.failed], sorted(keys)]

    end_of_grid("first")  # starts the processes of the nodes
    began = time.monotonic()
    wanted = end_of_grid("whole")
    took = time.monotonic() - began
    for number, part in enumerate(moments(what, count)):
        thread = threading.Timer(part * took, lambda number=number: nodes.lose_node(number % 2))
        began = time.monotonic()
        thread.start()
        found = end_of_grid(f"grid{number}")
        seconds = time.monotonic() - began
        hit = thread.finished.is_set()
        thread.join()
        yield {"hit": hit, "seconds": round(seconds, 1), "differs": differences(found, wanted)}


def sweep(nodes: Nodes, what: str, config_file: str, count: int) -> Iterator[dict[str, Any]]:
    """Kills the driver of a sweep once a seeded number of its trials has ended, and resumes it here."""

    def end_of_sweep(name: str) -> list[Any]:
        result = run_sweep(sweep_config(config_file, name), objective)
        ended = [row for row in result.trials if row.state == "finished"]
        return [
            sorted((row.params["x"], row.value, row.reports) for row in ended),
            result.best and result.best.value,
        ]

    wanted = end_of_sweep("whole")
    for number, part in enumerate(moments(what, count)):
        began, name = time.monotonic(), f"sweep{number}"
        command = [sys.executable, "-c", SWEEP_DRIVER, config_file, name]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as driver:
            assert driver.stdout is not None
            for _ in range(int(part * len(wanted[0]))):
                driver.stdout.readline()
            time.sleep(part * 0.3)
            hit = driver.poll() is None
            driver.kill()
        found = end_of_sweep(name)
        seconds = round(time.monotonic() - began, 1)
        yield {"hit": hit, "seconds": seconds, "differs": differences(found, wanted)}


def sweep_config(storage: str, name: str) -> SweepConfig:
    tree = {
        "name": name, "train": {}, "metric": "value", "storage": storage, "trials": 6, "max_concurrent": 1,
        "space": {"x": {"kind": "uniform", "low": 0.0, "high": 2.0}}, "points": [{"x": 0.25}, {"x": 0.5}],
        "scheduler": {"kind": "none"},
    }  # fmt: skip
    return SweepConfig.model_validate(tree)


def objective(params: dict[str, Any], report: Any) -> None:
    report({"value": params["x"]})
    time.sleep(0.2)  # of work
    report({"value": params["x"] + 1.0})


def differences(found: list[Any], wanted: list[Any]) -> list[str]:
    return [f"{a} is not {b}" for a, b in zip(found, wanted, strict=True) if a != b]


WORK = {"train": training, "grid": grid, "sweep": sweep}


def main(what: str, config_file: str, count: int) -> None:
    nodes = Nodes()
    for line in WORK[what](nodes, what, config_file, count):
        print(json.dumps(line), flush=True)
    nodes.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
