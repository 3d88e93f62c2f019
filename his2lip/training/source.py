"""The loop's data: this rank's share of the training order and of the select split, kept where that pays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Literal

from his2lip.data.batch import Batch
from his2lip.data.stream import TrainStream
from his2lip.training.config import TrainConfig

if TYPE_CHECKING:
    from his2lip.data.captions import CaptionBank

Read = Callable[[int, int], Iterable[Batch]]  # the batches of steps start .. stop - 1

_KEEP_BYTES = 256 << 20  # decoded batches that may stay in memory, of each split


class StreamSource:
    """`loop.Source` over TrainStream. The select batches are decoded once, where they fit in memory.

    keep  whether training batches stay in memory as well: trials of one sweep see the very same ones
    """

    def __init__(
        self,
        config: TrainConfig,
        bank: CaptionBank,
        *,
        image_size: int,
        rank: int = 0,
        world: int = 1,
        keep: bool = False,
    ) -> None:
        self._config, self._bank, self._size = config, bank, image_size
        self._rank, self._world = rank, world
        data = config.data
        self._train = self._stream(data.split, batch_size=data.batch_size, loader=data.loader)
        self._kept_train = Kept(self._train.batches, limit=_KEEP_BYTES if keep else 0)
        self._select = self._select_stream()
        self._kept_select = Kept(self._select.batches, limit=_KEEP_BYTES) if self._select else None

    @property
    def steps_per_epoch(self) -> int:
        return self._train.steps_per_epoch

    def train(self, start: int, stop: int) -> Iterable[Batch]:
        return self._kept_train(start, stop)

    def select(self) -> Iterable[Batch]:
        if self._select is None or self._kept_select is None:
            return ()
        return self._kept_select(0, self._select.steps_per_epoch)

    def close(self) -> None:
        """Stops reading."""
        self._train.close()
        if self._select is not None:
            self._select.close()

    def _stream(self, split: str, *, batch_size: int, loader: Literal["ray", "local"]) -> TrainStream:
        data, training = self._config.data, split == self._config.data.split
        return TrainStream(
            data.shards,
            split,
            self._bank,
            seed=self._config.seed,
            batch_size=batch_size,
            image_size=self._size,
            lanes=data.lanes,
            window=data.window,
            balance=data.balance if training else 0.0,
            augment=data.augment and training,
            sampling=data.sampling,
            rank=self._rank,
            world=self._world,
            loader=loader,
            decode_threads=data.decode_threads,
        )

    def _select_stream(self) -> TrainStream | None:
        """Read here, with no start-up of Ray Data at each epoch; a small split makes smaller batches."""
        data = self._config.data
        if data.select is None:
            return None
        rows = self._stream(data.select, batch_size=data.lanes, loader="local").plan.rows_per_epoch
        size = min(data.batch_size, rows) // data.lanes * data.lanes
        return self._stream(data.select, batch_size=size, loader="local")


class Kept:
    """Batches by step, read once and then kept, while all of them stay under `limit` bytes."""

    def __init__(self, read: Read, *, limit: int) -> None:
        self._read, self._limit = read, limit
        self._kept: dict[int, Batch] = {}
        self._bytes = 0

    def __call__(self, start: int, stop: int) -> Iterator[Batch]:
        for step in range(start, stop):
            if step not in self._kept:
                yield from self._keep(self._read(step, stop))
                return
            yield self._kept[step]

    def _keep(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            if batch.step not in self._kept and self._bytes + batch.images.nbytes <= self._limit:
                self._kept[batch.step] = batch
                self._bytes += batch.images.nbytes
            yield batch
