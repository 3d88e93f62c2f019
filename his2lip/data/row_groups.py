"""Row groups in this process's memory: images as views of one buffer, no Python bytes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyarrow import fs

from his2lip.data.shards import RowGroup, read_row_group

COLUMNS = ("image", "patch_id", "tissue", "biomarker")  # what training reads of a shard

_READERS = 2  # threads that read row groups of local or remote files; pyarrow releases the GIL
_AHEAD = 4  # row groups read before they are asked for


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
    column = table.column("image").combine_chunks()
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, dtype=np.int32, count=column.offset + len(column) + 1)[column.offset :]
    images = np.frombuffer(data, dtype=np.uint8)[ends[0] : ends[-1]]
    return Rows(
        buffer=memoryview(images.copy() if copy else images),  # type: ignore[arg-type]
        ends=(ends - ends[0]).tolist(),
        patch_ids=table.column("patch_id").to_pylist(),
        tissues=table.column("tissue").to_pylist(),
        biomarkers=table.column("biomarker").to_pylist(),
        where=where,
    )


def read_here(system: fs.FileSystem, groups: Sequence[RowGroup]) -> Iterator[Rows]:
    """Reads row groups in turn by threads of this process, a few ahead; closing it stops them."""
    waiting: deque[Future[Rows]] = deque()
    pool = ThreadPoolExecutor(_READERS, thread_name_prefix="his2lip-read")
    try:
        for group in groups:
            waiting.append(pool.submit(_read, system, group))
            if len(waiting) > _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def place(group: RowGroup) -> str:
    """How an error names a row group."""
    return f"{group.path}, row group {group.index}"


def _read(system: fs.FileSystem, group: RowGroup) -> Rows:
    return unpack(read_row_group(system, group, COLUMNS), place(group), copy=False)
