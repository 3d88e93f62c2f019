"""The loop's data: this rank's share of the training order and of the select split, kept where that pays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from his2lip.data.stream import Batch, StreamOptions, TrainStream
from his2lip.training.config import TrainConfig

if TYPE_CHECKING:
    from his2lip.data.captions import CaptionBank
    from his2lip.models import Preprocess

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
        preprocess: Preprocess,
        rank: int = 0,
        world: int = 1,
        keep: bool = False,
    ) -> None:
        self._config, self._bank = config, bank
        self._preprocess = preprocess
        self._rank, self._world = rank, world
        self._train = self._train_stream()
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

    def _train_stream(self) -> TrainStream:
        data = self._config.data
        return self._stream(
            data.split,
            loader=data.loader,
            balance=data.balance,
            augment=data.augment,
            caption_dropout=data.caption_dropout,
        )

    def _select_stream(self) -> TrainStream | None:
        """Read here, with no start-up of Ray Data at each epoch; a small split makes smaller batches."""
        select = self._config.data.select
        return None if select is None else self._stream(select, loader="local", augment=False, shrink=True)

    def _stream(self, split: str, **options: Any) -> TrainStream:
        data = self._config.data
        stream_options = StreamOptions(
            seed=self._config.seed,
            batch_size=data.batch_size,
            image_size=self._preprocess.size[0],
            interpolation=self._preprocess.interpolation,
            lanes=data.lanes,
            window=data.window,
            sampling=data.sampling,
            decode_threads=data.decode_threads,
            **options,
        )
        return TrainStream(data.shards, split, self._bank, stream_options, rank=self._rank, world=self._world)


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
