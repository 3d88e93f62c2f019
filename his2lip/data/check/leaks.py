"""Leaks: cases, slides, regions, files, equal pixels and look-alike images that are in two splits or more."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from his2lip.data.cards import Card

KINDS = {  # kind of a leak -> its name in the singular and in the plural
    "case": ("case", "cases"),
    "slide": ("slide", "slides"),
    "region": ("region", "regions"),
    "file": ("file", "files"),
    "pixels": ("image with equal pixels", "images with equal pixels"),
    "look": ("look-alike image", "look-alike images"),
}
# Largest number of bits, of 256, in which the hashes of look-alike images differ. Saving a patch as JPEG of
# quality 60 changes 6 bits; two different patches differed in at least 36.
ALIKE = 15
_LEVELS = ("case", "slide", "region", "file")  # from coarse to fine
_SIDE = 16  # bits per side of a difference hash; enough to distinguish neighbouring tiles
_FLAT = 6.0  # standard deviation of grey levels below which patches (glass, plain stroma) all look alike
_NEIGHBOURS = 512  # compared per hash and band; only repetitive images have longer runs of one band value


@dataclass(frozen=True)
class Leak:
    """Values of one kind that are in several splits.

    kind    a key of KINDS
    splits  the splits that have all of the values
    count   number of values
    rows    an example: its row number in each of `splits`
    """

    kind: str
    splits: tuple[str, ...]
    count: int
    rows: tuple[int, ...]

    def __str__(self) -> str:
        singular, plural = KINDS[self.kind]
        subject = f"{self.count:,} {plural} are" if self.count > 1 else f"1 {singular} is"
        return f"{subject} in {' and '.join(self.splits)}"


class Sightings:
    """Records the values of the rows of each split as hashes, 72 bytes per row."""

    def __init__(self) -> None:
        self._hashes: dict[str, dict[str, array[int]]] = {kind: {} for kind in KINDS if kind != "look"}
        self._looks: dict[str, bytearray] = {}

    def add(self, split: str, values: dict[str, str | bytes | None]) -> None:
        """Adds one row's values (kind -> value, None where unknown). Rows come in the order of their split.

        The value of the kind `look` is a `difference_hash`.
        """
        for kind, hashes in self._hashes.items():
            value = values.get(kind)
            hashes.setdefault(split, array("Q")).append(0 if value is None else _hash(value))
        look = values.get("look")
        self._looks.setdefault(split, bytearray()).extend(
            look if isinstance(look, bytes) else bytes(_SIDE * _SIDE // 8)
        )

    def leaks(self) -> Iterator[Leak]:
        """Leaks of each kind: one per set of splits, and one per pair of splits for look-alike images."""
        for kind, hashes in self._hashes.items():
            yield from _equal(kind, {s: np.frombuffer(h, dtype=np.uint64) for s, h in hashes.items()})
        looks = {s: np.frombuffer(h, dtype=np.uint64).reshape(-1, 4) for s, h in self._looks.items()}
        yield from _alike(looks)


def may_recur(card: Card, leak: Leak) -> bool:
    """Whether the card's splits allow the leak: one repeats the others, or they group by a finer kind.

    For example, a slide may be in two splits that were made by file.
    """
    if _repeat(card, leak.splits):
        return True
    groups = [card.splits[s].groups for s in leak.splits if s in card.splits]
    finest = max((_LEVELS.index(g) for g in groups if g), default=0)
    return leak.kind in _LEVELS and _LEVELS.index(leak.kind) < finest


def _repeat(card: Card, splits: tuple[str, ...]) -> bool:
    """Whether one of the splits repeats images of all others by design."""
    repeats = {split: {split, *card.splits[split].repeats} for split in splits if split in card.splits}
    return any(set(splits) <= known for known in repeats.values())


def difference_hash(pixels: np.ndarray) -> bytes | None:
    """A hash (32 bytes) of uint8 (H, W, 3) that differs by at most `ALIKE` bits between look-alike images.

    None for an image that is too uniform to be recognised. Each bit tells whether a pixel of the grey 17 x 16
    thumbnail is brighter than its left neighbour (dHash, N. Krawetz).
    """
    grey = Image.fromarray(pixels).convert("L").resize((_SIDE + 1, _SIDE), Image.Resampling.BOX)
    levels = np.asarray(grey, dtype=np.int16)
    if levels.std() < _FLAT:
        return None
    return np.packbits(levels[:, 1:] > levels[:, :-1]).tobytes()


def _hash(value: str | bytes) -> int:
    data = value.encode() if isinstance(value, str) else value
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") or 1  # 0 means unknown


def _equal(kind: str, hashes: dict[str, np.ndarray]) -> Iterator[Leak]:
    """Leaks of equal values, from split -> hashes, uint64 (rows,)."""
    splits = sorted(hashes)
    firsts = {s: np.unique(hashes[s], return_index=True) for s in splits}
    values = np.unique(np.concatenate([firsts[s][0] for s in splits])) if splits else np.zeros(0)
    values = values[values != 0]
    present = np.zeros((len(splits), len(values)), dtype=bool)
    for i, split in enumerate(splits):
        present[i] = np.isin(values, firsts[split][0])
    patterns, first, counts = np.unique(present, axis=1, return_index=True, return_counts=True)
    for pattern, example, count in zip(patterns.T, first, counts, strict=True):
        if pattern.sum() > 1:
            among = tuple(split for split, there in zip(splits, pattern, strict=True) if there)
            rows = (firsts[s][1][np.searchsorted(firsts[s][0], values[example])] for s in among)
            yield Leak(kind, among, int(count), tuple(map(int, rows)))


def _alike(looks: dict[str, np.ndarray]) -> Iterator[Leak]:
    """Leaks of look-alike images, from split -> difference hashes, uint64 (rows, 4).

    The count of a pair of splits is the number of images with a look-alike in the other split, in the split
    that has fewer of them.
    """
    splits = sorted(looks)
    if len(splits) < 2:
        return
    hashes = np.concatenate([looks[s] for s in splits])
    split = np.repeat(np.arange(len(splits)), [len(looks[s]) for s in splits])
    row = np.concatenate([np.arange(len(looks[s])) for s in splits])
    known = hashes.any(axis=1)
    hashes, split, row = hashes[known], split[known], row[known]
    alike = np.zeros((len(hashes), len(splits)), dtype=bool)  # (image, split): has a look-alike there
    example: dict[tuple[int, int], tuple[int, int]] = {}
    for a, b in _close_pairs(hashes, split):
        alike[a, split[b]] = alike[b, split[a]] = True
        codes, first = np.unique(split[a] * len(splits) + split[b], return_index=True)
        for code, at in zip(codes.tolist(), first.tolist(), strict=True):
            example.setdefault(divmod(code, len(splits)), (int(row[a[at]]), int(row[b[at]])))
    for (one, other), rows in sorted(example.items()):
        count = min(int(alike[split == one, other].sum()), int(alike[split == other, one].sum()))
        yield Leak("look", (splits[one], splits[other]), count, rows)


def _close_pairs(hashes: np.ndarray, split: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields indices (a, b) of hashes that differ by at most ALIKE bits, with split[a] < split[b].

    hashes  uint64 (N, 4)
    split   int64 (N,): number of each hash's split

    Two hashes that differ in at most 15 bits are equal in at least one of their 16 bands of 16 bits. So the
    hashes are sorted by each band, and only those with an equal band are compared. A pair may be yielded more
    than once.
    """
    for band in hashes.view(np.uint16).T:
        order = np.argsort(band, kind="stable")
        at = np.arange(len(order))
        for distance in range(1, _NEIGHBOURS):
            at = at[at + distance < len(order)]
            at = at[band[order[at]] == band[order[at + distance]]]
            if not len(at):
                break
            a, b = order[at], order[at + distance]
            a, b = np.where(split[a] < split[b], a, b), np.where(split[a] < split[b], b, a)
            apart = split[a] != split[b]
            a, b = a[apart], b[apart]
            close = np.bitwise_count(hashes[a] ^ hashes[b]).sum(axis=1) <= ALIKE
            yield a[close], b[close]
