"""Small shards of real JPEG and PNG bytes for the tests of the stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from his2lip.data.captions.bank import CaptionBank
from his2lip.data.cards.card import Card
from his2lip.data.images.codec import encode_jpeg, encode_png
from his2lip.data.shards.schema import Patch
from his2lip.data.shards.writer import ShardWriter
from his2lip.data.stream.batch import Batch
from his2lip.data.stream.train_stream import StreamOptions, TrainStream
from his2lip.taxonomy import MIHIC_BIOMARKERS, TISSUES


def write_patches(
    uri: Path,
    *,
    patches: int,
    sizes: Sequence[int] = (32,),
    formats: Sequence[str] = ("jpeg",),
    role: str = "train",
    labelled: bool = True,
    rare_every: int | None = None,
    broken: int | None = None,
    row_group_bytes: int = 24 << 10,
) -> str:
    """Writes a dataset of one split `train` in row groups of about a dozen patches; returns its URI."""
    rng = np.random.default_rng(0)
    card = Card.model_validate({"name": "set", "reader": "folder", "splits": {"train": {"role": role}}})
    with ShardWriter(uri, card=card, row_group_bytes=row_group_bytes, part_bytes=4 * row_group_bytes) as out:
        for number in range(patches):
            size = sizes[number % len(sizes)]
            data = _image(rng, size, formats[number % len(formats)])
            rare = rare_every is not None and number % rare_every == 0
            tissue = "Necrosis" if rare else TISSUES[1 if rare_every else number % len(TISSUES)]
            biomarker = MIHIC_BIOMARKERS[0 if rare_every else number % len(MIHIC_BIOMARKERS)]
            out.add(
                Patch(
                    patch_id=f"set/{number:05d}",
                    image=data[: len(data) // 2] if number == broken else data,
                    dataset="set",
                    split="train",
                    width=size,
                    height=size,
                    tissue=tissue if labelled else None,
                    biomarker=biomarker if labelled else None,
                )
            )
    return str(uri)


def _image(rng: np.random.Generator, size: int, kind: str) -> bytes:
    """Coarse random squares as JPEG or PNG, or `noise`, which no encoder makes small."""
    coarse = rng.integers(0, 256, (size // 4, size // 4, 3), dtype=np.uint8)
    if kind == "noise":
        return encode_png(rng.integers(0, 256, (size, size, 3), dtype=np.uint8))
    pixels = np.kron(coarse, np.ones((4, 4, 1), dtype=np.uint8))
    return encode_png(pixels) if kind == "png" else encode_jpeg(pixels)


OPTIONS: dict[str, Any] = {
    "seed": 5,
    "batch_size": 16,
    "image_size": 32,
    "lanes": 8,
    "window": 2,
    "loader": "local",
    "decode_threads": 2,
}


class Steps(TrainStream):
    """A stream as an iterable of the batches of steps [start_step, stop_step); None: of the first epoch."""

    start_step: int = 0
    stop_step: int | None = None

    def __iter__(self) -> Iterator[Batch]:
        return self.batches(self.start_step, self.stop_step or self.steps_per_epoch)


def stream(
    uri: str,
    *,
    bank: CaptionBank | None = None,
    rank: int = 0,
    world: int = 1,
    start_step: int = 0,
    stop_step: int | None = None,
    **options: Any,
) -> Steps:
    """A small stream of global batches of 16 at 32 px, in-process unless `loader` says otherwise."""
    stream_options = StreamOptions(**(OPTIONS | options))
    made = Steps(uri, "train", bank or CaptionBank.templates(), stream_options, rank=rank, world=world)
    made.start_step, made.stop_step = start_step, stop_step
    return made
