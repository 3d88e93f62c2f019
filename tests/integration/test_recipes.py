"""The sweeps of `tune/` on small shards: each file's own space, points and metrics, few trials of each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from mlflow_stores import new_store
from optuna.trial import TrialState
from training_data import write_small_shards

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

REPO = Path(__file__).parents[2]
TINY = "cross={model.backbone: [tiny], seed: [0, 1]}"
RECIPES = {
    "loss_weights": ["train.model.backbone=tiny", "trials=4"],  # its points
    "loss_and_optimizer": ["train.model.backbone=tiny"],
    "backbones": [TINY, "points=[{optim.lr: 2.0e-5}]"],
    "ablations": [TINY, "points=[{loss.terms: full}, {loss.terms: hard}]", "trials=4"],
}
TRIALS = {"loss_weights": 4, "ablations": 4}


def test_every_sweep_of_the_folder_is_here() -> None:
    assert {path.stem for path in (REPO / "tune").glob("*.yaml")} == {*RECIPES, "demo_sweep"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_sweep_of_the_folder_runs_to_its_end(name: str, tmp_path: Path) -> None:
    shards = write_small_shards(tmp_path / "shards", train=64, select=32)
    small = [f"train.data.shards={shards}", "train.data.batch_size=32", "train.optim.epochs=1", "trials=2"]
    small += [f"storage={tmp_path / 'runs'}", *RECIPES[name]]
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    env["MLFLOW_TRACKING_URI"] = new_store(tmp_path / "mlflow")
    command = [sys.executable, "-m", "his2lip", "tune", str(REPO / "tune" / f"{name}.yaml"), *small]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    (study,) = (tmp_path / "runs/tune").glob("*/study.db")
    trials = optuna.load_study(study_name=study.parent.name, storage=f"sqlite:///{study}").trials
    states = [trial.state for trial in trials if trial.state != TrialState.WAITING]
    assert len(states) == TRIALS.get(name, 2)
    assert TrialState.COMPLETE in states
    stopped = {TrialState.PRUNED} if name == "loss_weights" else set()  # the only one with ASHA
    assert set(states) <= {TrialState.COMPLETE, *stopped}
