"""Images of a split as inputs of an encoder: read, checked, and decoded by threads a batch ahead."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from his2lip.data.images import decode
from his2lip.data.shards import ShardSet
from his2lip.errors import DatasetError
from his2lip.evaluation.encoders import ImageEncoder, ModelEncoder

Image = tuple[int, dict]  # the row of an image, and its patch_id, mpp, sha256 and image
_COPIED = 64  # images of which Python holds copies at a time
_GROUP = 8  # images that a thread decodes without asking for more, which takes as long as a small one
_FIX = "prepare the dataset again"


@dataclass(frozen=True)
class Inputs:
    """A batch of images that are ready to be encoded.

    rows    of the images in their split
    names   their patch ids
    counts  how many inputs each of them has, at least one
    crops   the inputs of all of them (sum of counts, …)
    """

    rows: list[int]
    names: list[str]
    counts: list[int]
    crops: np.ndarray


def read_images(shards: ShardSet, split: str, rows: Sequence[int]) -> Iterator[Image]:
    """The images at ascending rows of a split; only row groups with one of them are read, one at a time."""
    wanted = np.asarray(rows, dtype=np.int64)
    groups = shards.row_groups(split)
    ends = np.cumsum([group.rows for group in groups])
    for number in np.unique(np.searchsorted(ends, wanted, side="right")).tolist():
        first = int(ends[number]) - groups[number].rows
        begin, end = np.searchsorted(wanted, [first, int(ends[number])])
        columns = ["patch_id", "mpp", "sha256", "image"]
        table = shards.read_once(groups[number], columns).take(pa.array(wanted[begin:end] - first))
        places = wanted[begin:end].tolist()
        for start in range(0, len(places), _COPIED):
            part = table.slice(start, _COPIED).to_pylist()
            yield from zip(places[start : start + _COPIED], part, strict=True)


def decoded(
    encoder: ImageEncoder, images: Iterable[Image], *, batch_size: int, threads: int
) -> Iterator[Inputs]:
    """Batches of `batch_size` images; the next one is decoded while the caller uses one.

    Raises DatasetError for an image that cannot be decoded or whose bytes are not those of its sha256.
    """
    with ThreadPoolExecutor(threads) as pool:
        begun: deque[_Begun] = deque()
        try:
            for chunk in chunks(images, batch_size):
                begun.append(_begin(pool, encoder, chunk, threads))
                if len(begun) > 1:
                    yield begun.popleft().finish()
            while begun:
                yield begun.popleft().finish()
        finally:
            for future in (f for batch in begun for f in batch.parts):
                future.cancel()


def chunks(items: Iterable, size: int) -> Iterator[list]:
    """Lists of at most `size` items."""
    chunk: list = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


@dataclass(frozen=True)
class _Begun:
    """A batch whose parts are being decoded; `slots` is where each image is one input, else None."""

    images: list[Image]
    slots: np.ndarray | None
    parts: list[Future[list[np.ndarray]]]

    def finish(self) -> Inputs:
        crops = [own for part in self.parts for own in part.result()]
        return Inputs(
            rows=[row for row, _ in self.images],
            names=[patch["patch_id"] for _, patch in self.images],
            counts=[len(own) for own in crops],
            crops=np.concatenate(crops) if self.slots is None else self.slots,
        )


def _begin(pool: ThreadPoolExecutor, encoder: ImageEncoder, images: list[Image], threads: int) -> _Begun:
    slots = encoder.slots(len(images)) if isinstance(encoder, ModelEncoder) else None
    length = max(1, min(_GROUP, len(images) // (2 * threads)))
    parts = []
    for start in range(0, len(images), length):
        own = [patch for _, patch in images[start : start + length]]
        places = None if slots is None else slots[start : start + length]
        parts.append(pool.submit(_decode_part, encoder, own, places))
    return _Begun(images, slots, parts)


def _decode_part(
    encoder: ImageEncoder, patches: Sequence[dict], places: np.ndarray | None
) -> list[np.ndarray]:
    """The inputs of each image; in its place where there are such."""
    into = [None] * len(patches) if places is None else list(places)
    return [_decode(encoder, patch, place) for patch, place in zip(patches, into, strict=True)]


def _decode(encoder: ImageEncoder, patch: dict, place: np.ndarray | None) -> np.ndarray:
    """The inputs of one image. Raises DatasetError where it is damaged, or not that of its sha256."""
    data = patch["image"]
    if hashlib.sha256(data).hexdigest() != patch["sha256"]:
        what = "the bytes of this image are not those of its sha256"
        raise DatasetError(what, where=patch["patch_id"], key="sha256", fix=_FIX)
    try:
        if place is None:
            return encoder.crops(decode(data), patch["mpp"])
        assert isinstance(encoder, ModelEncoder)
        encoder.fill(data, place)
        return place[None]
    except DatasetError as error:
        raise DatasetError(error.what, where=patch["patch_id"], key=error.key, fix=_FIX) from None
