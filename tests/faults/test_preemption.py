"""A machine that is taken away after a notice, as spot machines are, on a real Ray of several nodes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from reliability_page import Record
from training_data import write_small_shards

from his2lip.models.provenance import read_meta

pytestmark = pytest.mark.faults

# Starts a head without CPUs and two nodes, trains on one of them, and drains that one in mid-epoch.
_DRIVER = """
import json, os, sys, time
import ray
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2
from his2lip.config import load
from his2lip.training import TrainConfig, train

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 200 << 20})
nodes = [cluster.add_node(num_cpus=1, object_store_memory=200 << 20) for _ in range(2)]
os.environ["RAY_ADDRESS"] = cluster.address
ray.init(logging_level="ERROR")
notes, reports = [], []

def drain():
    free = ray._private.state.available_resources_per_node()
    (busy,) = [node for node in nodes if free[node.node_id].get("CPU", 0) < 1]
    deadline = int((time.time() + 10) * 1000)
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    GcsClient(cluster.address).drain_node(busy.node_id, reason, "the spot market", deadline)

def on_report(report):
    reports.append(report.step)
    if len(reports) == 3 and sys.argv[2] == "drained":
        drain()

config = load(TrainConfig, sys.argv[1], [f"name={sys.argv[2]}"])
result = train(config, on_report=on_report, on_note=notes.append)
print(json.dumps({"notes": notes, "steps": result.steps}))
ray.shutdown()
cluster.shutdown()
"""


def test_a_drained_machine_costs_no_failure_and_at_most_the_steps_since_its_notice(
    tmp_path: Path, record: Record
) -> None:
    write_small_shards(tmp_path / "shards", train=512, select=32)
    config = {
        "data": {"shards": str(tmp_path / "shards"), "batch_size": 8, "lanes": 4},
        "optim": {"epochs": 6},
        "log_every": 1,
        "checkpoint": {"every_minutes": None},
        "workers": {"max_failures": 0},
        "storage": str(tmp_path / "runs"),
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "GLOO_"))}
    environment["RAY_USAGE_STATS_ENABLED"] = "0"
    said = {}
    for name in ("drained", "whole"):
        command = [sys.executable, "-c", _DRIVER, str(tmp_path / "config.yaml"), name]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500, check=False
        )
        assert done.returncode == 0, done.stderr[-4000:]
        said[name] = json.loads(done.stdout.splitlines()[-1])
    assert any("taken away" in note for note in said["drained"]["notes"]), said
    starts = re.findall(r"from step (\d+)", (tmp_path / "runs/train/drained/his2lip.log").read_text())
    saved = re.search(r"a checkpoint of step (\d+) is saved", " ".join(said["drained"]["notes"]))
    assert saved is not None, said
    assert [int(step) >= int(saved[1]) for step in starts] == [False, True], (starts, saved)
    ends = [read_meta(tmp_path / "runs/train" / name / "last") for name in ("drained", "whole")]
    assert ends[0]["tensor_digest"] == ends[1]["tensor_digest"]
    how = "the node of the worker is drained with a deadline of 10 s; `max_failures` is 0"
    outcome = "done; a checkpoint within the notice, and the weights of the undisturbed run"
    record("a machine is taken away after a notice", how, 1, outcome)
