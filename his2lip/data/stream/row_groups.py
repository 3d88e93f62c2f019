"""Row groups in this process: read ahead, kept until their last row is taken, images without a copy each."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import fs

from his2lip.data.shards import RowGroup, read_row_group
from his2lip.data.stream.order import Plan, Reads

T = TypeVar("T")

# The columns of a shard that training reads.
COLUMNS = ("image", "patch_id", "tissue", "biomarker", "label", "score", "stain")

_AHEAD = 2  # row groups read ahead of need, one per thread; pyarrow releases the GIL
_SPARE = 4  # room for row groups beside those that the lanes use at once


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one row group. `buffer` has the encoded images one after another; `where` is its shard."""

    buffer: memoryview
    ends: list[int]
    patch_ids: list[str]
    tissues: list[str | None]
    biomarkers: list[str | None]
    labels: list[str | None]
    scores: list[str | None]
    stains: list[str | None]
    where: str

    def image(self, row: int) -> memoryview:
        """The encoded bytes of one image, without a copy."""
        return self.buffer[self.ends[row] : self.ends[row + 1]]


class Pick(NamedTuple):
    """One row of a batch.

    number  the row's number in the plan, through all row groups
    copy    numbers the draws of a row that a balanced epoch repeats, from 0
    """

    rows: Rows
    row: int
    number: int
    copy: int


class RowBuffer:
    """Keeps row groups, which arrive in the order of `reads`, until their last row is taken.

    A lane uses `window` + 1 row groups at once on average. There is room for that many per lane and a few
    more: towards the end of an epoch, when lanes need no new ones, the first row groups of the next epoch
    arrive.
    """

    def __init__(self, plan: Plan, lanes: range, reads: Reads, arriving: ReadAhead[Rows]) -> None:
        self._plan, self._lanes, self._arriving = plan, lanes, arriving
        keys = zip(*(column.tolist() for column in reads), strict=True)
        self._incoming = zip(keys, arriving, strict=False)  # ends with the keys
        self._loaded: dict[tuple[int, int, int], _Loaded] = {}
        self._room = len(lanes) * (plan.window + 1) + _SPARE

    def __len__(self) -> int:
        """The number of row groups in memory."""
        return len(self._loaded)

    def pick(self, step: int) -> list[Pick]:
        """This rank's rows of a step, lane by lane. Waits for row groups that have not arrived."""
        epoch = self._plan.epoch_of(step)
        rows, copies = self._plan.share(step, self._lanes)
        groups = self._plan.group_of(rows)
        within = rows - self._plan.starts[groups]
        picks = []
        for lane, *columns in zip(self._lanes, groups, within, rows, copies, strict=True):
            reading_lane = self._plan.reading_lane(lane, self._lanes)
            for group, *rest in zip(*(column.tolist() for column in columns), strict=True):
                picks.append(Pick(self._take((epoch, reading_lane, group)), *rest))
        return picks

    def fill(self) -> None:
        """Takes the row groups that have arrived, while there is room."""
        while len(self) < self._room and self._arriving.has_arrived():
            self._receive()

    def close(self) -> None:
        """Ends the reading."""
        self._arriving.close()
        self._loaded.clear()

    def _take(self, key: tuple[int, int, int]) -> Rows:
        while key not in self._loaded:
            self._receive()
        loaded = self._loaded[key]
        loaded.uses -= 1
        if loaded.uses == 0:
            del self._loaded[key]
        return loaded.rows

    def _receive(self) -> None:
        (epoch, lane, group, uses), rows = next(self._incoming)
        self._loaded[epoch, lane, group] = _Loaded(rows, uses)


@dataclass
class _Loaded:
    """A row group, and the number of its rows that are still to be taken."""

    rows: Rows
    uses: int


class ReadAhead(Iterator[T]):
    """Draws items from a generator in a thread of its own, `depth` of them ahead, from the start."""

    def __init__(self, items: Generator[T, None, None], depth: int) -> None:
        self._items = items
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="his2lip-ahead")
        self._waiting = deque(self._pool.submit(next, items) for _ in range(depth))

    def __next__(self) -> T:
        self._waiting.append(self._pool.submit(next, self._items))
        return self._waiting.popleft().result()

    def has_arrived(self) -> bool:
        """Whether the next item can be taken without waiting."""
        first = self._waiting[0]
        return first.done() and first.exception() is None

    def close(self) -> None:
        """Waits for the item that is being drawn, and closes the generator."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._items.close()


def read_here(system: fs.FileSystem, groups: Sequence[RowGroup]) -> Generator[Rows, None, None]:
    """Row groups in order, read by threads of this process; closing the generator stops them."""
    for group, table in zip(groups, read_tables(system, groups), strict=True):
        yield unpack(table, group.path, copy=False)


def read_tables(system: fs.FileSystem, groups: Sequence[RowGroup]) -> Iterator[pa.Table]:
    """The columns of row groups that training reads, in order; closing the generator stops the reading."""
    waiting: deque[Future[pa.Table]] = deque()
    pool = ThreadPoolExecutor(_AHEAD, thread_name_prefix="his2lip-read")
    try:
        for group in groups:
            waiting.append(pool.submit(read_row_group, system, group, COLUMNS))
            if len(waiting) > _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def unpack(table: pa.Table, where: str, *, copy: bool) -> Rows:
    """The rows of a row group's table. `copy` copies the images out of the table's memory."""
    parts, lengths = zip(*(_binary(chunk) for chunk in table.column("image").chunks), strict=True)
    images = np.concatenate(parts) if copy or len(parts) > 1 else parts[0]
    ends = np.cumsum(np.concatenate([[0], *lengths]))
    return Rows(
        buffer=memoryview(images),  # type: ignore[arg-type]
        ends=ends.tolist(),
        patch_ids=table.column("patch_id").to_pylist(),
        tissues=table.column("tissue").to_pylist(),
        biomarkers=table.column("biomarker").to_pylist(),
        labels=table.column("label").to_pylist(),
        scores=table.column("score").to_pylist(),
        stains=table.column("stain").to_pylist(),
        where=where,
    )


def _binary(chunk: pa.BinaryArray) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """The bytes of a binary array's values without a copy, and the length of each value."""
    _, offsets, data = chunk.buffers()
    ends = np.frombuffer(offsets, dtype=np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
    return np.frombuffer(data, dtype=np.uint8)[ends[0] : ends[-1]], np.diff(ends)
