"""A bf16 training step on one GPU against open_clip's own training loop, and against the matrix rate.

python benchmarks/speed/gpu_step.py [--quick] [--compile] [--batch 1024] [--models ViT-B-32 ViT-B-16]

Ours is a step of the training loop itself (`training.loop`): uint8 images in ordinary memory, captions at
their own length, WISE, clipping, fused AdamW. Theirs is the unchanged `open_clip_train.train.train_one_epoch`
(amp_bf16, ClipLoss, AdamW) over float32 images in pinned memory and captions padded to 77 tokens. With
`--compile` both are compiled: ours by `model.compile`, theirs by `--torchcompile` with each of its strategies
"task" and "step", of which the faster counts. The batch is the largest of --batch, halved until both fit.

The installed open_clip is measured; put another one first in PYTHONPATH to measure that. Its version is in
the result. The share is the counted FLOPs of our step over the bf16 rate of one large matrix product on the
same GPU. `--quick` shows that the script runs: a small architecture, on the CPU if there is no GPU.
"""

from __future__ import annotations

import argparse
import gc
import inspect
import logging
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import open_clip
import torch
from _pairs import Program, arguments, gpu, in_turn, write
from frozen_step import OneBatch, one_batch
from open_clip_train.params import parse_args
from open_clip_train.train import train_one_epoch
from torch.utils.flop_counter import FlopCounterMode

from his2lip.config import validate
from his2lip.loss import WISELoss
from his2lip.training import TrainConfig
from his2lip.training.build import build_model
from his2lip.training.loop import _Run
from his2lip.training.optim import build_optimizer

LEAST_SPEEDUP, LEAST_SHARE = 1.2, 0.4
BY_STATE = "state" in inspect.signature(train_one_epoch).parameters  # open_clip 4


class Theirs:
    """open_clip's training loop over `steps` copies of one batch; `compiled`: eager, task or step."""

    def __init__(
        self, architecture: str, batch: int, sentences: list[str], steps: int, device: str, compiled: str
    ) -> None:
        self.model = open_clip.create_model(
            architecture, precision="amp_bf16", device=device, output_dict=True
        )
        words = ["--precision", "amp_bf16", "--batch-size", str(batch), "--skip-scheduler"]
        if compiled != "eager":
            words += ["--torchcompile"] + (["--torchcompile-strategy", compiled] if BY_STATE else [])
        self.args = parse_args(words)
        vars(self.args).update(
            device=device, rank=0, local_rank=0, world_size=1, distributed=False, distill=False, wandb=False
        )
        size = self.model.visual.image_size
        size = size if isinstance(size, tuple) else (size, size)
        images = _pinned(torch.randn(batch, 3, *size), device)
        tokens = _pinned(open_clip.get_tokenizer(architecture)(sentences), device)
        pair = {"image": images, "text": tokens} if BY_STATE else (images, tokens)
        self.data = {"train": _Repeated(pair, batch, steps)}
        # A step that is compiled as a whole needs the rate as a tensor, as open_clip's main program gives it.
        rate = torch.tensor(1e-5) if compiled == "step" else 1e-5
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=rate, betas=(0.9, 0.98), eps=1e-6)
        if not BY_STATE:
            self.model = torch.compile(self.model) if compiled != "eager" else self.model
            return
        from open_clip.task.clip_task import CLIPTask
        from open_clip_train.train import TrainState

        task = CLIPTask(self.model, device=torch.device(device))
        if compiled == "task":
            task.compile(target="task")
        self.state = TrainState(task=task, optimizer=self.optimizer)

    def run(self) -> None:
        """One epoch of `steps` steps."""
        if BY_STATE:
            train_one_epoch(self.state, self.data, self.args)
        else:
            loss = open_clip.ClipLoss()
            train_one_epoch(self.model, self.data, loss, 0, self.optimizer, None, None, None, self.args)


class Ours:
    """`steps` steps of the training loop on one batch."""

    def __init__(
        self, architecture: str, batch: int, tokens: int, steps: int, device: str, compiled: bool
    ) -> None:
        tree = {
            "data": {"shards": "-", "augment": False, "select": None, "batch_size": batch, "lanes": 1},
            "model": {"backbone": architecture, "precision": "bf16", "compile": compiled},
            "optim": {"steps": 1_000_000},
        }
        config = validate(TrainConfig, tree)
        place = torch.device(device)
        model, loss = build_model(config, place), WISELoss.from_config(config.loss)
        optimizer = build_optimizer(model, loss, config.optim)
        self.loop = _Run(config, model, loss, OneBatch(), optimizer, place, 0, 1, None, None, None)
        self.batch, self.steps = one_batch(model.preprocess.size[0], batch, tokens), steps

    def run(self) -> None:
        """`steps` whole steps."""
        for _ in range(self.steps):
            self.loop.train_step(self.batch)


def step_flops(architecture: str, batch: int, tokens: int, device: str) -> int:
    """Counted FLOPs of one of our steps with `batch` pairs: those of a small one, scaled, with its loss."""
    few = min(batch, 8)
    ours = Ours(architecture, few, tokens, 1, device, compiled=False)
    with FlopCounterMode(display=False) as counter:
        ours.run()
    # The products of the loss are (4 + 3 + 3) x 2 N^2 D; those of the towers grow with N.
    per_pair = 20 * ours.loop.model.dim
    towers = counter.get_total_flops() - per_pair * few**2
    return int(towers / few * batch + per_pair * batch**2)


class _Repeated:
    """The data interface of open_clip's loop: one batch, `num_batches` times."""

    def __init__(self, batch: Any, size: int, steps: int) -> None:
        self.batch = batch
        self.num_batches = steps
        self.num_samples = steps * size
        self.dataloader = self

    def set_epoch(self, epoch: int) -> None:
        """Does nothing: every epoch has the same batch."""

    def __iter__(self) -> Iterator[Any]:
        return iter([self.batch] * self.num_batches)


def matrix_rate(device: str, side: int) -> float:
    """bf16 FLOPs per second of one side x side matrix product, the best of ten."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        _wait(device)
        start = time.perf_counter()
        a @ b
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def programs(architecture: str, batch: int, setting: SimpleNamespace) -> list[Program]:
    """The loops that are compared, each of which has made a few steps with `batch` pairs."""
    device, steps = setting.device, setting.steps
    ours = Ours(architecture, batch, setting.tokens, steps, device, setting.compile)
    sides = [Program("his2lip", ours.run)]
    compiled = [s for s in ("task", "step") if s in setting.strategies] if BY_STATE else ["model"]
    strategies = compiled if setting.compile else ["eager"]
    for strategy in strategies:
        theirs = Theirs(architecture, batch, ours.batch.captions, steps, device, strategy)
        sides.append(Program(f"open_clip {strategy}", theirs.run))
    for side in sides:
        _empty(device)
        start = time.perf_counter()
        side.run()
        print(f"  {side.name}: ready after {time.perf_counter() - start:.1f} s", file=sys.stderr)
    return sides


def measure(architecture: str, setting: SimpleNamespace, rate: float) -> dict[str, Any]:
    """Runs the loops in turn: seconds per step, speed-up, FLOPs, and share of `rate` (FLOPs per second)."""
    batch = setting.batch
    while True:
        try:
            sides = programs(architecture, batch, setting)
            break
        except torch.OutOfMemoryError:
            batch //= 2
        _empty(setting.device)
    flops = step_flops(architecture, batch, setting.tokens, setting.device)
    found = in_turn(sides, repeats=setting.repeats, warmup=0)
    theirs = min((name for name in found if name != "his2lip"), key=lambda name: found[name]["median_s"])
    step_s = found["his2lip"]["median_s"] / setting.steps
    each = [a / b for a, b in zip(found[theirs]["seconds"], found["his2lip"]["seconds"], strict=True)]
    return {
        "batch": batch,
        "step_s": step_s,
        "images_s": batch / step_s,
        "step_flops": flops,
        "share_of_matrix_rate": flops / step_s / rate,
        "baseline": theirs,
        "speedup": found[theirs]["median_s"] / found["his2lip"]["median_s"],
        "speedup_spread": [min(each), max(each)],
        "programs": found,
    }


def _pinned(tensor: torch.Tensor, device: str) -> torch.Tensor:
    return tensor.pin_memory() if device.startswith("cuda") else tensor


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _empty(device: str) -> None:
    """Gives memory back that a loop which has ended, or does not fit, still holds."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, default=1024, help="images and captions per step, at most")
    parser.add_argument("--tokens", type=int, default=30, help="tokens per caption")
    parser.add_argument("--steps", type=int, default=20, help="steps per measured turn")
    parser.add_argument("--models", nargs="+", default=["ViT-B-32", "ViT-B-16"])
    parser.add_argument("--compile", action="store_true", help="compile both")
    parser.add_argument("--strategies", nargs="+", default=["task", "step"], help="of open_clip 4, compiled")


def main() -> None:
    """Measures each architecture on the GPU; with --quick, one small architecture."""
    args = arguments("gpu_step", "a bf16 training step against open_clip's own loop", _options)
    logging.getLogger().setLevel(logging.WARNING)
    device = gpu(args)
    torch.set_num_threads(args.threads)
    args.device = device
    if args.quick:
        args.batch, args.steps, args.repeats, args.models = 2, 1, 1, ["ViT-S-32-alt"]
    rate = matrix_rate(device, 512 if args.quick else 8192)
    models = {name: measure(name, args, rate) for name in args.models}
    kept = {}
    for name, found in models.items():
        kept[f"{name}: at least {LEAST_SPEEDUP}x"] = found["speedup"] >= LEAST_SPEEDUP
        kept[f"{name}: at least {LEAST_SHARE:.0%} of the matrix rate"] = (
            found["share_of_matrix_rate"] >= LEAST_SHARE
        )
    setting = {"device": device, "matrix_flops_s": rate, "tokens": args.tokens, "compiled": args.compile}
    write(args, setting | {"open_clip": open_clip.__version__, "models": models}, limits=kept)


if __name__ == "__main__":
    main()
