"""What `growth.py` measures: each part is work that grows with one number."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from his2lip.data.cards import Card

SIDE = 16  # px
GROUP_BYTES = 1_400 << 10  # of images in a row group: about 1,200 rows, as 24 MB of patches of 224 px have
PART_BYTES = 11 * GROUP_BYTES
CASE = 100  # patches
WIDTH = 512
BATCH = 256
IMAGES = 24  # of a dataset of the grid
MODELS = 10
LEAST_BYTES = 4 << 20  # memory below which a power says nothing

Work = Callable[[], "dict[str, float] | None"]  # may return figures; `seconds` replaces the measured time


@dataclass(frozen=True)
class Part:
    """What grows with one number.

    axis   the option that gives the sizes
    what   in words, for the page
    make   (folder, size, options) -> the work, set up; what `make` does is not measured
    first  size of the work that is done before, unmeasured
    power  of the size, by which the time grows by definition
    clock  which time counts: of the processors, or that passes
    """

    axis: str
    what: str
    make: Callable[[Path, int, Any], Work]
    first: int
    power: float = 1.0
    clock: Literal["cpu_s", "seconds"] = "cpu_s"

    @property
    def time(self) -> str:
        """The key of the time that counts."""
        return f"median_{self.clock}"


def _images(count: int) -> Iterator[tuple[str, str, str, bytes]]:
    """Split, tissue type, path and bytes of different JPEG files of noise; a tenth of the cases in `test`."""
    from his2lip.data.images import encode_jpeg

    draws = np.random.default_rng(0)
    for number in range(count):
        case = number // CASE
        split, tissue = "test" if case % 10 == 9 else "train", ("Stroma", "Tumor")[case % 2]
        pixels = draws.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        yield split, tissue, f"{split}/{tissue}/case-{case:05}/{number:07}.jpg", encode_jpeg(pixels)


def _files(place: Path, count: int) -> Path:
    """The images as files."""
    root, unfinished = place / "files", place / "files.tmp"
    if not root.exists():
        shutil.rmtree(unfinished, ignore_errors=True)
        for _, _, path, image in _images(count):
            (unfinished / path).parent.mkdir(parents=True, exist_ok=True)
            (unfinished / path).write_bytes(image)
        unfinished.rename(root)
    return root


def _card() -> Card:
    from his2lip.data.cards import Card

    return Card.model_validate(
        {
            "name": "growth",
            "reader": "folder",
            "options": {"means": "tissue", "biomarker": "Ki67", "case_pattern": r"case-(\d+)"},
            "splits": {
                "train": {"role": "train", "groups": "case"},
                "test": {"role": "report", "groups": "case"},
            },
            "stain": "DAB",
            "mpp": 0.5,
        }
    )


def prepare(place: Path, size: int, _: Any) -> Work:
    """`his2lip data prepare` of a folder, in one process."""
    from his2lip.data.prepare import prepare as run

    root, out = _files(place, size), place / "shards"
    shutil.rmtree(out, ignore_errors=True)

    def work() -> None:
        report = run(_card(), root, out, ray=False, part_bytes=PART_BYTES, row_group_bytes=GROUP_BYTES)
        assert report.read == size, report.quarantined[:1]

    return work


def _shards(place: Path, size: int) -> Path:
    """The shards of `size` patches: those of `prepare`, else the same patches written without files."""
    from his2lip.data.shards import INFO, Patch, ShardWriter

    out = place / "shards"
    if (out / INFO).exists():
        return out
    with ShardWriter(out, card=_card(), row_group_bytes=GROUP_BYTES, part_bytes=PART_BYTES) as writer:
        for split, tissue, path, image in _images(size):
            patch = Patch(
                patch_id=f"growth/{path}",
                image=image,
                dataset="growth",
                split=split,
                case_id=path.split("/")[2],
                tissue=tissue,
                biomarker="Ki67",
                label=tissue,
                stain="DAB",
                width=SIDE,
                height=SIDE,
                mpp=0.5,
            )
            writer.add(patch)
    return out


def check(place: Path, size: int, _: Any) -> Work:
    """`his2lip data check` of the shards."""
    from his2lip.data.check import check as run

    shards = _shards(place, size)

    def work() -> None:
        report = run(shards)
        assert report.info.rows == size
        assert not report.problems, report.problems[:1]

    return work


def start(place: Path, size: int, _: Any) -> Work:
    """The first batch of a training stream, on a Ray that runs."""
    from his2lip.data.captions import CaptionBank
    from his2lip.data.stream import StreamOptions, TrainStream
    from his2lip.runtime import start_ray

    shards, bank = _shards(place, size), CaptionBank.templates()
    start_ray(num_cpus=2, object_store_memory=100 << 20)
    options = StreamOptions(
        seed=0,
        batch_size=BATCH,
        image_size=SIDE,
        lanes=8,
        window=2,
        head_bytes=16 * GROUP_BYTES,  # the rest comes through Ray
    )

    def work() -> dict[str, float]:
        begun = time.perf_counter()
        with TrainStream(str(shards), "train", bank, options) as stream:
            batches = stream.batches(0, stream.steps_per_epoch)
            next(batches)
            return {"seconds": time.perf_counter() - begun}  # before the stream is closed

    return work


class BlindTower:
    """An encoder that computes nothing, so that reading, decoding, hashing and the cache are measured."""

    width = WIDTH
    key = "blind"

    def crop_key(self, mpp: float | None) -> str:
        return ""

    def crops(self, pixels: np.ndarray, mpp: float | None) -> np.ndarray:
        return pixels[None]

    def encode(self, crops: np.ndarray) -> np.ndarray:
        return np.ones((len(crops), WIDTH), dtype=np.float32)


def _embed(place: Path, size: int, *, computed: bool) -> Work:
    from his2lip.data.shards import open_shards
    from his2lip.evaluation import EmbeddingCache
    from his2lip.runtime import usable_cpus

    shards = _shards(place, size)

    def work() -> dict[str, float]:
        cache = EmbeddingCache(str(place / "cache"))
        done = cache.embed(BlindTower(), open_shards(shards), "train", threads=usable_cpus())
        assert (cache.counts.images > 0) == computed
        assert done.features.shape == (len(done.table), WIDTH)
        return {"images": float(len(done.table)), "table_bytes": float(done.table.nbytes)}

    return work


def embed(place: Path, size: int, _: Any) -> Work:
    """The features of a split, with an empty cache."""
    shutil.rmtree(place / "cache", ignore_errors=True)
    return _embed(place, size, computed=True)


def look_up(place: Path, size: int, _: Any) -> Work:
    """The features of a split that the cache has."""
    if not (place / "cache").exists():
        _embed(place, size, computed=True)()
    return _embed(place, size, computed=False)


def order(_: Path, size: int, __: Any) -> Work:
    """The plan of a training run over `size` patches, what to read in an epoch, and its order."""
    from his2lip.data.stream.order import Plan

    def work() -> dict[str, float]:
        begun = time.perf_counter()
        plan = Plan([1_000] * (size // 1_000), seed=0, batch_size=256, lanes=8, window=4)
        built = time.perf_counter()
        plan.reads(0, plan.steps_per_epoch, range(8))
        read = time.perf_counter()
        plan.epoch(0)
        return {"build_s": built - begun, "reads_s": read - built, "epoch_s": time.perf_counter() - read}

    return work


def wise(_: Path, size: int, args: Any) -> Work:
    """The WISE loss and its gradients for a batch of `size` pairs."""
    import torch
    from wise_loss import draw, gradients, linear

    torch.set_num_threads(args.threads)
    batch = draw(size, args.d, "cpu")

    def work() -> None:
        gradients(linear(), batch)

    return work


def grid(place: Path, size: int, _: Any) -> Work:
    """A benchmark of `size` grid cells, with its leaderboard, on a Ray that runs."""
    from many_cells import planned, run

    from his2lip.runtime import start_ray

    start_ray()
    models = min(MODELS, size)
    assert size % models == 0, "with more than 10 grid cells a multiple of 10"
    shutil.rmtree(place / "grid", ignore_errors=True)
    config = planned(place / "grid", models, size // models, IMAGES)
    return lambda: run(config)


def sweep(place: Path, size: int, _: Any) -> Work:
    """A sweep of `size` trials, on a Ray that runs."""
    from sweep_overhead import sweep as run

    from his2lip.runtime import start_ray

    start_ray(num_cpus=2)
    shutil.rmtree(place / "sweep", ignore_errors=True)

    def work() -> dict[str, float]:
        run(place / "sweep", size)
        return {"study_bytes": float(next(place.rglob("study.db")).stat().st_size)}

    return work


PARTS = {
    "prepare": Part("patches", "prepare a folder", prepare, 200),
    "check": Part("patches", "check the shards", check, 200),
    "start": Part("patches", "first batch of an epoch", start, 1_000, clock="seconds"),
    "embed": Part("patches", "embed, empty cache", embed, 200),
    "look-up": Part("patches", "look features up", look_up, 200),
    "order": Part("patches", "order of an epoch", order, 10_000),
    "wise": Part("pairs", "WISE, forward and backward", wise, 256, power=2.0),
    "grid": Part("cells", "benchmark", grid, 2),
    "sweep": Part("trials", "sweep", sweep, 4),
}
AXES = {
    "patches": [1_000, 10_000, 100_000, 1_000_000],
    "pairs": [4_096, 8_192, 16_384, 32_768, 65_536],
    "cells": [10, 100, 500, 2_000],
    "trials": [10, 50, 100, 500],
}
QUICK = {"patches": [1_000, 2_000], "pairs": [256, 512], "cells": [2, 4], "trials": [4, 6]}
LABELS = {"patches": "patches", "pairs": "pairs of a batch (N)", "cells": "grid cells", "trials": "trials"}
