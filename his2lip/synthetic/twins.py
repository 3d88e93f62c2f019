"""Small generated twins of the ten datasets, written as shards that the same cards and protocols score."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

from his2lip.data.cards import load_card
from his2lip.data.shards import DatasetInfo, Patch, ShardWriter
from his2lip.errors import DatasetError, did_you_mean
from his2lip.synthetic.cases import keyed_rng
from his2lip.synthetic.rows import TwinRow, draw
from his2lip.synthetic.twin_plans import PLANS, TwinPlan

VERSION = 1  # of the generator: a change of any pixel or column raises it
SCALES: dict[str, float] = {"demo": 1.0, "small": 0.25}
ROW_GROUP_BYTES = 2 << 20  # small, so that a twin has several row groups, like a real dataset


class Mapper(Protocol):
    """Applies a function to rows in their order: the builtin `map`, that of a pool, or one over Ray tasks."""

    def __call__(
        self, function: Callable[[TwinRow], bytes], rows: Sequence[TwinRow], /
    ) -> Iterable[bytes]: ...


def twin_names() -> list[str]:
    """Names of the datasets that have a twin."""
    return list(PLANS)


def twin_rows(name: str, *, seed: int = 0, scale: str | float = "demo", he: bool = False) -> list[TwinRow]:
    """The rows of a twin, not drawn yet, in an order shuffled by the seed.

    `he` adds the H&E images that stand beside immunostained ones. The datasets' readers pass them over, so
    shards do not hold them. Raises DatasetError for an unknown name or scale.
    """
    if name not in PLANS:
        raise DatasetError(f"no dataset '{name}' has a generated twin", fix=did_you_mean(name, PLANS))
    rows = [row for row in PLANS[name](TwinPlan(name, seed, _scale(scale))) if he or row.stain != "H&E"]
    return [rows[i] for i in keyed_rng(seed, name, "order").permutation(len(rows))]


def twin_patches(
    name: str, *, seed: int = 0, scale: str | float = "demo", mapper: Mapper = map
) -> Iterator[Patch]:
    """The patches of a twin, in the order of `twin_rows` for any mapper."""
    rows = twin_rows(name, seed=seed, scale=scale)
    for row, image in zip(rows, mapper(draw, rows), strict=True):
        yield _patch(row, image)


def write_twin(
    name: str,
    out_uri: str | Path,
    *,
    seed: int = 0,
    scale: str | float = "demo",
    workers: int = 1,
    mapper: Mapper | None = None,
    row_group_bytes: int = ROW_GROUP_BYTES,
    progress: Callable[[int], None] | None = None,
) -> DatasetInfo:
    """Writes the generated twin of a dataset as shards; dataset.json marks it as generated.

    `scale` is "demo", "small" or a factor on the demo's numbers. The bytes are the same whatever `workers`
    (processes of this machine) or `mapper` (the caller's own way to spread work) is. `progress` is called
    with the number of patches written since the last call. Raises DatasetError for an unknown name or scale.
    """
    from threadpoolctl import threadpool_limits

    patches = _drawn(name, seed, scale, workers, mapper)
    writer = ShardWriter(
        out_uri,
        card=load_card(name),
        generated=True,
        view=twin_view(seed, scale),
        row_group_bytes=row_group_bytes,
    )
    with threadpool_limits(1), writer:  # matrix products of one patch are too small to share
        for patch in patches:
            writer.add(patch)
            if progress is not None:
                progress(1)
        return writer.close()


def twin_view(seed: int = 0, scale: str | float = "demo") -> str:
    """The view in dataset.json, which records how a twin was made: equal views mean equal bytes."""
    return f"generated(seed={seed}, scale={_scale(scale):g}, version={VERSION})"


def _drawn(name: str, seed: int, scale: str | float, workers: int, mapper: Mapper | None) -> Iterator[Patch]:
    if mapper is not None or workers <= 1:
        yield from twin_patches(name, seed=seed, scale=scale, mapper=mapper or map)
        return
    with process_mapper(workers) as spread:
        yield from twin_patches(name, seed=seed, scale=scale, mapper=spread)


@contextmanager
def process_mapper(workers: int) -> Iterator[Mapper]:
    """A mapper over `workers` fresh processes of one thread each, to be used for several twins."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        yield lambda function, rows: pool.map(function, rows, chunksize=16)


def _one_thread() -> None:
    """Limits linear algebra to one thread: the matrix products are too small to share."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)


def _patch(row: TwinRow, image: bytes) -> Patch:
    columns = {"stain": row.stain} | row.columns
    return Patch(
        patch_id=row.patch_id, image=image, dataset=row.dataset, split=row.split, width=row.size,
        height=row.size, **columns,
    )  # fmt: skip


def _scale(scale: str | float) -> float:
    factor = SCALES.get(scale) if isinstance(scale, str) else float(scale)
    if factor is None or not 0 < factor <= 1000:
        raise DatasetError(
            f"a twin cannot have scale '{scale}'", fix="use demo, small, or a factor such as 0.5"
        )
    return factor
