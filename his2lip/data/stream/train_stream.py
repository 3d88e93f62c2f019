"""The training stream: this rank's batches of a split, decoded by threads a few batches ahead."""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from his2lip.data.captions import CaptionBank, RowCaptions, Subject, captioned
from his2lip.data.images import sampled, stained_shares
from his2lip.data.shards import RowGroup, ShardSet, Staining, Statement, id_key, open_shards, statement
from his2lip.data.stream.augment import PRESETS, Augment, CaptionDraw, Pixels, with_class_captions
from his2lip.data.stream.batch import Batch
from his2lip.data.stream.buffers import BatchMemory
from his2lip.data.stream.decode import decode_into
from his2lip.data.stream.findings import Finding, Findings
from his2lip.data.stream.order import Bools, Ints, Plan
from his2lip.data.stream.row_groups import Pick, ReadAhead, RowBuffer, Rows, read_here
from his2lip.errors import DatasetError, ImageError
from his2lip.runtime import usable_cpus
from his2lip.taxonomy import BIOMARKERS, TISSUES, biomarker_id, tissue_id

# Starting Ray Data takes 4 s of processor time: on two cores an epoch of 1 GB through it takes 1.4 times as
# long as one that this process reads (docs/performance.md). So Ray reads what comes after the first 2 GB.
HEAD_BYTES = 2 << 30
_MEASURED = frozenset(["DAB", None])  # the stains whose area is measured
_LEAST, _MOST = 4, 64  # images that a thread decodes without asking for more
_USED = 2  # batches that the caller may hold at once and still have their memory used again
_AHEAD = 2  # row groups drawn before the row buffer takes them


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """What the batches of a stream are, and how they are read.

    batch_size   B, the global batch over all ranks
    shrink       lets a split of fewer rows than B give smaller batches; otherwise it is refused
    lanes, window, balance   see `order.Plan`
    image_size   S: the images of a batch are (B / world, 3, S, S)
    interpolation   the filter for images of other sizes: bicubic or bilinear
    augment      changes of a patch, keyed by (seed, epoch, patch_id); True means flips and quarter turns
    caption_dropout  share of captions that are replaced by the names of their classes, by the same key
    sampling     "epoch": the bank draws a caption per epoch; "released": one per patch (`RowCaptions`)
    loader       "ray": Ray Data reads and this process decodes; "local": this process does both, without Ray
    decode_threads   default: one per usable core
    prefetch     batches that are decoded ahead
    head_bytes   bytes of the first row groups that this process reads itself, without Ray
    """

    seed: int
    batch_size: int
    image_size: int
    lanes: int
    window: int
    balance: float = 0.0
    shrink: bool = False
    interpolation: str = "bicubic"
    augment: Augment | bool = True
    caption_dropout: float = 0.0
    sampling: Literal["epoch", "released"] = "epoch"
    loader: Literal["ray", "local"] = "ray"
    decode_threads: int | None = None
    prefetch: int = 4
    head_bytes: int = HEAD_BYTES


class TrainStream:
    """This rank's share of each global batch, as a stream of `Batch`.

    split  any split whose role is not `report`, which training may not read
    bank   draws captions by (seed, epoch, patch_id); patches without a caption in it are left out

    Raises DatasetError for data that cannot be read, and ConfigError for options that do not fit together.
    """

    def __init__(
        self,
        shards_uri: str,
        split: str,
        bank: CaptionBank,
        options: StreamOptions,
        *,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._options, self._world = options, world
        self._shards = open_shards(shards_uri)
        _refuse_report(self._shards, split)
        self._groups = self._shards.row_groups(split)
        pairs, keep = _pairs(self._shards, split, bank)
        found = np.unique(pairs if keep is None else pairs[keep]).tolist()
        if len(found) == 1 and not options.shrink:
            _refuse_alike(self._shards, split, bank, found[0], keep)
        # Whether all patches have one known tissue type and one known biomarker.
        self.one_pair = len(found) == 1 and None not in _names(found[0])
        self.plan = _plan([group.rows for group in self._groups], pairs, keep, options)
        self._lanes = self.plan.rank_lanes(rank, world)
        draw = bank.draw if options.sampling == "epoch" else self._by_row(split, bank).draw
        augment = PRESETS[options.augment] if isinstance(options.augment, bool) else options.augment
        self._recipe = _Recipe(
            seed=options.seed,
            size=options.image_size,
            interpolation=options.interpolation,
            augment=augment,
            draw=with_class_captions(draw, options.caption_dropout),
            follows=functools.cache(bank.follows_staining),
            state=functools.cache(functools.partial(_statement, self._shards.info.card)),
            findings=Findings(len(pairs)),
        )
        self._decoder: BatchDecoder | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in one epoch. The remaining patches are left out, others in each epoch."""
        return self.plan.steps_per_epoch

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps [start, stop) as one stream over their epochs. It ends an earlier stream."""
        self.close()
        reads = self.plan.reads(start, stop, self._lanes)
        groups = [self._groups[group] for group in reads.group.tolist()]
        arriving = ReadAhead(self._rows(groups), _AHEAD)
        decoder = self._decoder = BatchDecoder(
            self.plan,
            RowBuffer(self.plan, self._lanes, reads, arriving),
            self._recipe,
            steps=range(start, stop),
            threads=self._options.decode_threads or usable_cpus(),
            prefetch=self._options.prefetch,
        )
        try:
            yield from decoder
        finally:
            decoder.close()

    def close(self) -> None:
        """Stops reading and decoding, and ends an open iterator. No thread keeps running."""
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None

    def __enter__(self) -> TrainStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _by_row(self, split: str, bank: CaptionBank) -> RowCaptions:
        return RowCaptions(bank, self._shards.table(split, ["patch_id", "tissue", "biomarker"]))

    def _rows(self, groups: list[RowGroup]) -> Generator[Rows, None, None]:
        system, head_bytes = self._shards.filesystem, self._options.head_bytes
        if self._options.loader == "local":
            return read_here(system, groups)
        from his2lip.data.stream.ray_reader import read_by_ray

        return read_by_ray(system, groups, head_bytes=head_bytes, ranks=self._world)


def rows_with_captions(shards: ShardSet, split: str, bank: CaptionBank) -> Bools | None:
    """bool (N,): the rows of a split that training with this bank reads; None: all of them."""
    return _pairs(shards, split, bank)[1]


def _refuse_report(shards: ShardSet, split: str) -> None:
    if shards.info.roles.get(split) == "report":
        what = f"the split '{split}' is for reporting: training may not read it"
        others = [name for name in shards.splits if shards.info.roles.get(name) != "report"]
        fix = f"use {' or '.join(others)}" if others else None
        raise DatasetError(what, where=shards.uri, key="split", fix=fix)


def _plan(sizes: list[int], pairs: Ints, keep: Bools | None, options: StreamOptions) -> Plan:
    batch_size = options.batch_size
    if options.shrink:
        rows = sum(sizes) if keep is None else int(keep.sum())
        batch_size = max(min(batch_size, rows) // options.lanes, 1) * options.lanes
    return Plan(
        sizes,
        seed=options.seed,
        batch_size=batch_size,
        lanes=options.lanes,
        window=options.window,
        keep=keep,
        pairs=pairs,
        balance=options.balance,
    )


def _refuse_alike(shards: ShardSet, split: str, bank: CaptionBank, pair: int, keep: Bools | None) -> None:
    """Raises DatasetError where captions do not tell the patches of one pair apart: nothing could be learnt.

    Captions that follow staining tell apart what labels state, and what is measured.
    """
    tissue, biomarker = _names(pair)
    table = shards.table(split, ["label", "score", "stain"])
    if keep is not None:
        table = table.filter(pa.array(keep))
    if bank.follows_staining(tissue, biomarker):
        card = shards.info.card
        rows = table.group_by(["label", "score", "stain"], use_threads=False).aggregate([]).to_pylist()
        measured = not _MEASURED.isdisjoint([row.pop("stain") for row in rows])
        stated = {statement(card, tissue=tissue, biomarker=biomarker, **row) for row in rows}
        if measured or len(stated) > 1:
            return
        beside = "labels"
    else:
        beside = "captions that ignore staining and labels"
    names = f"{tissue or 'unknown'} with {biomarker or 'unknown'}"
    what = (
        f"all {len(table):,} patches of the split '{split}' have one pair of tissue type and biomarker "
        f"({names}), and {beside} do not tell them apart either"
    )
    fix = "train on patches of several tissue types, biomarkers or classes, with data.captions=templates"
    raise DatasetError(what, where=shards.uri, key="data.split", fix=fix)


def _names(pair: int) -> tuple[str | None, str | None]:
    """The names of a pair's number (`_pairs`)."""
    tissue, biomarker = divmod(pair, len(BIOMARKERS) + 1)
    return (*TISSUES, None)[tissue], (*BIOMARKERS, None)[biomarker]


def _pairs(shards: ShardSet, split: str, bank: CaptionBank) -> tuple[Ints, Bools | None]:
    """The number of each row's (tissue, biomarker) pair, and which rows have captions (None: all rows)."""
    table = shards.table(split, ["tissue", "biomarker"])
    tissue, biomarker = _ids(table, "tissue", TISSUES), _ids(table, "biomarker", BIOMARKERS)
    pairs = tissue * (len(BIOMARKERS) + 1) + biomarker
    found, inverse = np.unique(pairs, return_inverse=True)
    covered = [bank.covers(*_names(pair)) for pair in found.tolist()]
    return pairs, None if all(covered) else np.array(covered)[inverse]


def _ids(table: pa.Table, column: str, names: tuple[str, ...]) -> Ints:
    """The place of each value among `names`; one past the last for a missing label."""
    places = pc.index_in(table.column(column), pa.array(names)).fill_null(len(names))
    return places.to_numpy().astype(np.int64)


@dataclass(frozen=True)
class _Recipe:
    """How a row becomes an image and a caption.

    findings  of the rows whose whole image was measured
    """

    seed: int
    size: int
    interpolation: str
    augment: Augment
    draw: CaptionDraw
    follows: Callable[[str | None, str | None], bool]
    state: Callable[[str | None, str | None, str | None, str | None], Statement]
    findings: Findings

    def measures(self, rows: Rows, row: int) -> bool:
        """Whether the caption of a row depends on how much of its image is stained."""
        return rows.stains[row] in _MEASURED and self.follows(rows.tissues[row], rows.biomarkers[row])

    def finding(self, rows: Rows, row: int, share: float | None) -> Finding:
        """What the caption of a row states of its staining; `share` of it is stained, None: unknown.

        Both parts are None where the captions of its pair do not depend on them.
        """
        tissue, biomarker = rows.tissues[row], rows.biomarkers[row]
        if not self.follows(tissue, biomarker):
            return None, None
        return captioned(self.state(tissue, biomarker, rows.labels[row], rows.scores[row]), share)


def _statement(
    card: Mapping[str, Any],
    tissue: str | None,
    biomarker: str | None,
    label: str | None,
    score: str | None,
) -> Statement:
    return statement(card, tissue=tissue, biomarker=biomarker, label=label, score=score)


@functools.cache
def _finding(staining: Staining | None, described: str | None) -> int:
    """A number below 2^63 for each staining band and class, the same on every rank; -1 for neither."""
    if staining is None and described is None:
        return -1
    return id_key(f"{staining}\n{described}") >> 1


class BatchDecoder:
    """Iterates over the batches of `steps`. Threads decode `prefetch` of them ahead, in place.

    `close` may be called at any time and from any thread.
    """

    def __init__(
        self, plan: Plan, buffer: RowBuffer, recipe: _Recipe, *, steps: range, threads: int, prefetch: int
    ) -> None:
        self._plan, self._buffer, self._recipe = plan, buffer, recipe
        self._steps, self._threads, self._prefetch = steps, threads, prefetch
        self._free = threading.Semaphore(prefetch)
        self._memory = BatchMemory(prefetch + _USED)
        self._ready: queue.SimpleQueue[_Pending | BaseException | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="his2lip-decode")
        self._thread = threading.Thread(target=self._run, name="his2lip-batches", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Batch]:
        while (item := self._ready.get()) is not None and not self._closed.is_set():
            if isinstance(item, BaseException):
                raise item
            batch = _finish(item)
            self._free.release()
            yield batch

    def close(self) -> None:
        """Stops reading and decoding, and waits until both have stopped."""
        self._closed.set()
        self._free.release()
        self._thread.join()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._ready.put(None)

    def _run(self) -> None:
        try:
            for step in self._steps:
                self._free.acquire()
                if self._closed.is_set():
                    return
                self._ready.put(self._start(step))
                self._buffer.fill()
            self._ready.put(None)
        except BaseException as error:
            self._ready.put(error)
        finally:
            self._buffer.close()

    def _start(self, step: int) -> _Pending:
        """Gives the rows of one step to the decoding threads, in a few parts."""
        epoch = self._plan.epoch_of(step)
        picks = self._buffer.pick(step)
        if step % self._plan.steps_per_epoch == 0 and step + self._plan.steps_per_epoch < self._steps.stop:
            self._pool.submit(self._plan.epoch, epoch + 1)  # shuffled before it is needed
        size = self._recipe.size
        images = self._memory.take((len(picks), size, size, 3))
        # Two parts per thread of all batches that are decoded ahead: fewer calls where threads are many.
        length = min(max(len(picks) * self._prefetch // (2 * self._threads), _LEAST), _MOST)
        parts = [
            self._pool.submit(_fill, picks[at : at + length], images[at : at + length], self._recipe, epoch)
            for at in range(0, len(picks), length)
        ]
        return _Pending(step, images, parts)


class _Labels(NamedTuple):
    """The captions, ids and labels of some rows of a batch."""

    captions: list[str]
    patch_ids: list[str]
    tissue: list[int]
    biomarker: list[int]
    finding: list[int]


@dataclass(frozen=True)
class _Pending:
    """A batch whose parts are being decoded."""

    step: int
    images: Pixels
    parts: list[Future[_Labels]]


def _fill(picks: list[Pick], images: Pixels, recipe: _Recipe, epoch: int) -> _Labels:
    """Decodes some rows of a batch into their slots, and draws their captions."""
    keys = [rows.patch_ids[row] + (f"\n{copy}" if copy else "") for rows, row, _, copy in picks]
    findings: list[Finding | None] = []
    looks = np.empty_like(sampled(images).transpose(0, 3, 1, 2), order="C")  # what is measured, (N, 3, H, W)
    measured: list[int] = []  # the place among the picks of each look
    cropped: set[int] = set()
    for place, (rows, row, number, _) in enumerate(picks):
        change = recipe.augment.draw(recipe.seed, epoch, keys[place])
        try:
            pixels = decode_into(
                rows.image(row), images[place], change=change, interpolation=recipe.interpolation
            )
        except ImageError as error:
            where = f"{rows.patch_ids[row]} in {rows.where}"
            raise DatasetError(
                error.what, where=where, key=error.key, fix="prepare the dataset again"
            ) from None
        if change.box is not None:
            cropped.add(place)
        findings.append(None if place in cropped else recipe.findings[number])
        if findings[place] is None and recipe.measures(rows, row):
            looks[len(measured)] = sampled(pixels).transpose(2, 0, 1)
            measured.append(place)
    stained = stained_shares(looks[: len(measured)].transpose(0, 2, 3, 1))
    shares = dict(zip(measured, stained, strict=True))
    labels = _Labels([], [], [], [], [])
    for place, (rows, row, number, _) in enumerate(picks):
        tissue, biomarker = rows.tissues[row], rows.biomarkers[row]
        finding = findings[place]
        if finding is None:
            finding = recipe.finding(rows, row, shares.get(place))
            if place not in cropped:
                recipe.findings[number] = finding
        subject = Subject(tissue, biomarker, *finding)
        labels.captions.append(recipe.draw(recipe.seed, epoch, keys[place], subject))
        labels.patch_ids.append(rows.patch_ids[row])
        labels.tissue.append(tissue_id(tissue))
        labels.biomarker.append(biomarker_id(biomarker))
        labels.finding.append(_finding(*finding))
    return labels


def _finish(pending: _Pending) -> Batch:
    """Waits for the parts of a batch. Images are HWC in memory and seen as CHW: torch's channels_last."""
    parts = [part.result() for part in pending.parts]
    return Batch(
        images=torch.from_numpy(pending.images).permute(0, 3, 1, 2),
        captions=[caption for part in parts for caption in part.captions],
        tissue=torch.tensor([number for part in parts for number in part.tissue]),
        biomarker=torch.tensor([number for part in parts for number in part.biomarker]),
        finding=torch.tensor([number for part in parts for number in part.finding]),
        patch_ids=[patch_id for part in parts for patch_id in part.patch_ids],
        step=pending.step,
    )
