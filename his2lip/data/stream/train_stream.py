"""The feeder: has threads decode batches in place, a few batches ahead of their consumer."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from his2lip.data.captions import CaptionBank, RowCaptions
from his2lip.data.shards import LEARNING_ROLES, RowGroup, ShardSet, open_shards, resolve_split
from his2lip.data.stream.augment import PRESETS, Augment, Draw, Pixels, with_class_captions
from his2lip.data.stream.batch import Batch
from his2lip.data.stream.decode import decode_into
from his2lip.data.stream.order import Bools, Ints, Plan, Reads
from his2lip.data.stream.row_groups import Ahead, Pick, Rows, Shelf, read_here
from his2lip.errors import ConfigError, DatasetError, ImageError
from his2lip.runtime import usable_cpus
from his2lip.taxonomy import BIOMARKERS, TISSUES, biomarker_id, tissue_id


@dataclass(frozen=True)
class Recipe:
    """How a row becomes a pair: `draw` gives its caption, all else its pixels."""

    seed: int
    size: int
    interpolation: str
    augment: Augment
    draw: Draw


class Labels(NamedTuple):
    """What goes with the pixels of some rows of a batch."""

    captions: list[str]
    patch_ids: list[str]
    tissue: list[int]
    biomarker: list[int]


@dataclass(frozen=True)
class _Pending:
    """A batch whose parts are being decoded."""

    step: int
    images: Pixels
    parts: list[Future[Labels]]


class Feeder:
    """Iterates over the batches of `steps`, drawn from `shelf`; `prefetch` of them are on their way.

    `close` may be called at any time and from any thread.
    """

    def __init__(
        self, plan: Plan, shelf: Shelf, recipe: Recipe, *, steps: range, threads: int, prefetch: int
    ) -> None:
        self._plan, self._shelf, self._recipe, self._steps, self._threads = (
            plan,
            shelf,
            recipe,
            steps,
            threads,
        )
        self._free = threading.Semaphore(prefetch)
        self._ready: queue.SimpleQueue[_Pending | BaseException | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="his2lip-decode")
        self._thread = threading.Thread(target=self._feed, name="his2lip-feed", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Batch]:
        while (item := self._ready.get()) is not None and not self._closed.is_set():
            if isinstance(item, BaseException):
                raise item
            batch = _finish(item)
            self._free.release()
            yield batch

    def close(self) -> None:
        """Stops the feeder, its reads and its decoding, and waits until they have stopped."""
        self._closed.set()
        self._free.release()
        self._thread.join()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._ready.put(None)

    def _feed(self) -> None:
        try:
            for step in self._steps:
                self._free.acquire()
                if self._closed.is_set():
                    return
                self._ready.put(self._start(step))
                self._shelf.fill()
            self._ready.put(None)
        except BaseException as error:
            self._ready.put(error)
        finally:
            self._shelf.close()

    def _start(self, step: int) -> _Pending:
        """Hands the rows of one step to the decoding threads, in a few parts."""
        epoch = self._plan.epoch_of(step)
        picks = self._shelf.pick(step)
        if step % self._plan.steps_per_epoch == 0 and step + self._plan.steps_per_epoch < self._steps.stop:
            self._pool.submit(self._plan.epoch, epoch + 1)  # shuffled before it is needed
        size = self._recipe.size
        images = np.empty((len(picks), size, size, 3), dtype=np.uint8)
        length = max(4, -(-len(picks) // (2 * self._threads)))
        parts = [
            self._pool.submit(_fill, picks[at : at + length], images[at : at + length], self._recipe, epoch)
            for at in range(0, len(picks), length)
        ]
        return _Pending(step, images, parts)


def _fill(picks: list[Pick], images: Pixels, recipe: Recipe, epoch: int) -> Labels:
    """Decodes some rows of a batch into their slots, and draws their captions."""
    labels = Labels([], [], [], [])
    for (rows, row, copy), out in zip(picks, images, strict=True):
        patch_id, tissue, biomarker = rows.patch_ids[row], rows.tissues[row], rows.biomarkers[row]
        key = patch_id if copy == 0 else f"{patch_id}\n{copy}"
        change = recipe.augment.draw(recipe.seed, epoch, key)
        try:
            decode_into(rows.image(row), out, change=change, interpolation=recipe.interpolation)
        except ImageError as error:
            where = f"{patch_id} in {rows.where}"
            raise DatasetError(error.what, where=where, fix="prepare the dataset again") from None
        labels.captions.append(recipe.draw(recipe.seed, epoch, key, tissue, biomarker))
        labels.patch_ids.append(patch_id)
        labels.tissue.append(tissue_id(tissue))
        labels.biomarker.append(biomarker_id(biomarker))
    return labels


def _finish(pending: _Pending) -> Batch:
    """Waits for the parts of a batch. The images are HWC in memory, seen as CHW: torch's channels_last."""
    parts = [part.result() for part in pending.parts]
    return Batch(
        images=torch.from_numpy(pending.images).permute(0, 3, 1, 2),
        captions=[caption for part in parts for caption in part.captions],
        tissue=torch.tensor([number for part in parts for number in part.tissue]),
        biomarker=torch.tensor([number for part in parts for number in part.biomarker]),
        patch_ids=[patch_id for part in parts for patch_id in part.patch_ids],
        step=pending.step,
    )


Loader = Literal["ray", "local"]
Sampling = Literal["epoch", "released"]

# What eight lanes hold when they start, and two seconds of reading at 8,000 JPEG patches of 224 px a second.
HEAD_BYTES = 384 << 20
_AHEAD = 2  # row groups drawn before the shelf takes them


class TrainStream:
    """An iterable of `Batch`: this rank's share of the global batches start_step .. stop_step - 1.

    split        any split but those of role `report`, which training may not read
    bank         draws captions by (seed, epoch, patch_id); patches that it does not cover sit out
    batch_size   B, the global batch over all ranks
    shrink       a split of fewer rows than that makes smaller batches, and is not refused
    image_size   S: batches hold (B / world, 3, S, S), of other sizes by `interpolation`
    lanes, window, balance   see `order.Plan`
    augment      what changes of a patch by (seed, epoch, patch_id); True: flips and quarter turns
    caption_dropout  share of captions that give way to one of their classes alone, by the same key
    sampling     "epoch": captions as the bank draws them; "released": one a patch (row_captions.py)
    stop_step    None ends with the epoch of `start_step`
    loader       "ray": Ray Data reads, this process decodes; "local": all of it in this process, no Ray
    decode_threads   by default as many as there are usable cores
    prefetch     batches that are decoded ahead
    head_bytes   how much of the first row groups this process reads itself while Ray's processes start

    Raises DatasetError for what cannot be read, ConfigError for options that do not fit together.
    """

    def __init__(
        self,
        shards_uri: str,
        split: str,
        bank: CaptionBank,
        *,
        seed: int,
        batch_size: int,
        shrink: bool = False,
        image_size: int,
        lanes: int = 8,
        window: int = 2,
        balance: float = 0.0,
        interpolation: str = "bicubic",
        augment: Augment | bool = True,
        caption_dropout: float = 0.0,
        sampling: Sampling = "epoch",
        rank: int = 0,
        world: int = 1,
        start_step: int = 0,
        stop_step: int | None = None,
        loader: Loader = "ray",
        decode_threads: int | None = None,
        prefetch: int = 4,
        head_bytes: int = HEAD_BYTES,
    ) -> None:
        if loader not in ("ray", "local"):
            raise ConfigError(f"unknown loader '{loader}'", fix="ray and local are known")
        self._shards = open_shards(shards_uri)
        split = resolve_split(self._shards, split, roles=LEARNING_ROLES, key="split")
        self._groups = self._shards.row_groups(split)
        cells, keep = _cells(self._shards, split, bank)
        sizes = [group.rows for group in self._groups]
        if shrink:
            rows = sum(sizes) if keep is None else int(keep.sum())
            batch_size = max(min(batch_size, rows) // lanes, 1) * lanes
        self.plan = Plan(
            sizes,
            seed=seed,
            batch_size=batch_size,
            lanes=lanes,
            window=window,
            keep=keep,
            cells=cells,
            balance=balance,
        )
        self._lanes = self.plan.rank_lanes(rank, world)
        draw = bank.draw if sampling == "epoch" else self._by_row(split, bank).draw
        self._recipe = Recipe(
            seed=seed,
            size=image_size,
            interpolation=interpolation,
            augment=PRESETS[augment] if isinstance(augment, bool) else augment,
            draw=with_class_captions(draw, caption_dropout),
        )
        self._start, self._stop = start_step, stop_step
        self._loader, self._world, self._head_bytes = loader, world, head_bytes
        self._threads, self._prefetch = decode_threads or usable_cpus(), prefetch
        self._feeder: Feeder | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in one epoch; the remainder of the patches sits out, another one each time."""
        return self.plan.steps_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        stop = self._stop
        if stop is None:
            stop = (self.plan.epoch_of(self._start) + 1) * self.steps_per_epoch
        return self.batches(self._start, stop)

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps [start, stop) as one stream, whatever epochs it spans; ends an earlier one."""
        self.close()
        reads = self.plan.reads(start, stop, self._lanes)
        arriving = Ahead(self._rows(self._row_groups(reads)), _AHEAD)
        feeder = self._feeder = Feeder(
            self.plan,
            Shelf(self.plan, self._lanes, reads, arriving),
            self._recipe,
            steps=range(start, stop),
            threads=self._threads,
            prefetch=self._prefetch,
        )
        try:
            yield from feeder
        finally:
            feeder.close()

    def close(self) -> None:
        """Stops reading and decoding; nothing keeps running. An iterator that is open ends."""
        if self._feeder is not None:
            self._feeder.close()
            self._feeder = None

    def __enter__(self) -> TrainStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def reads(self, start: int, stop: int) -> list[RowGroup]:
        """The row groups that steps [start, stop) of this rank need, in the order in which they are read."""
        return self._row_groups(self.plan.reads(start, stop, self._lanes))

    def _by_row(self, split: str, bank: CaptionBank) -> RowCaptions:
        return RowCaptions(bank, self._shards.table(split, ["patch_id", "tissue", "biomarker"]))

    def _row_groups(self, reads: Reads) -> list[RowGroup]:
        return [self._groups[group] for group in reads.group.tolist()]

    def _rows(self, groups: list[RowGroup]) -> Generator[Rows, None, None]:
        if self._loader == "local":
            return read_here(self._shards.filesystem, groups)
        from his2lip.data.stream.ray_reader import read_by_ray

        return read_by_ray(self._shards.filesystem, groups, head_bytes=self._head_bytes, ranks=self._world)


def _cells(shards: ShardSet, split: str, bank: CaptionBank) -> tuple[Ints, Bools | None]:
    """The (tissue, biomarker) cell of each row, and which rows have captions (None: all may be drawn)."""
    table = shards.table(split, ["tissue", "biomarker"])
    tissue, biomarker = _ids(table, "tissue", TISSUES), _ids(table, "biomarker", BIOMARKERS)
    cells = tissue * (len(BIOMARKERS) + 1) + biomarker
    found, inverse = np.unique(cells, return_inverse=True)
    pairs = [divmod(cell, len(BIOMARKERS) + 1) for cell in found.tolist()]
    covered = [bank.covers((*TISSUES, None)[t], (*BIOMARKERS, None)[b]) for t, b in pairs]
    return cells, None if all(covered) else np.array(covered)[inverse]


def _ids(table: pa.Table, column: str, names: tuple[str, ...]) -> Ints:
    """The place of each value among `names`; one past the last for a missing label."""
    places = pc.index_in(table.column(column), pa.array(names)).fill_null(len(names))
    return places.to_numpy().astype(np.int64)
