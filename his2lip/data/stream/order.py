"""The order of training data: a pure function from (seed, step) to row numbers, whatever ranks or restarts.

An epoch is a seeded permutation of the row groups; the rows of each row group are permuted too. The sequence
is cut into V equal lanes. Inside a lane each row moves back by up to `window` row groups. This is a sliding
shuffle, like MosaicML Streaming's `py1e`: a shuffle by blocks needs two blocks at once where one ends and the
next begins, and its first batch waits for a whole block; here it waits for one row group per lane. The global
batch takes the same number of rows from every lane, and a rank owns contiguous lanes. So reads stay
sequential, and the order depends on V and not on the number of ranks.

Random numbers come from numpy's bit generators only. Their streams never change (NEP 19), unlike those of
`Generator`'s methods, so that an upgrade of numpy does not change the order of a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from his2lip.errors import ConfigError, DatasetError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_GROUPS, _ROWS, _SHIFT, _DRAWS = range(4)  # purpose of a random stream; never renumber


class Epoch(NamedTuple):
    """One epoch by lanes: `rows` int64 (V, L) row numbers, `copies` int64 (V, L) numbers of repeated draws.

    A balanced plan draws a row several times. `copies` numbers these draws from 0, so that each gets its own
    caption and augmentation. In other plans it is 0 everywhere.
    """

    rows: Ints
    copies: Ints


class Reads(NamedTuple):
    """The row groups to read for a span of steps, in the order in which they are needed; all int64 (R,).

    `lane` is the lane that a row group is read for (see `Plan.reading_lane`). `uses` is the number of rows
    that this lane takes from it in that epoch within the span.
    """

    epoch: Ints
    lane: Ints
    group: Ints
    uses: Ints


class Plan:
    """The global batches of a run over row groups of `sizes` rows, whose rows are numbered through from 0.

    batch_size  B, the global batch; a multiple of `lanes`
    lanes       V; with the seed it decides the order. Choose a multiple of every number of ranks to be used
    window      how far a row may move within its lane, in row groups
    keep        bool (rows,): rows that may be drawn; None means all
    pairs       int (rows,): number of each row's (tissue, biomarker) pair; required where balance > 0
    balance     a pair of n rows is drawn in proportion to n^(1 - balance): 0 draws rows as they are, 1 draws
                each pair equally often. The length of an epoch stays the same: some rows of large pairs are
                left out, and rows of small pairs repeat

    Raises ConfigError for options that do not fit together, and DatasetError for too few rows.
    """

    def __init__(
        self,
        sizes: Sequence[int] | Ints,
        *,
        seed: int,
        batch_size: int,
        lanes: int,
        window: int,
        keep: Bools | None = None,
        pairs: Ints | None = None,
        balance: float = 0.0,
    ) -> None:
        _check_options(seed=seed, batch_size=batch_size, lanes=lanes, window=window, balance=balance)
        self.seed, self.batch_size, self.lanes, self.window = seed, batch_size, lanes, window
        self.sizes: Ints = np.asarray(sizes, dtype=np.int64)
        self.starts: Ints = np.concatenate([[0], np.cumsum(self.sizes)])  # group g ends at starts[g + 1]
        self._kept: Ints = np.arange(self.starts[-1]) if keep is None else np.flatnonzero(keep)
        self._weights = _pair_weights(pairs, self._kept, balance) if balance > 0 else None
        self.rows_per_epoch = len(self._kept)
        self.steps_per_epoch = self.rows_per_epoch // batch_size
        self.lane_share = batch_size // lanes  # rows of one lane in one batch
        if self.steps_per_epoch == 0:
            what = f"{self.rows_per_epoch} usable patches do not fill one batch of {batch_size}"
            raise DatasetError(what, key="batch_size", fix="lower data.batch_size, or add patches")
        self._used = self.steps_per_epoch * batch_size  # the remainder differs from epoch to epoch
        # Short lanes need nearly all row groups at once, so a rank reads each only once for all its lanes.
        self._short = self._used * len(self.sizes) <= lanes * (window + 1) * self.rows_per_epoch
        self._recent: dict[int, Epoch] = {}

    def epoch_of(self, step: int) -> int:
        """The epoch that a global step belongs to."""
        return step // self.steps_per_epoch

    def rank_lanes(self, rank: int, world: int) -> range:
        """The contiguous lanes that `rank` of `world` owns. Raises ConfigError unless `world` divides V."""
        if not 0 <= rank < world:
            raise ConfigError(f"rank {rank} is not among {world} workers", key="rank")
        if self.lanes % world:
            what = f"{self.lanes} lanes cannot be shared evenly by {world} workers"
            raise ConfigError(what, key="lanes", fix="set lanes to a multiple of the number of workers")
        share = self.lanes // world
        return range(rank * share, (rank + 1) * share)

    def batch(self, step: int) -> Ints:
        """int64 (B,): row numbers of a step's global batch, lane by lane; rank r has the r-th slice of it."""
        return self.share(step, range(self.lanes)).rows.reshape(-1)

    def share(self, step: int, lanes: range) -> Epoch:
        """The rows and copies that a step takes from `lanes`, int64 (lanes, B/V)."""
        table = self.epoch(self.epoch_of(step))
        at = step % self.steps_per_epoch * self.lane_share
        return Epoch(*(part[lanes.start : lanes.stop, at : at + self.lane_share] for part in table))

    def epoch(self, epoch: int) -> Epoch:
        """The order of one epoch. It takes 0.1 s for MIHIC's 309,698 rows; the last two epochs are cached."""
        known = self._recent.get(epoch)
        if known is None:
            known = self._shuffled(epoch)
            self._recent = dict([*self._recent.items(), (epoch, known)][-2:])
        return known

    def group_of(self, rows: Ints) -> Ints:
        """The row group of each row."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def reading_lane(self, lane: int, lanes: range) -> int:
        """The lane for which `reads` lists the row groups of `lane`: itself, or the first where all share."""
        return lanes.start if self._short else lane

    def reads(self, start: int, stop: int, lanes: range) -> Reads:
        """The row groups that steps [start, stop) take from `lanes`, in the order in which they are needed.

        It is cheap for whole epochs, because it does not shuffle their rows: one stream can span all epochs.
        """
        n = self.steps_per_epoch
        parts = []
        for epoch in range(start // n, -(-stop // n)):
            first, last = max(start - epoch * n, 0), min(stop - epoch * n, n)
            whole = (first, last) == (0, n)
            lane, group, uses = self._pieces(epoch) if whole else self._pieces_within(epoch, first, last)
            mine = (lane >= lanes.start) & (lane < lanes.stop)
            read = Reads(np.full(mine.sum(), epoch), lane[mine], group[mine], uses[mine])
            parts.append(_merged(read, lanes.start) if self._short else read)
        if not parts:
            return Reads(*(np.empty(0, dtype=np.int64) for _ in Reads._fields))
        return Reads(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _shuffled(self, epoch: int) -> Epoch:
        rows, order = self._drawn(epoch), self._group_order(epoch)
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        key = place[self.group_of(rows)] + self._uniform(epoch, _ROWS, len(rows))
        lanes = np.argsort(key, kind="stable")[: self._used].reshape(self.lanes, -1)
        shift = self.window * len(rows) / len(self.sizes)
        key = np.arange(lanes.shape[1]) + shift * self._uniform(epoch, _SHIFT, lanes.size).reshape(
            lanes.shape
        )
        lanes = np.take_along_axis(lanes, np.argsort(key, axis=1, kind="stable"), axis=1)
        if self._weights is None:
            return Epoch(rows[lanes], np.broadcast_to(np.int64(0), lanes.shape))
        return Epoch(rows[lanes], lanes - np.searchsorted(rows, rows)[lanes])

    def _pieces(self, epoch: int) -> tuple[Ints, Ints, Ints]:
        """An epoch cut where row groups and lanes end: lane, group and rows of each piece, by place."""
        order, length = self._group_order(epoch), self._used // self.lanes
        ends = np.cumsum(np.bincount(self.group_of(self._drawn(epoch)), minlength=len(order))[order])
        cuts = np.unique(np.concatenate([[0], ends, np.arange(self.lanes) * length]))
        cuts = cuts[cuts < self._used]
        lane, group = cuts // length, order[np.searchsorted(ends, cuts, side="right")]
        uses = np.diff(cuts, append=self._used)
        by_need = np.lexsort((lane, cuts - lane * length))
        return lane[by_need], group[by_need], uses[by_need]

    def _pieces_within(self, epoch: int, first: int, last: int) -> tuple[Ints, Ints, Ints]:
        """As `_pieces`, for the steps [first, last) of an epoch only."""
        rows = self.epoch(epoch).rows[:, first * self.lane_share : last * self.lane_share]
        lane, group, _ = self._pieces(epoch)
        groups = len(self.sizes)
        lane_groups = np.arange(self.lanes)[:, None] * groups + self.group_of(rows)
        uses = np.bincount(lane_groups.reshape(-1), minlength=self.lanes * groups)[lane * groups + group]
        return lane[uses > 0], group[uses > 0], uses[uses > 0]

    def _group_order(self, epoch: int) -> Ints:
        """The epoch's permutation of row groups."""
        return np.argsort(self._uniform(epoch, _GROUPS, len(self.sizes)), kind="stable")

    def _drawn(self, epoch: int) -> Ints:
        """The epoch's rows in rising order. In a balanced plan a row repeats, or is left out, by its weight.

        A row of weight w comes floor(w) times. Rows whose fraction exceeds a random number by most come once
        more: as many of them as fill the epoch's length.
        """
        if self._weights is None:
            return self._kept
        counts = np.floor(self._weights).astype(np.int64)
        missing = self.rows_per_epoch - int(counts.sum())
        luck = self._uniform(epoch, _DRAWS, self.rows_per_epoch) - (self._weights - counts)
        counts[np.argsort(luck, kind="stable")[:missing]] += 1
        return np.repeat(self._kept, counts)

    def _uniform(self, epoch: int, purpose: int, size: int) -> Floats:
        """float64 (size,) in [0, 1), keyed by seed, epoch and purpose."""
        raw = np.random.PCG64(np.random.SeedSequence([self.seed, epoch, purpose])).random_raw(size)
        return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _merged(reads: Reads, lane: int) -> Reads:
    """One epoch's reads, with each row group once, for one lane."""
    _, first, which = np.unique(reads.group, return_index=True, return_inverse=True)
    uses = np.bincount(which, weights=reads.uses).astype(np.int64)
    order = np.argsort(first)
    kept = first[order]
    return Reads(reads.epoch[kept], np.full(len(kept), lane), reads.group[kept], uses[order])


def _check_options(*, seed: int, batch_size: int, lanes: int, window: int, balance: float) -> None:
    if seed < 0:
        raise ConfigError(f"a seed must be 0 or more, not {seed}", key="seed")
    if lanes < 1 or batch_size < 1 or batch_size % lanes:
        what = f"a batch of {batch_size} cannot be drawn evenly from {lanes} lanes"
        fix = f"make the batch size a multiple of {max(lanes, 1)}, or use fewer lanes"
        raise ConfigError(what, key="batch_size", fix=fix)
    if window < 0:
        raise ConfigError(f"a window must be 0 row groups or more, not {window}", key="window")
    if not 0.0 <= balance <= 1.0:
        what = f"balance must be from 0 (rows as they are) to 1 (all pairs equally often), not {balance}"
        raise ConfigError(what, key="balance")


def _pair_weights(pairs: Ints | None, kept: Ints, balance: float) -> Floats:
    """float64 (kept rows,), mean 1: draws of a row per epoch; a pair of n rows gets ~ n^(1 - balance)."""
    assert pairs is not None, "a balanced plan needs the pair of each row"
    _, pair, counts = np.unique(pairs[kept], return_inverse=True, return_counts=True)
    shares = counts ** (1.0 - balance)
    return (len(kept) * shares / max(shares.sum(), 1.0) / counts)[pair]
