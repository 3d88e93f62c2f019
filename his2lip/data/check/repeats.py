"""Repeated pictures: equal pixels in several rows of one split, and one picture under several labels."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

Place = tuple[str, int]  # a split, and the number of a row in it


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """Pictures that a split has more than once.

    pictures  number of such pictures
    rows      number of rows that have one of them
    of        number of rows of the split that were compared
    most      the largest number of rows with the same picture
    example   the first two rows with that picture
    """

    split: str
    pictures: int
    rows: int
    of: int
    most: int
    example: tuple[Place, Place]

    def __str__(self) -> str:
        many = "1 picture is" if self.pictures == 1 else f"{self.pictures:,} pictures are"
        times = f"{self.most} times" if self.pictures == 1 else f"up to {self.most} times"
        return f"{many} in {self.split} {times} ({self.rows:,} of its {self.of:,} images)"


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """Pictures under several labels, in any splits, and an example: two rows whose labels differ."""

    pictures: int
    example: tuple[Place, Place]


class Pictures:
    """Gathers the pictures and labels of rows as hashes, 16 bytes per row."""

    def __init__(self) -> None:
        self._splits: dict[str, tuple[array[int], array[int]]] = {}

    def add(self, split: str, picture: bytes | None, label: str) -> None:
        """Adds one row, in the order of its split. None: a picture that cannot be compared."""
        pictures, labels = self._splits.setdefault(split, (array("Q"), array("Q")))
        pictures.append(0 if picture is None else _hash(picture))
        labels.append(_hash(label.encode()))

    def repeats(self) -> Iterator[Repeat]:
        """One per split that has a picture more than once."""
        for split, (hashes, _) in sorted(self._splits.items()):
            pictures = np.frombuffer(hashes, dtype=np.uint64)
            found, counts = np.unique(pictures[pictures != 0], return_counts=True)
            several = counts[counts > 1]
            if len(several):
                first, second = np.flatnonzero(pictures == found[counts.argmax()])[:2].tolist()
                yield Repeat(
                    split=split,
                    pictures=len(several),
                    rows=int(several.sum()),
                    of=int(counts.sum()),
                    most=int(several.max()),
                    example=((split, first), (split, second)),
                )

    def conflict(self) -> Conflict | None:
        """The pictures under several labels; None where there is none."""
        names = sorted(self._splits)
        if not names:
            return None
        pictures, labels = (
            np.concatenate([np.frombuffer(self._splits[name][i], dtype=np.uint64) for name in names])
            for i in (0, 1)
        )
        starts = np.cumsum([0, *(len(self._splits[name][0]) for name in names)])
        known = np.flatnonzero(pictures)
        order = known[np.lexsort((labels[known], pictures[known]))]
        same = pictures[order[1:]] == pictures[order[:-1]]
        differ = np.flatnonzero(same & (labels[order[1:]] != labels[order[:-1]]))
        if not len(differ):
            return None

        def place(row: int) -> Place:
            split = int(np.searchsorted(starts, row, side="right")) - 1
            return names[split], row - int(starts[split])

        first, second = order[differ[0]], order[differ[0] + 1]
        return Conflict(
            pictures=len(np.unique(pictures[order[differ]])),
            example=(place(int(first)), place(int(second))),
        )


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") or 1  # 0 means unknown
