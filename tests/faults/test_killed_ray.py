"""Work on a real Ray of a head and two nodes that loses processes and nodes ends as the undisturbed work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow_stores import new_store
from moments import MANY
from reliability_page import Record
from training_data import write_small_shards

from his2lip.models.checkpoint import save_checkpoint
from his2lip.models.load import load_model

SCRIPT = Path(__file__).with_name("kill_script.py")
WHAT = {
    "worker": "kill -9 of a train worker",
    "controller": "kill -9 of the Train controller",
    "driver": "kill -9 of the driver",
    "node": "loss of a node that holds object-store blocks",
}
_MOST_S = 300.0  # seconds after which one run and its repetition count as hung, also beside other work


def ends(folder: Path, what: str, argument: Path, count: int) -> list[dict[str, Any]]:
    """How the work ended at each of the moments. HIS2LIP_MOMENTS is another number of them."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "GLOO_", "NCCL_", "MLFLOW_"))}
    env |= {"RAY_USAGE_STATS_ENABLED": "0", "FAULTS": str(folder)}
    env["MLFLOW_TRACKING_URI"] = new_store(folder / "mlflow")
    env["PYTHONPATH"] = os.pathsep.join(map(str, (SCRIPT.parents[2], SCRIPT.parents[1], SCRIPT.parent)))
    count = int(os.environ.get("HIS2LIP_MOMENTS", count))
    command = [sys.executable, str(SCRIPT), what, str(argument), str(count)]
    with (folder / "said").open("w") as said:
        done = subprocess.run(
            command, env=env, stdout=subprocess.PIPE, stderr=said, text=True, timeout=_MOST_S * (1 + count),
            check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + (folder / "said").read_text()[-4000:]
    (folder / "ends").write_text(done.stdout)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]  # Ray prints, too
    assert len(found) == count
    assert not [end for end in found if end["differs"]]
    assert any(end["hit"] for end in found), found
    return found


def longest(found: list[dict[str, Any]]) -> str:
    return f"longest {max(end['seconds'] for end in found):.0f} s"


def small_run(folder: Path) -> Path:
    """The configuration file of a run of 24 steps that writes a checkpoint at every second one."""
    tree = {
        "name": "any",
        "data": {"shards": write_small_shards(folder / "shards", train=128, select=32)},
        "optim": {"lr": 1e-3, "epochs": 3},
        "checkpoint": {"every_steps": 2, "select_by": "loss"},
        "log_every": 1,
        "workers": {"threads": 1},
        "storage": str(folder / "runs"),
    }
    tree["data"] |= {"batch_size": 16, "lanes": 4}
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    return folder / "config.yaml"


@MANY
@pytest.mark.timeout(3000)
def test_a_run_that_loses_worker_controller_driver_and_node_ends_as_the_undisturbed_one(
    tmp_path: Path, count: int, record: Record
) -> None:
    """Each run has all four faults, one after another; a fault is in mid-epoch in every second run."""
    found = ends(tmp_path, "train", small_run(tmp_path), count)
    assert not [end for end in found if not end["resumed"] or "Traceback" in end["said"]]
    hits = Counter((what, moment) for end in found for what, moment in end["faults"])
    assert set(hits) == {(what, moment) for what in WHAT for moment in ("epoch", "checkpoint")}, found
    for what, fault in WHAT.items():
        epoch, checkpoint = hits[what, "epoch"], hits[what, "checkpoint"]
        how = (
            f"{epoch} in mid-epoch, {checkpoint} in mid-checkpoint, on three Ray nodes; all four in each run"
        )
        outcome = "weights, history, and points and models in MLflow of the undisturbed run; "
        record(fault, how, epoch + checkpoint, outcome + longest(found))


@MANY
@pytest.mark.timeout(3000)
def test_a_benchmark_that_loses_a_node_ends_as_the_undisturbed_one(
    tmp_path: Path, count: int, record: Record
) -> None:
    save_checkpoint(tmp_path / "best", load_model("tiny", seed=1), meta={})
    tree = {
        "name": "any", "models": ["tiny", str(tmp_path / "best")], "role": "select", "batch_size": 4,
        "datasets": {"mihic": write_small_shards(tmp_path / "shards", train=8, select=400)},
        "baselines": ["majority"], "cache": str(tmp_path / "cache"), "storage": str(tmp_path / "runs"),
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    found = ends(tmp_path, "grid", tmp_path / "config.yaml", count)
    hits = sum(end["hit"] for end in found)
    how = "one of two nodes is lost at a seeded time, and another joins"
    record("a node lost in the grid", how, hits, f"the same board, each image stored once; {longest(found)}")


@MANY
@pytest.mark.timeout(3000)
def test_a_sweep_whose_driver_is_killed_ends_as_the_undisturbed_one(
    tmp_path: Path, count: int, record: Record
) -> None:
    found = ends(tmp_path, "sweep", tmp_path / "runs", count)
    hits = sum(end["hit"] for end in found)
    how = "kill -9 of the driver after a seeded number of trials, and the same sweep again; one at a time"
    record("a sweep stopped and resumed", how, hits, f"the same trials, each once; {longest(found)}")
