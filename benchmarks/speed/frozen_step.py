"""A training step of ViT-B/32 on the CPU with one tower frozen, against the full step.

python benchmarks/speed/frozen_step.py [--quick] [--batch 32] [--tokens 30]

Both are steps of the training loop itself (`training.loop`), on random images with captions of one length.
The frozen tower has seen them before the clock starts, as from the second epoch on. The ceiling is the ratio
of the counted FLOPs of the two steps; the update of the weights, which has none, is in the measured time.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from _pairs import Program, arguments, compare, whole, write
from train_step import captions, flops

from his2lip.config import validate
from his2lip.data.stream import Batch
from his2lip.loss import WISELoss
from his2lip.training import TrainConfig
from his2lip.training.build import build_model
from his2lip.training.loop import _Run
from his2lip.training.optim import build_optimizer

LEAST_SPEEDUP = {"text": 1.8}
FROZEN = ("none", "text", "image")
CPU = torch.device("cpu")


class OneBatch:
    """A source that the step does not read; the batch is given to it directly."""

    steps_per_epoch = 1_000

    def train(self, start: int, stop: int) -> Iterable[Batch]:
        return ()

    def select(self) -> Iterable[Batch]:
        return ()


def one_batch(size: int, batch: int, tokens: int) -> Batch:
    """A batch of random images, uint8, with captions of `tokens` tokens."""
    draws = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (batch, size, size, 3), generator=draws, dtype=torch.uint8)
    return Batch(
        images=images.permute(0, 3, 1, 2),
        captions=captions(batch, tokens),
        tissue=torch.arange(batch) % 7,
        biomarker=torch.arange(batch) % 12,
        finding=torch.full((batch,), -1),
        patch_ids=[str(i) for i in range(batch)],
        step=1,
    )


def step(architecture: str, frozen: str, batch: int, tokens: int) -> tuple[_Run, Batch]:
    """The loop's run with a tower frozen (or "none"), and its batch."""
    tree = {
        "data": {"shards": "-", "augment": False, "select": None},
        "model": {"backbone": architecture},
        "finetune": {"freeze": frozen},
        "optim": {"steps": 1_000},
    }
    config = validate(TrainConfig, tree)
    model, loss = build_model(config, CPU), WISELoss.from_config(config.loss)
    optimizer = build_optimizer(model, loss, config.optim, layer_decay=1.0)
    run = _Run(config, model, loss, OneBatch(), optimizer, CPU, 0, 1, None, None, None)
    return run, one_batch(model.preprocess.size[0], batch, tokens)


def measure(architecture: str, frozen: str, batch: int, tokens: int, repeats: int) -> dict[str, Any]:
    """Runs the full step and that with a frozen tower in turn: times, speed-up, ceiling, losses."""
    sides = {name: step(architecture, name, batch, tokens) for name in ("none", frozen)}
    # The same weights and batch: the losses of the first steps have to be equal.
    losses = {name: run.train_step(one).total.item() for name, (run, one) in sides.items()}
    counted = {name: flops(partial(run.train_step, one)) for name, (run, one) in sides.items()}
    programs = [Program(name, partial(whole, run.train_step, one)) for name, (run, one) in sides.items()]
    pair = compare(*programs, repeats=repeats)
    ceiling = counted["none"] / counted[frozen]
    return {
        "first_losses": losses,
        "loss_difference": abs(losses["none"] - losses[frozen]),
        "flops": counted,
        "ceiling": ceiling,
        "share_of_ceiling": pair["speedup"] / ceiling,
        **pair,
    }


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, default=32, help="images and captions per step")
    parser.add_argument("--tokens", type=int, default=30, help="caption length")


def main() -> None:
    """Measures both frozen towers and writes the figures with their limits."""
    args = arguments("frozen_step", "a training step with a frozen tower against the full step", _options)
    torch.set_num_threads(args.threads)
    architecture, batch, repeats = "ViT-B-32", args.batch, max(args.repeats, 5)
    if args.quick:
        architecture, batch, repeats = "ViT-S-32-alt", 4, 1
    found = {frozen: measure(architecture, frozen, batch, args.tokens, repeats) for frozen in FROZEN[1:]}
    kept = {f"freeze={k}: at least {v}x": found[k]["speedup"] >= v for k, v in LEAST_SPEEDUP.items()}
    kept |= {f"freeze={k}: equal losses": v["loss_difference"] < 1e-4 for k, v in found.items()}
    setting = {"architecture": architecture, "batch": batch, "tokens": args.tokens}
    write(args, {**setting, "by_frozen_tower": found}, limits=kept)


if __name__ == "__main__":
    main()
