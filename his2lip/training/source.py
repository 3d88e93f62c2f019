"""The data of the loop: this rank's share of the training batches and of the select split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from his2lip.data.stream import Batch, StreamOptions, TrainStream
from his2lip.errors import ConfigError
from his2lip.runtime import usable_cpus
from his2lip.training.config import TrainConfig
from his2lip.training.placement import number
from his2lip.training.shared_batches import SharedBatches, SharedFolder

if TYPE_CHECKING:
    from his2lip.data.captions import CaptionBank
    from his2lip.models import Preprocess

Read = Callable[[int, int], Iterable[Batch]]  # the batches of steps start .. stop - 1

_CACHE_BYTES = 256 << 20  # of decoded batches per split
_MENTIONED_FROM = 0.05  # share of the select split that whole batches leave out


class StreamSource:
    """`loop.Source` over TrainStream. Select batches are decoded once, as far as they fit in memory.

    cache_train  whether training batches stay in memory too: the trials of a sweep train on the same ones
    shared       where decoded batches are instead, for all processes of this machine that read the same ones
    """

    def __init__(
        self,
        config: TrainConfig,
        bank: CaptionBank,
        *,
        preprocess: Preprocess,
        rank: int = 0,
        world: int = 1,
        cache_train: bool = False,
        shared: SharedFolder | None = None,
    ) -> None:
        self._config, self._bank = config, bank
        self._preprocess = preprocess
        self._rank, self._world = rank, world
        self._train = self._train_stream()
        self.check_targets(config)
        self._select = self._select_stream()
        self._train_cache = self._cache(
            self._train, "train", shared, limit=_CACHE_BYTES if cache_train else 0
        )
        self._select_cache = (
            None if self._select is None else self._cache(self._select, "select", shared, limit=_CACHE_BYTES)
        )

    @staticmethod
    def _cache(
        stream: TrainStream, name: str, shared: SharedFolder | None, *, limit: int
    ) -> BatchCache | SharedBatches:
        if shared is None:
            return BatchCache(stream.batches, limit=limit)
        epoch = stream.steps_per_epoch
        return SharedBatches(stream.batches, shared.path / name, epoch=epoch, limit=shared.limit)

    @property
    def steps_per_epoch(self) -> int:
        return self._train.steps_per_epoch

    def check_targets(self, config: TrainConfig) -> None:
        """Raises ConfigError where the loss of `config` has equal targets for all of these patches."""
        if self._train.one_pair:
            _refuse_equal_targets(config)

    @property
    def counts(self) -> tuple[int, int]:
        """Batches that were decoded, and those that were found decoded by another process."""
        caches = [self._train_cache, *([] if self._select_cache is None else [self._select_cache])]
        shared = [cache for cache in caches if isinstance(cache, SharedBatches)]
        return sum(cache.decoded for cache in shared), sum(cache.read for cache in shared)

    @property
    def select_note(self) -> str | None:
        """On how many pairs the loss of the select split is measured, where whole batches leave out many."""
        if self._select is None:
            return None
        plan = self._select.plan
        used, rows = plan.steps_per_epoch * plan.batch_size, plan.rows_per_epoch
        if rows - used < _MENTIONED_FROM * rows:
            return None
        return (
            f"the loss on the split '{self._config.data.select}' is measured on {used:,} of its {rows:,} "
            f"patches with captions, in whole batches of {plan.batch_size} (data.batch_size)"
        )

    def train(self, start: int, stop: int) -> Iterable[Batch]:
        return self._train_cache(start, stop)

    def select(self) -> Iterable[Batch]:
        if self._select is None or self._select_cache is None:
            return ()
        return self._select_cache(0, self._select.steps_per_epoch)

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
        """Reads in this process, since Ray Data would start again at each epoch; batches may be smaller."""
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
            decode_threads=number(data.decode_threads, usable_cpus()),
            **options,
        )
        return TrainStream(data.shards, split, self._bank, stream_options, rank=self._rank, world=self._world)


def _refuse_equal_targets(config: TrainConfig) -> None:
    """Raises ConfigError where the targets of patches of one pair are all equal, so that nothing is learnt.

    Captions may tell such patches apart, but the loss would ask that all of them match all captions.
    """
    loss = config.loss
    if loss.terms == "hard" or (loss.variant == "wise" and loss.similarity.finding > 0):
        return
    what = (
        "all patches have one pair of tissue type and biomarker, for which the loss has equal targets: "
        "staining and labels would not be learnt"
    )
    fix = "set loss.similarity.finding=1 (with loss.variant=wise), or loss.terms=hard"
    raise ConfigError(what, where=config.data.shards, key="loss.similarity.finding", fix=fix)


class BatchCache:
    """Batches by step: each is read once and then kept in memory, up to `limit` bytes in total."""

    def __init__(self, read: Read, *, limit: int) -> None:
        self._read, self._limit = read, limit
        self._cached: dict[int, Batch] = {}
        self._bytes = 0

    def __call__(self, start: int, stop: int) -> Iterator[Batch]:
        for step in range(start, stop):
            if step not in self._cached:
                yield from self._store(self._read(step, stop))
                return
            yield self._cached[step]

    def _store(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            if batch.step not in self._cached and self._bytes + batch.images.nbytes <= self._limit:
                self._cached[batch.step] = batch
                self._bytes += batch.images.nbytes
            yield batch
