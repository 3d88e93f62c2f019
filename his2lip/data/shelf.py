"""The shelf: the row groups that a rank's lanes draw from, and those that arrived before their time."""

from __future__ import annotations

from typing import NamedTuple

from his2lip.data.order import Plan, Reads
from his2lip.data.row_groups import Ahead, Rows

_SPARE = 4  # row groups beside those that the lanes use at once


class Pick(NamedTuple):
    """One row of a batch: where it lies, and the number of its draw where a balanced epoch repeats it."""

    rows: Rows
    row: int
    copy: int


class _Held:
    """A row group, and how many of its rows are still to be taken."""

    def __init__(self, rows: Rows, uses: int) -> None:
        self.rows, self.uses = rows, uses


class Shelf:
    """Holds row groups from their arrival, in the order of `reads`, until their last row is taken.

    A lane uses `window` + 1 row groups at once on average. There is room for so many a lane and a few more,
    so that towards the end of an epoch, when lanes need no new ones, the next epoch's first arrive.
    """

    def __init__(self, plan: Plan, lanes: range, reads: Reads, arriving: Ahead[Rows]) -> None:
        self._plan, self._lanes, self._arriving = plan, lanes, arriving
        keys = zip(*(column.tolist() for column in reads), strict=True)
        self._incoming = zip(keys, arriving, strict=False)  # stops with the keys
        self._held: dict[tuple[int, int, int], _Held] = {}
        self._room = len(lanes) * (plan.window + 1) + _SPARE

    def pick(self, step: int) -> list[Pick]:
        """This rank's rows of a step, lane by lane; waits for row groups that are not here yet."""
        epoch = self._plan.epoch_of(step)
        rows, copies = self._plan.share(step, self._lanes)
        groups = self._plan.group_of(rows)
        within = rows - self._plan.starts[groups]
        picks = []
        for lane, *columns in zip(self._lanes, groups, within, copies, strict=True):
            holder = self._plan.holder(lane, self._lanes)
            for group, row, copy in zip(*(column.tolist() for column in columns), strict=True):
                picks.append(Pick(self._take((epoch, holder, group)), row, copy))
        return picks

    def fill(self) -> None:
        """Takes what has arrived, while there is room."""
        while len(self._held) < self._room and self._arriving.has_arrived():
            self._receive()

    def close(self) -> None:
        """Ends the reading."""
        self._arriving.close()
        self._held.clear()

    def _take(self, key: tuple[int, int, int]) -> Rows:
        while key not in self._held:
            self._receive()
        held = self._held[key]
        held.uses -= 1
        if held.uses == 0:
            del self._held[key]
        return held.rows

    def _receive(self) -> None:
        (epoch, lane, group, uses), rows = next(self._incoming)
        self._held[epoch, lane, group] = _Held(rows, uses)
