"""Memory of batches that is used again once nobody holds the batch."""

from __future__ import annotations

import sys

import numpy as np

from his2lip.data.stream.augment import Pixels


class BatchMemory:
    """Gives arrays of pixels, those of earlier batches where these are gone.

    New memory costs a page fault for every 4 KB. An array is in use as long as anything refers to it: a
    tensor, a view, a thread that fills it.
    """

    def __init__(self, keep: int) -> None:
        """`keep`: how many arrays are kept for later batches."""
        self._keep = keep
        self._arrays: list[Pixels] = [np.empty(0, dtype=np.uint8)]
        self._free = self._references(0)  # of an array that only the pool holds: Python's versions differ
        self._arrays.clear()

    def take(self, shape: tuple[int, ...]) -> Pixels:
        """An array, uint8 of `shape`, with any content."""
        for place in range(len(self._arrays)):
            if self._references(place) == self._free and self._arrays[place].shape == shape:
                return self._arrays[place]
        new: Pixels = np.empty(shape, dtype=np.uint8)
        if len(self._arrays) < self._keep:
            self._arrays.append(new)
        return new

    def _references(self, place: int) -> int:
        """How many things refer to an array of the pool, counted in one way everywhere."""
        return sys.getrefcount(self._arrays[place])
