"""A bf16 training step on one GPU against open_clip's own training loop, and against the matrix rate.

python benchmarks/speed/gpu_step.py [--quick] [--batch 1024] [--tokens 30] [--models ViT-B-32 ViT-B-16]

The baseline is the unchanged `open_clip_train.train.train_one_epoch` (amp_bf16, ClipLoss, captions padded to
77 tokens) over batches in pinned memory. Our step is WISE over as many images and the same captions at their
own length. The share is the counted FLOPs of our step over the bf16 rate of one large matrix product
on the same GPU. `--quick` shows that the script runs: a small architecture, on the CPU if there is no GPU.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import open_clip
import torch
from _pairs import Program, arguments, compare, write
from open_clip_train.params import parse_args
from open_clip_train.train import train_one_epoch
from torch.utils.flop_counter import FlopCounterMode
from train_step import captions

from his2lip.loss.wise import WISELoss
from his2lip.models.encoder import DualEncoder
from his2lip.models.load import load_model

LEAST_SPEEDUP, LEAST_SHARE = 1.2, 0.4


class Theirs:
    """open_clip's training loop over `steps` copies of one batch."""

    def __init__(self, architecture: str, batch: int, sentences: list[str], steps: int, device: str) -> None:
        self.model = open_clip.create_model(
            architecture, precision="amp_bf16", device=device, output_dict=True
        )
        self.args = parse_args(["--precision", "amp_bf16", "--batch-size", str(batch), "--skip-scheduler"])
        vars(self.args).update(
            device=device, rank=0, local_rank=0, world_size=1, distributed=False, distill=False, wandb=False
        )
        size = self.model.visual.image_size
        size = size if isinstance(size, tuple) else (size, size)
        images = _pinned(torch.randn(batch, 3, *size), device)
        tokens = _pinned(open_clip.get_tokenizer(architecture)(sentences), device)
        self.data = {"train": _Repeated((images, tokens), steps)}
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, betas=(0.9, 0.98), eps=1e-6)

    def run(self) -> None:
        """One epoch of `steps` steps."""
        loss = open_clip.ClipLoss()
        train_one_epoch(self.model, self.data, loss, 0, self.optimizer, None, None, None, self.args)


class Ours:
    """Our step, `steps` times over one batch: uint8 images, unpadded captions, WISE, fused AdamW."""

    def __init__(
        self, architecture: str, sentences: list[str], steps: int, device: str, *, compiled: bool
    ) -> None:
        self.model: DualEncoder = load_model(architecture, device=device).train()
        self.forward = torch.compile(self.model) if compiled else self.model
        batch, size = len(sentences), self.model.preprocess.size
        self.images = _pinned(torch.randint(256, (batch, 3, *size), dtype=torch.uint8), device)
        self.tokens = _pinned(self.model.tokenize(sentences), device)
        self.labels = (torch.arange(batch) % 7).to(device), (torch.arange(batch) % 12).to(device)
        self.loss = WISELoss()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)
        self.steps, self.device = steps, device

    def flops(self) -> int:
        """Counted FLOPs of one step's forward and backward pass."""
        with FlopCounterMode(display=False) as counter:
            self._backward(self.model)
        return int(counter.get_total_flops())

    def _backward(self, model: Callable[..., Any]) -> None:
        images = self.model.preprocess.normalize(self.images.to(self.device, non_blocking=True))
        tokens = self.tokens.to(self.device, non_blocking=True)
        with torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16):
            features = model(images, tokens)
        self.loss(*features, *self.labels, self.model.logit_scale).total.backward()

    def run(self) -> None:
        """`steps` whole steps."""
        for _ in range(self.steps):
            self.optimizer.zero_grad(set_to_none=True)
            self._backward(self.forward)
            self.optimizer.step()


class _Repeated:
    """The data interface of open_clip's loop: one batch, `num_batches` times."""

    def __init__(self, batch: tuple[torch.Tensor, torch.Tensor], steps: int) -> None:
        self.batch = batch
        self.num_batches = steps
        self.num_samples = steps * len(batch[0])
        self.dataloader = self

    def set_epoch(self, epoch: int) -> None:
        """Does nothing: every epoch has the same batch."""

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
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


def measure(architecture: str, setting: SimpleNamespace, rate: float) -> dict[str, Any]:
    """Runs both loops in turn: seconds per step, speed-up, FLOPs, and share of `rate` (FLOPs per second)."""
    sentences = captions(setting.batch, setting.tokens)
    theirs = Theirs(architecture, setting.batch, sentences, setting.steps, setting.device)
    ours = Ours(architecture, sentences, setting.steps, setting.device, compiled=setting.compile)
    flops = ours.flops()
    pair = compare(Program("open_clip", theirs.run), Program("his2lip", ours.run), repeats=setting.repeats)
    step_s = pair["programs"]["his2lip"]["median_s"] / setting.steps
    return {
        "step_s": step_s,
        "images_s": setting.batch / step_s,
        "step_flops": flops,
        "share_of_matrix_rate": flops / step_s / rate,
        **pair,
    }


def _pinned(tensor: torch.Tensor, device: str) -> torch.Tensor:
    return tensor.pin_memory() if device.startswith("cuda") else tensor


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, default=1024, help="images and captions per step")
    parser.add_argument("--tokens", type=int, default=30, help="tokens per caption")
    parser.add_argument("--steps", type=int, default=20, help="steps per measured turn")
    parser.add_argument("--models", nargs="+", default=["ViT-B-32", "ViT-B-16"])
    parser.add_argument("--compile", action="store_true", help="torch.compile our model")


def main() -> None:
    """Measures each architecture on the GPU; with --quick, one small architecture."""
    args = arguments("gpu_step", "a bf16 training step against open_clip's own loop", _options)
    logging.getLogger().setLevel(logging.WARNING)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not args.quick:
        raise SystemExit("no GPU was found; use --quick to run a small check on the CPU")
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
    result = {"device": device, "matrix_flops_s": rate, "batch": args.batch, "tokens": args.tokens}
    write(args, result | {"models": models}, limits=kept)


if __name__ == "__main__":
    main()
