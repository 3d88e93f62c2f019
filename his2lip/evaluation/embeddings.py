"""Embeddings of images and sentences: each (encoder, image) pair is computed once and then cached."""

from __future__ import annotations

import hashlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from his2lip.data.images import decode
from his2lip.data.shards import ShardSet
from his2lip.errors import ModelError
from his2lip.evaluation.decoding import Inputs, chunks, decoded, read_images
from his2lip.evaluation.encoders import Crops, ImageEncoder, SentenceEncoder, begin, is_ahead
from his2lip.evaluation.feature_store import FeatureStore

ProgressCallback = Callable[[int, int], None]  # images done, images to do
EncodeRows = Callable[..., Iterator[tuple[int, np.ndarray]]]  # with the parameters of `encode_rows`

_BATCH = 64  # crops in one batch of a tower
_PART_IMAGES = 2048  # images in one part of the cache, which is what an interruption can lose


@dataclass
class Counts:
    """What was computed since the cache was opened, and the damaged parts of the cache with the reasons."""

    images: int = 0
    crops: int = 0
    sentences: int = 0
    damaged: list[str] = field(default_factory=list)
    seconds: float = 0.0  # in which images were embedded
    bytes: int = 0  # of their features

    def add(self, other: Counts) -> None:
        self.images += other.images
        self.crops += other.crops
        self.sentences += other.sentences
        self.damaged += other.damaged
        self.seconds += other.seconds
        self.bytes += other.bytes


@dataclass(frozen=True)
class Embedded:
    """Rows of a split with their features.

    table     metadata, one row per image (all columns of a shard except the image)
    features  float32 (M, D), raw; there are more than rows where a view cuts an image into tiles
    row       int64 (M,), the row of `table` that each feature belongs to
    """

    table: pa.Table
    features: np.ndarray
    row: np.ndarray


class EmbeddingCache:
    """Features by encoder and image, under a folder or URI; `counts` tells what had to be computed.

    Each encoder has its own folder, named by its key. Features of other weights, or of another preprocessing,
    view, decoder or precision are therefore never mixed. Several processes may share a cache.
    """

    def __init__(
        self, root: str, *, encode: EncodeRows | None = None, progress: ProgressCallback | None = None
    ) -> None:
        """`encode` computes features that are not cached; default: `encode_rows`, in this process."""
        self.root = root
        self.encode = encode or encode_rows
        self.progress = progress
        self.counts = Counts()

    def embed(
        self,
        encoder: ImageEncoder,
        shards: ShardSet,
        split: str,
        *,
        rows: np.ndarray | None = None,
        batch_size: int = _BATCH,
        threads: int = 2,
    ) -> Embedded:
        """Features of a split, or of its `rows` (int64, numbers within the split).

        Features that are not cached are computed, equal images once. Raises DatasetError for an image that
        cannot be decoded or whose bytes are not those of its sha256, and ModelError for features that are not
        finite.
        """
        table = shards.table(split)
        rows = np.arange(len(table)) if rows is None else np.asarray(rows)
        table = table.take(pa.array(rows))
        keys = feature_keys(encoder, table)
        store = FeatureStore(self.root, f"images/{encoder.key}", width=encoder.width)
        known = self._read(store, keys)
        missing = {key: int(row) for key, row in zip(keys[::-1], rows[::-1], strict=True) if key not in known}
        by_row = {row: key for key, row in missing.items()}
        waiting: dict[str, np.ndarray] = {}
        begun = time.monotonic()
        try:
            stream = self.encode(
                encoder, shards, split, sorted(by_row), batch_size=batch_size, threads=threads
            )
            for done, (row, features) in enumerate(stream, start=1):
                waiting[by_row[row]] = features
                self.counts.images += 1
                self.counts.crops += len(features)
                self.counts.bytes += features.nbytes
                if len(waiting) >= _PART_IMAGES:
                    store.append(waiting)
                    known |= waiting
                    waiting = {}
                if self.progress:
                    self.progress(done, len(missing))
        finally:
            store.append(waiting)
            self.counts.seconds += time.monotonic() - begun if missing else 0.0
        return _assemble(table, keys, known | waiting)

    def embed_images(self, encoder: ImageEncoder, images: Sequence[bytes]) -> list[np.ndarray]:
        """Features float32 (T, D) of encoded images that are in no shard (a query, a user's file)."""
        keys = [hashlib.sha256(image).hexdigest() + encoder.crop_key(None) for image in images]
        store = FeatureStore(self.root, f"images/{encoder.key}", width=encoder.width)
        known = self._read(store, keys)
        new: dict[str, np.ndarray] = {}
        for key, image in zip(keys, images, strict=True):
            if key not in known and key not in new:
                new[key] = _finite(encoder.encode(encoder.crops(decode(image), None)), "image", key)
                self.counts.images += 1
                self.counts.crops += len(new[key])
        store.append(new)
        return [(known | new)[key] for key in keys]

    def embed_text(self, encoder: SentenceEncoder, sentences: Sequence[str]) -> np.ndarray:
        """Raw features of sentences in order, duplicates kept: float32 (P, D)."""
        keys = [hashlib.sha256(s.encode()).hexdigest() for s in sentences]
        store = FeatureStore(self.root, f"sentences/{encoder.key}", width=encoder.width)
        known = self._read(store, keys)
        missing = {key: s for key, s in zip(keys, sentences, strict=True) if key not in known}
        new: dict[str, np.ndarray] = {}
        for chunk in chunks(list(missing.items()), _BATCH):
            features = encoder.encode([sentence for _, sentence in chunk])
            new |= {k: _finite(f[None], "sentence", s) for (k, s), f in zip(chunk, features, strict=True)}
            self.counts.sentences += len(chunk)
        store.append(new)
        return np.concatenate([(known | new)[key] for key in keys])

    def cut(self, encoder: SentenceEncoder, sentences: Sequence[str]) -> int:
        """How many distinct sentences have more tokens than the text tower reads; cached as features are."""
        keys = {hashlib.sha256(s.encode()).hexdigest(): s for s in sentences}
        store = FeatureStore(self.root, f"cut/{encoder.key}", width=1)
        known = self._read(store, list(keys))
        missing = {key: s for key, s in keys.items() if key not in known}
        longer = set(encoder.too_long(list(missing.values()))) if missing else set()
        new = {key: np.full((1, 1), s in longer, dtype=np.float32) for key, s in missing.items()}
        store.append(new)
        return int(sum(value.sum() for value in (known | new).values()))

    def _read(self, store: FeatureStore, keys: list[str]) -> dict[str, np.ndarray]:
        found = store.read(keys)
        self.counts.damaged += store.damaged
        return found


def encode_rows(
    encoder: ImageEncoder,
    shards: ShardSet,
    split: str,
    rows: Sequence[int],
    *,
    batch_size: int = _BATCH,
    threads: int = 2,
) -> Iterator[tuple[int, np.ndarray]]:
    """(row, features float32 (T, D)) of ascending rows of a split.

    Threads decode the next images meanwhile, and a GPU has its next batch before it is done with the last.
    Only row groups with one of the rows are read, one at a time. Nothing is cached.
    """
    begun: deque[tuple[Inputs, list[Callable[[], np.ndarray]]]] = deque()
    images = read_images(shards, split, rows)
    for batch in decoded(encoder, images, batch_size=batch_size, threads=threads):
        begun.append((batch, [begin(encoder, part) for part in _slices(batch.crops, batch_size)]))
        if len(begun) > is_ahead(encoder):
            yield from _features(*begun.popleft())
    while begun:
        yield from _features(*begun.popleft())


def _features(batch: Inputs, parts: list[Callable[[], np.ndarray]]) -> Iterator[tuple[int, np.ndarray]]:
    """(row, features) of a batch that was begun; waits for them."""
    encoded = np.concatenate([finish() for finish in parts]).astype(np.float32, copy=False)
    fine, start = (
        bool(np.isfinite(encoded).all()),
        0,
    )  # one call for all: a GPU is faster than a call per image
    for row, name, count in zip(batch.rows, batch.names, batch.counts, strict=True):
        features = encoded[start : start + count]
        yield row, features if fine else _finite(features, "image", name)
        start += count


def feature_keys(encoder: Crops, table: pa.Table) -> list[str]:
    """The keys of an encoder's features of images. `table` has their sha256 and mpp."""
    scales = [None if m is None or math.isnan(m) else m for m in table["mpp"].to_pylist()]
    return [sha + encoder.crop_key(mpp) for sha, mpp in zip(table["sha256"].to_pylist(), scales, strict=True)]


def _assemble(table: pa.Table, keys: list[str], known: dict[str, np.ndarray]) -> Embedded:
    parts = [known[key] for key in keys]
    features = np.concatenate(parts) if parts else np.zeros((0, 0), dtype=np.float32)
    row = np.repeat(np.arange(len(parts)), [len(p) for p in parts])
    return Embedded(table, features, row)


def _finite(features: np.ndarray, what: str, where: str) -> np.ndarray:
    if not np.isfinite(features).all():
        raise ModelError(f"the model computes features that are not finite for this {what}", where=where)
    return features.astype(np.float32, copy=False)


def _slices(array: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (array[a : a + size] for a in range(0, len(array), size))
