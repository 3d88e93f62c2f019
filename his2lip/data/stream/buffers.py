"""Memory of batches that is used again once nobody holds the batch."""

from __future__ import annotations

import sys

import numpy as np

from his2lip.data.stream.augment import Pixels

_OWN = 3  # references to an array that only the pool holds: its list, the loop, and the argument of the count


class BatchMemory:
    """Gives arrays of pixels, those of earlier batches where these are gone.

    New memory costs a page fault for every 4 KB. An array is in use as long as anything refers to it: a
    tensor, a view, a thread that fills it.
    """

    def __init__(self, keep: int) -> None:
        """`keep`: how many arrays are kept for later batches."""
        self._keep = keep
        self._arrays: list[Pixels] = []

    def take(self, shape: tuple[int, ...]) -> Pixels:
        """An array, uint8 of `shape`, with any content."""
        for array in self._arrays:
            if array.shape == shape and sys.getrefcount(array) == _OWN:
                return array
        new: Pixels = np.empty(shape, dtype=np.uint8)
        if len(self._arrays) < self._keep:
            self._arrays.append(new)
        return new
