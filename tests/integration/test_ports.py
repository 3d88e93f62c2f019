"""The addresses on which the processes of a training run with two workers listen."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import yaml
from listeners import listeners
from training_data import write_small_shards


def test_no_process_of_a_training_run_listens_on_an_external_address(tmp_path: Path) -> None:
    shards = write_small_shards(tmp_path / "shards", train=64, select=48)
    config = {
        "name": "two",
        "data": {"shards": shards, "batch_size": 32, "lanes": 4},
        "optim": {"epochs": 1},
        "workers": {"num": 2},
        "storage": str(tmp_path / "runs"),
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "GLOO_"))}
    environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{tmp_path}/mlflow.db"
    command = [sys.executable, "-m", "his2lip", "train", "config.yaml"]
    seen: set[tuple[str, str]] = set()
    with (
        (tmp_path / "output").open("w") as output,
        subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=output, stderr=subprocess.STDOUT
        ) as train,
    ):
        while train.poll() is None:
            seen |= listeners(train.pid)
            time.sleep(0.1)
    assert train.returncode == 0, (tmp_path / "output").read_text()
    assert {"gcs_server", "raylet"} <= {name for name, _ in seen}, seen
    assert any("Train" in name for name, _ in seen), "the workers of Ray were seen too"
    assert {address for _, address in seen} == {"127.0.0.1"}, seen
