"""What recurs between splits: cases, slides, regions, files, equal pixels, and images that look alike."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from his2lip.data.cards import Card

KINDS = {  # one, and several
    "case": ("case", "cases"),
    "slide": ("slide", "slides"),
    "region": ("region", "regions"),
    "file": ("file", "files"),
    "pixels": ("image, pixel for pixel,", "images, pixel for pixel,"),
    "look": ("look-alike image", "look-alike images"),
}
ALIKE = (
    15  # bits of 256 in which hashes of one picture differ: JPEG at quality 60 changes 6, others 36 or more
)
_LADDER = ("case", "slide", "region", "file")
_SIDE = 16  # a difference hash of 16 x 16 bits tells neighbouring tiles apart
_FLAT = 6.0  # standard deviation of grey levels below which patches (glass, plain stroma) all look alike
_MOST = 512  # neighbours in one band's order that are compared; runs this long hold stripes, not pictures


@dataclass(frozen=True)
class Leak:
    """`count` values of a kind that stand in all of `splits`; `rows` has one row number in each, to show."""

    kind: str
    splits: tuple[str, ...]
    count: int
    rows: tuple[int, ...]

    def __str__(self) -> str:
        one, several = KINDS[self.kind]
        subject = f"{self.count:,} {several} stand" if self.count > 1 else f"1 {one} stands"
        return f"{subject} in {' and '.join(self.splits)}"


class Sightings:
    """In which splits each value stands, as hashes: 72 bytes a row, whatever the images' size."""

    def __init__(self) -> None:
        self._hashes: dict[str, dict[str, array[int]]] = {kind: {} for kind in KINDS if kind != "look"}
        self._looks: dict[str, bytearray] = {}

    def take(self, split: str, values: dict[str, str | bytes | None]) -> None:
        """One row's values by kind (None where unknown); rows come in the order of their split."""
        for kind, hashes in self._hashes.items():
            value = values.get(kind)
            hashes.setdefault(split, array("Q")).append(0 if value is None else _hash(value))
        look = values.get("look")
        self._looks.setdefault(split, bytearray()).extend(
            look if isinstance(look, bytes) else bytes(_SIDE * _SIDE // 8)
        )

    def leaks(self) -> Iterator[Leak]:
        """Values that stand in two splits or more, kind by kind."""
        for kind, hashes in self._hashes.items():
            yield from _equal(kind, {s: np.frombuffer(h, dtype=np.uint64) for s, h in hashes.items()})
        looks = {s: np.frombuffer(h, dtype=np.uint64).reshape(-1, 4) for s, h in self._looks.items()}
        yield from _alike(looks)


def may_recur(card: Card, leak: Leak) -> bool:
    """Whether the card's grouping is finer than the leak's kind: a split by file lets slides recur."""
    groups = [card.splits[s].groups for s in leak.splits if s in card.splits]
    finest = max((_LADDER.index(g) for g in groups if g), default=0)
    return leak.kind in _LADDER and _LADDER.index(leak.kind) < finest


def difference_hash(pixels: np.ndarray) -> bytes | None:
    """32 bytes of which alike-looking images share all but `ALIKE` bits; None for a flat one.

    uint8 (H, W, 3) in. Bit = whether a cell of the grey thumbnail is brighter than its right neighbour (N.
    Krawetz's dHash).
    """
    grey = Image.fromarray(pixels).convert("L").resize((_SIDE + 1, _SIDE), Image.Resampling.BOX)
    cells = np.asarray(grey, dtype=np.int16)
    if cells.std() < _FLAT:
        return None
    return np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes()


def _hash(value: str | bytes) -> int:
    data = value.encode() if isinstance(value, str) else value
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") or 1  # 0 is "unknown"


def _equal(kind: str, hashes: dict[str, np.ndarray]) -> Iterator[Leak]:
    """Equal hashes in several splits; of each set of splits, how many and one example."""
    splits = sorted(hashes)
    firsts = {s: np.unique(hashes[s], return_index=True) for s in splits}
    values = np.unique(np.concatenate([firsts[s][0] for s in splits])) if splits else np.zeros(0)
    values = values[values != 0]
    stands = np.zeros((len(splits), len(values)), dtype=bool)
    for i, split in enumerate(splits):
        stands[i] = np.isin(values, firsts[split][0])
    patterns, first, counts = np.unique(stands, axis=1, return_index=True, return_counts=True)
    for pattern, example, count in zip(patterns.T, first, counts, strict=True):
        if pattern.sum() > 1:
            among = tuple(split for split, there in zip(splits, pattern, strict=True) if there)
            rows = (firsts[s][1][np.searchsorted(firsts[s][0], values[example])] for s in among)
            yield Leak(kind, among, int(count), tuple(map(int, rows)))


def _alike(looks: dict[str, np.ndarray]) -> Iterator[Leak]:
    """Pairs of splits with hashes at most ALIKE bits apart; counted on the side where they are fewer."""
    splits = sorted(looks)
    if len(splits) < 2:
        return
    hashes = np.concatenate([looks[s] for s in splits])
    split = np.repeat(np.arange(len(splits)), [len(looks[s]) for s in splits])
    row = np.concatenate([np.arange(len(looks[s])) for s in splits])
    known = hashes.any(axis=1)
    hashes, split, row = hashes[known], split[known], row[known]
    alike = np.zeros((len(hashes), len(splits)), dtype=bool)  # whether an image has its like in a split
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
    """Places (a, b) of uint64 (N, 4) hashes of two splits, split[a] < split[b], at most ALIKE bits apart.

    Two hashes that differ in 15 bits or fewer are equal in one of their 16 bands of 16 bits at least, so only
    those that share a band are compared: neighbours, once they are sorted by it. A pair may come repeatedly.
    """
    for band in hashes.view(np.uint16).T:
        order = np.argsort(band, kind="stable")
        at = np.arange(len(order))
        for distance in range(1, _MOST):
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
