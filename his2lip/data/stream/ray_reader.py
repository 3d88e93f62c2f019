"""Reads row groups by Ray Data: one ordered stream of encoded bytes over all epochs.

Ray's tasks only read. Their blocks pass through the object store once and are copied into this process, which
decodes them. So the store contains a few row groups in transit, and the lanes' windows lie in this process.
"""

from __future__ import annotations

import functools
import itertools
import logging
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray
import ray.data
from pyarrow import fs
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.exceptions import RayTaskError

from his2lip.data.shards import RowGroup
from his2lip.data.stream.row_groups import ReadAhead, Rows, read_here, read_tables, unpack
from his2lip.runtime import quiet_ray, start_ray

_READS = 64  # row groups per task: a task costs milliseconds, and one that dies reads from its start again
_AHEAD = 4  # row groups waiting in this process, since several lanes may need one at the same time
_PACE_S = 0.02
_STORE_SHARE = 0.3  # share of the node's object store for all its ranks together
# Ray sends a block once it has this share of a row group's bytes, so that a row group is one block. Blocks
# are smaller where the store has no room for _BLOCKS of them, but not below _LEAST_BLOCK bytes, where the
# handling costs more than the memory saved.
_BLOCK_SHARE = 0.8
_BLOCKS = 6
_LEAST_BLOCK = 1 << 20


class _RowGroups(Datasource):
    """Row groups in a given order, read by few long tasks that yield them one by one."""

    def __init__(self, system: fs.FileSystem, groups: Sequence[RowGroup]) -> None:
        super().__init__()
        self._system, self._groups = system, groups

    def estimate_inmemory_data_size(self) -> int:
        return sum(group.bytes for group in self._groups)

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        starts = range(0, len(self._groups), _READS)
        return [self._task(self._groups[start : start + _READS]) for start in starts]

    def _task(self, groups: Sequence[RowGroup]) -> ReadTask:
        rows, size = sum(group.rows for group in groups), sum(group.bytes for group in groups)
        metadata = BlockMetadata(num_rows=rows, size_bytes=size, input_files=None, exec_stats=None)
        return ReadTask(functools.partial(_read, self._system, groups), metadata)


class _Pace:
    """Limits Ray's scheduling loop, a thread of this process, to fifty turns per second.

    Without it the loop spins while tasks have blocks ready that it may not take yet. That is always so where
    the model is slower than the reading; the loop then uses a core and takes the GIL from the decoding
    threads.
    """

    def __init__(self) -> None:
        self._next = 0.0

    def on_execution_step(self, executor: object) -> None:
        now = time.monotonic()
        time.sleep(max(0.0, self._next - now))
        self._next = max(now, self._next) + _PACE_S

    def before_execution_starts(self, executor: object) -> None: ...

    def after_execution_succeeds(self, executor: object) -> None: ...

    def after_execution_fails(self, executor: object, error: Exception) -> None: ...


def read_by_ray(
    system: fs.FileSystem, groups: Sequence[RowGroup], *, head_bytes: int, ranks: int
) -> Generator[Rows, None, None]:
    """Reads row groups in order by Ray Data; closing the iterator ends the tasks.

    Ray's reading processes take seconds to start. Meanwhile this process reads the first row groups itself,
    so that the first batch does not wait; where these are all, Ray is not used.

    head_bytes  bytes that this process reads itself
    ranks       largest number of streams that share the node's object store
    """
    head = head_reads(groups, head_bytes)
    if len(groups) <= head:
        yield from read_here(system, groups)
        return
    start_ray()
    rows = ReadAhead(_through_ray(system, groups[head:], ranks), _AHEAD)
    try:
        yield from read_here(system, groups[:head])
        yield from rows
    finally:
        rows.close()


def head_reads(groups: Sequence[RowGroup], head_bytes: int) -> int:
    """How many of the first row groups have at most `head_bytes` together."""
    sizes = itertools.accumulate(group.bytes for group in groups)
    return sum(1 for _ in itertools.takewhile(lambda size: size <= head_bytes, sizes))


def _through_ray(
    system: fs.FileSystem, groups: Sequence[RowGroup], ranks: int
) -> Generator[Rows, None, None]:
    dataset = _dataset(system, groups, ranks)
    blocks = iter(dataset.iter_batches(batch_size=None, batch_format=None))
    try:
        yield from _regrouped(blocks, groups)
    except RayTaskError as error:
        raise error.cause from None  # without the traceback of the task
    finally:
        blocks.close()  # type: ignore[attr-defined]  # closing the generator ends the execution


def _dataset(system: fs.FileSystem, groups: Sequence[RowGroup], ranks: int) -> ray.data.Dataset:
    quiet_ray()
    # Ray Data warns once per process that its progress bars are off.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    here = ray.get_runtime_context().get_node_id()
    dataset = ray.data.read_datasource(
        _RowGroups(system, groups),
        num_cpus=0,  # reading mostly waits, and it must not starve where the ranks have all CPUs
        concurrency=1,  # one process reads faster than many cores decode; each takes seconds of CPU to start
        override_num_blocks=-(-len(groups) // _READS),
        # The rank's own node reads, so that no bytes pass between nodes.
        label_selector={"ray.io/node-id": here},
        fallback_strategy=[{"label_selector": {}}],
    )
    store = _store_bytes(here) * _STORE_SHARE / ranks
    whole = _BLOCK_SHARE * max(group.bytes for group in groups)
    context, options = dataset.context, dataset.context.execution_options
    context.target_max_block_size = max(_LEAST_BLOCK, int(min(whole, store / _BLOCKS)))
    context.custom_execution_callback_classes = [_Pace]
    options.preserve_order = True
    options.resource_limits = options.resource_limits.copy(object_store_memory=store)
    return dataset


def _store_bytes(node: str) -> float:
    """The size of a node's object store."""
    return next(n["Resources"]["object_store_memory"] for n in ray.nodes() if n["NodeID"] == node)


def _read(system: fs.FileSystem, groups: Sequence[RowGroup]) -> Iterable[pa.Table]:
    return read_tables(system, groups)


def _regrouped(tables: Iterator[pa.Table], groups: Sequence[RowGroup]) -> Iterator[Rows]:
    """Row groups again, from Ray's blocks, which may have more or fewer rows."""
    rest = None
    for group in groups:
        parts, missing = [], group.rows
        while missing:
            table = next(tables) if rest is None else rest
            parts.append(table.slice(0, missing))
            rest = table.slice(missing) if len(table) > missing else None
            missing -= len(parts[-1])
        yield unpack(pa.concat_tables(parts), group.path, copy=True)
