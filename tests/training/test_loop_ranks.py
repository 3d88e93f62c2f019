"""The loop on two gloo ranks: the parameter of the loss is equal on both, and equal to that on one rank."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from fork_server import other_ranks
from training_data import write_small_shards

from his2lip.config import validate
from his2lip.loss import WISELoss
from his2lip.models.architecture import TINY_PREPROCESS
from his2lip.models.load import load_model
from his2lip.training.config import TrainConfig
from his2lip.training.loop import fit
from his2lip.training.run_inputs import open_data
from his2lip.training.source import StreamSource


def own_scale(shards: str, rank: int = 0, world: int = 1) -> float:
    """The scale of the released hard loss after three steps."""
    tree = {
        "data": {"shards": shards, "batch_size": 16, "lanes": 4, "loader": "local", "select": None},
        "loss": {"variant": "released", "terms": "hard"},
        "optim": {"lr": 1e-2, "steps": 3, "warmup": 0},
    }
    config, _, bank = open_data(validate(TrainConfig, tree))
    model, loss = load_model("tiny", seed=0), WISELoss.from_config(config.loss)
    source = StreamSource(config, bank, preprocess=TINY_PREPROCESS, rank=rank, world=world)
    fit(config, model, loss, source, report=lambda progress: None, rank=rank, world=world)
    assert loss.own_scale is not None
    return loss.own_scale.item()


def on_rank(rank: int, shards: str, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    Path(folder, f"{rank}.json").write_text(json.dumps(own_scale(shards, rank, 2)))
    torch.distributed.destroy_process_group()


def test_scale_that_the_loss_learns_is_the_same_on_two_ranks_as_on_one(tmp_path: Path) -> None:
    shards = write_small_shards(tmp_path / "shards", train=64, select=16)
    with other_ranks(on_rank, shards, str(tmp_path)):
        on_rank(0, shards, str(tmp_path))
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second != 1.0
    assert abs(first - own_scale(shards)) < 1e-6
