"""Commands that are submitted with --address to a cluster of a head and three nodes end as on one machine."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from mlflow_stores import new_store
from ray_nodes import Nodes, ray_nodes
from training_data import write_small_shards

from his2lip.models.checkpoint import save_checkpoint
from his2lip.models.load import load_model
from his2lip.models.provenance import read_meta
from his2lip.synthetic.twins import twin_names, write_twin
from his2lip.tuning.study import rows

REPO = Path(__file__).resolve().parents[2]
POINTS = (0.25, 0.5, 0.75, 1.0)
FIGURES = ("model", "dataset", "protocol", "n", "accuracy", "macro_f1", "weights_sha256", "images_sha256")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data and the configurations of the three commands; `storage` is given on the command line."""
    folder = tmp_path_factory.mktemp("nodes")
    shards = write_small_shards(folder / "small", train=160, select=48)
    data = {"shards": shards, "batch_size": 32, "lanes": 4}
    train = {"data": data, "optim": {"lr": 1e-3, "epochs": 2}, "workers": {"threads": 1}}
    space = {"loss.tau": {"kind": "uniform", "low": 0.1, "high": 2.0}}
    points = [{"loss.tau": tau} for tau in POINTS]
    for seed in range(3):
        save_checkpoint(folder / f"checkpoint{seed}", load_model("tiny", seed=seed), meta={})
    for name in twin_names():
        write_twin(name, folder / "twins" / name, scale=0.01)
    trees = {
        "train": {**train, "name": "pair", "workers": {"num": 2, "threads": 1}},
        "tune": {
            "name": "four", "train": train, "space": space, "points": points, "trials": 4,
            "max_concurrent": 2, "scheduler": {"kind": "none"}, "split": "val",
        },
        "benchmark": {
            "name": "thirty", "models": [str(folder / f"checkpoint{seed}") for seed in range(3)],
            "datasets": twin_names(), "shards": str(folder / "twins"), "baselines": ["majority"],
        },
    }  # fmt: skip
    for name, tree in trees.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    new_store(folder / "mlflow")
    return folder


@pytest.fixture(scope="module")
def nodes(folder: Path) -> Iterator[Nodes]:
    with ray_nodes(3, MLFLOW_TRACKING_URI=f"sqlite:///{folder}/mlflow/mlflow.db") as nodes:
        yield nodes


def run_both(folder: Path, nodes: Nodes, command: str) -> tuple[Path, Path]:
    """The storages of the command as a job on the cluster, and of the same command on this machine."""
    storages = []
    for name, address, env in (
        ("cluster", [f"--address={nodes.dashboard}"], nodes.env),
        ("machine", [], {**nodes.env, "HOME": os.environ["HOME"]}),
    ):
        storage = folder / name
        arguments = [command, str(folder / f"{command}.yaml"), f"storage={storage}", *address]
        if command == "benchmark":
            arguments.insert(2, f"cache={storage}/cache")
        done = subprocess.run(
            [sys.executable, "-m", "his2lip", *arguments],
            cwd=REPO, env=env, capture_output=True, text=True, timeout=1200, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{name}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        storages.append(storage)
    return storages[0], storages[1]


def test_training_on_two_workers(folder: Path, nodes: Nodes) -> None:
    places = run_both(folder, nodes, "train")
    found = [
        [read_meta(place / "train/pair" / name)["tensor_digest"] for name in ("best", "last")]
        for place in places
    ]
    assert found[0] == found[1]


def test_a_sweep_of_four_trials(folder: Path, nodes: Nodes) -> None:
    def trials(place: Path) -> dict[Any, Any]:
        url = f"sqlite:///{place}/tune/four/study.db"
        table = rows(optuna.load_study(study_name="four", storage=url))
        assert [row.state for row in table] == ["finished"] * 4
        return {row.params["loss.tau"]: (row.value, row.reports) for row in table}

    cluster, machine = map(trials, run_both(folder, nodes, "tune"))
    assert set(cluster) == set(POINTS)
    assert cluster == machine


def test_a_grid_of_three_checkpoints_on_ten_datasets(folder: Path, nodes: Nodes) -> None:
    def board(place: Path) -> list[list[str]]:
        with (place / "benchmark/thirty/leaderboard.csv").open(encoding="utf-8", newline="") as source:
            return [[row[name] for name in FIGURES] for row in csv.DictReader(source)]

    cluster, machine = map(board, run_both(folder, nodes, "benchmark"))
    assert len({(row[0], row[1]) for row in cluster if "checkpoint" in row[0]}) == 30
    assert cluster == machine
