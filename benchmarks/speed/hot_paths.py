"""The hot paths that `bench_check.py` counts: each a function of how often it repeats its work.

python benchmarks/speed/hot_paths.py NAME REPEATS     # only runs the work, for valgrind to count

Paths of `COUNTED` import no torch. Those of `OPERATIONS` return what torch itself counts.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from functools import partial

import numpy as np

ROWS, GROUP = 50_000, 500


def order(repeats: int) -> None:
    """The order of an epoch of 50,000 patches (`data.stream.order`)."""
    from his2lip.data.stream.order import Plan

    plan = Plan([GROUP] * (ROWS // GROUP), seed=0, batch_size=64, lanes=8, window=4)
    for epoch in range(repeats):
        plan.epoch(epoch)


def reads(repeats: int) -> None:
    """What to read in an epoch."""
    from his2lip.data.stream.order import Plan

    for seed in range(repeats):
        plan = Plan([10] * (ROWS // 10), seed=seed, batch_size=64, lanes=8, window=4)
        plan.reads(0, plan.steps_per_epoch, range(4))


def decode(repeats: int) -> None:
    """A JPEG of 224 px as it is, and a PNG of 128 px that is resized (`data.stream.decode`)."""
    from his2lip.data.images import encode_jpeg, encode_png
    from his2lip.data.stream.decode import decode_into

    pixels = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    large = pixels.repeat(8, axis=0).repeat(8, axis=1)
    jpeg, png = memoryview(encode_jpeg(large, quality=90)), memoryview(encode_png(large[:128, :128]))
    out = np.empty((224, 224, 3), dtype=np.uint8)
    for _ in range(repeats):
        decode_into(jpeg, out)
        decode_into(png, out)


def staining(repeats: int) -> None:
    """The stained area of 16 patches of 128 px (`data.images.stained_area`)."""
    from his2lip.data.images import stained_shares

    pixels = np.random.default_rng(0).integers(0, 256, (16, 128, 128, 3), dtype=np.uint8)
    for _ in range(repeats):
        stained_shares(pixels)


def features(repeats: int) -> None:
    """The look-up of 2,000 cached features, in one part (`evaluation.feature_store`)."""
    import pyarrow as pa

    from his2lip.evaluation.feature_store import FeatureStore

    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    keys = [f"{i:064x}" for i in range(2_000)]
    values = np.random.default_rng(0).standard_normal((len(keys), 1, 64), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(folder, "images/k", width=64)
        store.append(dict(zip(keys, values, strict=True)))
        for _ in range(repeats):
            assert len(store.read(keys)) == len(keys)


def jackknife(repeats: int) -> None:
    """The confusion matrices of 5,000 units without each of 100 cases (`evaluation.statistics`)."""
    from his2lip.evaluation.statistics import leave_one_out_counts

    draws = np.random.default_rng(0)
    labels, predicted = draws.integers(0, 7, (2, 5_000))
    clusters = draws.integers(0, 100, 5_000)
    for _ in range(repeats):
        assert len(list(leave_one_out_counts(labels, predicted, clusters, 7)))


def train_step_flops() -> float:
    """FLOPs of a training step, as a share of those of the released arithmetic."""
    from train_step import Step, flops

    from his2lip.models.load import load_model

    model = load_model("ViT-S-32-alt")
    ours, released = (flops(Step(model, 2, 30, twice=twice).backward) for twice in (False, True))
    return ours / released


def frozen_step_flops(frozen: str) -> float:
    """FLOPs of a training step with a frozen tower, as a share of the full step."""
    from frozen_step import step
    from train_step import flops

    counted = []
    for name in (frozen, "none"):
        run, batch = step("ViT-S-32-alt", name, 2, 30)
        run.train_step(batch)  # a frozen tower encodes here
        counted.append(flops(partial(run.train_step, batch)))
    return counted[0] / counted[1]


def loss_operations() -> float:
    """Calls of torch's kernels in the WISE loss of 512 pairs, forward and backward."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from his2lip.loss import WISELoss

    calls = 0

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal calls
            calls += 1
            return func(*args, **(kwargs or {}))

    image, text = (torch.randn(512, 64, requires_grad=True) for _ in range(2))
    labels = torch.arange(512) % 7, torch.arange(512) % 12
    with Counting():
        WISELoss(tile=128)(image, text, *labels, torch.tensor(4.0)).total.backward()
    return float(calls)


# name -> (the work, repeats of the shorter and the longer run)
COUNTED: dict[str, tuple[Callable[[int], None], int, int]] = {
    "order": (order, 1, 3),
    "reads": (reads, 1, 3),
    "decode": (decode, 1, 5),
    "staining": (staining, 1, 5),
    "features": (features, 1, 5),
    "jackknife": (jackknife, 1, 9),
}
OPERATIONS: dict[str, Callable[[], float]] = {
    "FLOPs of a step, of the released step": train_step_flops,
    "FLOPs of a step with freeze=text, of the full step": lambda: frozen_step_flops("text"),
    "FLOPs of a step with freeze=image, of the full step": lambda: frozen_step_flops("image"),
    "kernels of the WISE loss": loss_operations,
}

if __name__ == "__main__":
    COUNTED[sys.argv[1]][0](int(sys.argv[2]))
