"""Small generated twins of the ten datasets, as shards that the real datasets' cards and protocols fit."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Protocol

from his2lip.data.shards import DatasetInfo, Patch, ShardWriter
from his2lip.errors import DatasetError, did_you_mean
from his2lip.synthetic.cases import keyed_rng
from his2lip.synthetic.nuclei import nuclei
from his2lip.synthetic.rows import TwinRow, card_of, draw
from his2lip.synthetic.twin_plans import PLANS, TwinPlan

VERSION = 2  # of the generator; it is raised when any pixel or column changes

MAX_SCALE = 1000
GENERATED_ONLY = {"nuclei": nuclei}  # datasets to train on that are no twin of a published one
ROW_GROUP_BYTES = 2 << 20  # small, so that a twin has several row groups, as a real dataset has


class Mapper(Protocol):
    """Applies a function to rows and returns the results in their order, such as the builtin `map`."""

    def __call__(
        self, function: Callable[[TwinRow], bytes], rows: Sequence[TwinRow], /
    ) -> Iterable[bytes]: ...


def twin_names() -> list[str]:
    """Names of the datasets that have a twin."""
    return list(PLANS)


def twin_rows(name: str, *, seed: int = 0, scale: float = 1.0) -> list[TwinRow]:
    """The rows of a twin, whose images are not drawn yet, in an order that is shuffled by the seed.

    scale  factor of the twin's numbers of cases, above 0 and at most MAX_SCALE
    Raises DatasetError for an unknown name, or a scale out of range.
    """
    plans = {**PLANS, **GENERATED_ONLY}
    if name not in plans:
        what, fix = f"no dataset '{name}' has a generated twin", did_you_mean(name, plans)
        raise DatasetError(what, key=name, fix=fix)
    if not 0 < scale <= MAX_SCALE:
        fix = f"use a factor above 0 and at most {MAX_SCALE}"
        raise DatasetError(f"a twin cannot have scale {scale:g}", key="--scale", fix=fix)
    rows = list(plans[name](TwinPlan(name, seed, scale)))
    return [rows[i] for i in keyed_rng(seed, name, "order").permutation(len(rows))]


def twin_patches(name: str, *, seed: int = 0, scale: float = 1.0, mapper: Mapper = map) -> Iterator[Patch]:
    """The patches of a twin, drawn by `mapper`, in the order of `twin_rows`."""
    rows = twin_rows(name, seed=seed, scale=scale)
    for row, image in zip(rows, mapper(draw, rows), strict=True):
        yield _patch(row, image)


def write_twin(
    name: str,
    out_uri: str | Path,
    *,
    seed: int = 0,
    scale: float = 1.0,
    mapper: Mapper = map,
    progress: Callable[[int], None] | None = None,
) -> DatasetInfo:
    """Writes the generated twin of a dataset as shards; dataset.json marks it as generated.

    scale     factor of the twin's numbers of cases
    mapper    draws the images, for example in several processes; it does not change the bytes
    progress  called with the number of patches written since its last call
    Raises DatasetError for an unknown name, or a scale out of range.
    """
    from threadpoolctl import threadpool_limits

    writer = ShardWriter(
        out_uri,
        card=card_of(name),
        generated=True,
        view=twin_view(seed, scale),
        row_group_bytes=ROW_GROUP_BYTES,
    )
    with threadpool_limits(1), writer:  # matrix products of one patch are too small for several threads
        for patch in twin_patches(name, seed=seed, scale=scale, mapper=mapper):
            writer.add(patch)
            if progress is not None:
                progress(1)
        return writer.close()


def twin_view(seed: int, scale: float) -> str:
    """The `view` in dataset.json of a twin. Twins of one dataset with equal views have equal bytes."""
    return f"generated(seed={seed}, scale={scale:g}, version={VERSION})"


@contextmanager
def process_mapper(workers: int) -> Iterator[Mapper]:
    """A mapper over `workers` new processes with one thread each, which serves any number of twins."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_begin) as pool:
        yield lambda function, rows: pool.map(function, rows, chunksize=16)


def _begin() -> None:
    """Limits linear algebra to one thread, since the matrix products are too small for several.

    The process also ends where the one that started it is killed; the pool would wait for ever.
    """
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)


def _patch(row: TwinRow, image: bytes) -> Patch:
    columns = {"stain": row.stain} | row.columns
    return Patch(
        patch_id=row.patch_id, image=image, dataset=row.dataset, split=row.split, width=row.size,
        height=row.size, **columns,
    )  # fmt: skip
