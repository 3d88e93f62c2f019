"""What captions say about the staining of rows: a patch that is not cropped is measured once per stream."""

from __future__ import annotations

import threading

import numpy as np

from his2lip.data.shards import Staining

Finding = tuple[Staining | None, str | None]  # the staining band and the class in words of a caption


class Findings:
    """The finding of each row of a plan, once it is known. Threads may use it at the same time.

    It takes 4 bytes per row, in memory that the system provides when a row is written.
    """

    def __init__(self, rows: int) -> None:
        self._codes = np.zeros(rows, dtype=np.int32)  # places in `_known`; 0 means unknown
        self._known: list[Finding | None] = [None]
        self._lock = threading.Lock()

    def __getitem__(self, row: int) -> Finding | None:
        return self._known[self._codes[row]]

    def __setitem__(self, row: int, finding: Finding) -> None:
        with self._lock:
            if finding not in self._known:
                self._known.append(finding)
            self._codes[row] = self._known.index(finding)
