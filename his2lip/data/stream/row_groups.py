"""Row groups in this process's memory: images as views of one buffer, no Python bytes."""

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
from his2lip.errors import DatasetError

T = TypeVar("T")

COLUMNS = ("image", "patch_id", "tissue", "biomarker")  # what training reads of a shard

_AHEAD = 2  # row groups read before they are asked for, each by a thread; pyarrow releases the GIL


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one row group; `where` names it in errors."""

    buffer: memoryview
    ends: list[int]
    patch_ids: list[str]
    tissues: list[str | None]
    biomarkers: list[str | None]
    where: str

    def image(self, row: int) -> memoryview:
        """The encoded bytes of one image; no copy."""
        return self.buffer[self.ends[row] : self.ends[row + 1]]


def unpack(table: pa.Table, where: str, *, copy: bool) -> Rows:
    """A row group's table taken apart; `copy` moves the images out of the memory that the table lies in."""
    parts, lengths = zip(*(_binary(chunk) for chunk in table.column("image").chunks), strict=True)
    images = np.concatenate(parts) if copy or len(parts) > 1 else parts[0]
    ends = np.cumsum(np.concatenate([[0], *lengths]))
    return Rows(
        buffer=memoryview(images),  # type: ignore[arg-type]
        ends=ends.tolist(),
        patch_ids=table.column("patch_id").to_pylist(),
        tissues=table.column("tissue").to_pylist(),
        biomarkers=table.column("biomarker").to_pylist(),
        where=where,
    )


def read_here(system: fs.FileSystem, groups: Sequence[RowGroup]) -> Generator[Rows, None, None]:
    """Row groups in turn, read by threads of this process; closing it stops them."""
    for group, table in zip(groups, read_tables(system, groups), strict=True):
        yield unpack(table, place(group), copy=False)


def read_tables(system: fs.FileSystem, groups: Sequence[RowGroup]) -> Iterator[pa.Table]:
    """What training reads of row groups, in turn and one ahead; closing it stops the reading."""
    waiting: deque[Future[pa.Table]] = deque()
    pool = ThreadPoolExecutor(_AHEAD, thread_name_prefix="his2lip-read")
    try:
        for group in groups:
            waiting.append(pool.submit(_read, system, group))
            if len(waiting) > _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _read(system: fs.FileSystem, group: RowGroup) -> pa.Table:
    try:
        return read_row_group(system, group, COLUMNS)
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(f"this shard cannot be read any more: {error}", where=place(group)) from None


class Ahead(Iterator[T]):
    """Draws items from a generator by a thread of its own, `depth` of them ahead, from the start."""

    def __init__(self, items: Generator[T, None, None], depth: int) -> None:
        self._items = items
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="his2lip-ahead")
        self._waiting = deque(self._pool.submit(next, items) for _ in range(depth))

    def __next__(self) -> T:
        self._waiting.append(self._pool.submit(next, self._items))
        return self._waiting.popleft().result()

    def has_arrived(self) -> bool:
        """Whether the next item is here already, so that taking it would not wait."""
        first = self._waiting[0]
        return first.done() and first.exception() is None

    def close(self) -> None:
        """Waits for the item that is being drawn, and closes the generator."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._items.close()


def place(group: RowGroup) -> str:
    """How an error names a row group."""
    return f"{group.path}, row group {group.index}"


def _binary(chunk: pa.BinaryArray) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """The bytes of a binary array's values, and the length of each; no copy of the bytes."""
    _, offsets, data = chunk.buffers()
    ends = np.frombuffer(offsets, dtype=np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
    return np.frombuffer(data, dtype=np.uint8)[ends[0] : ends[-1]], np.diff(ends)


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
