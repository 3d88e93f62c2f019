"""The grid as a Ray job on a cluster of `ray start --head` on loopback: the same command and results."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from test_grid import PROTOCOLS, write_dataset
from test_jobs import Cluster, cluster  # noqa: F401  (a fixture is used by its name)


@pytest.fixture
def benchmark(tmp_path: Path, real_ihc: np.ndarray) -> Path:
    """A configuration file of one tiny model on three prepared datasets."""
    for name in PROTOCOLS:
        write_dataset(tmp_path / "shards", name, real_ihc)
    tree = {
        "name": "job",
        "models": ["tiny"],
        "datasets": list(PROTOCOLS),
        "shards": str(tmp_path / "shards"),
        "baselines": ["majority"],
        "cache": str(tmp_path / "cache"),
        "storage": str(tmp_path / "runs"),
    }
    path = tmp_path / "benchmark.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def test_a_grid_as_a_job_writes_the_leaderboard_and_returns_its_exit_code(
    cluster: Cluster,  # noqa: F811
    benchmark: Path,
    tmp_path: Path,
) -> None:
    store = f"MLFLOW_TRACKING_URI=sqlite:///{tmp_path}/mlflow.db"
    command = ["env", store, sys.executable, "-m", "his2lip", "benchmark", str(benchmark)]
    first = cluster.submit(*command)
    assert first.returncode == 0, first.stdout + first.stderr
    board = tmp_path / "runs/benchmark/job/leaderboard.csv"
    with board.open(encoding="utf-8", newline="") as source:
        rows = list(csv.DictReader(source))
    assert [(row["model"], row["dataset"]) for row in rows] == [
        (model, dataset) for model in ("tiny", "baseline:majority") for dataset in PROTOCOLS
    ]
    before = board.read_bytes()
    (tmp_path / "shards/beta/dataset.json").write_text("{}", encoding="utf-8")
    second = cluster.submit(*command)
    assert second.returncode == 1, "a grid cell failed"
    assert "failed: tiny on beta" in second.stdout
    kept = [line for line in before.splitlines() if b",beta," not in line]
    assert board.read_bytes().splitlines() == kept, "the rows of all finished grid cells are kept"
