"""One run in this process, without Ray: how the trials of a sweep train."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Generic, TypeVar

import torch

from his2lip.config import digest, resolved
from his2lip.data.captions import CaptionBank
from his2lip.data.shards import ShardSet
from his2lip.loss import WISELoss
from his2lip.models import DualEncoder
from his2lip.runtime import usable_cpus
from his2lip.training.build import best_writer, build_model, prepare_process
from his2lip.training.config import TrainConfig
from his2lip.training.loop import Outcome, Validate, fit
from his2lip.training.placement import with_numbers
from his2lip.training.progress import StepReport
from his2lip.training.run_directory import RunDir
from his2lip.training.run_inputs import check_contents, drawn_captions, open_data
from his2lip.training.shared_batches import SharedFolder
from his2lip.training.source import StreamSource

T = TypeVar("T")
_log = logging.getLogger(__name__)


def run_in_process(
    config: TrainConfig,
    *,
    report: Callable[[Mapping[str, float]], bool | None],
    validate: Validate | None = None,
    folder: str | Path | None = None,
    device: torch.device | str = "cpu",
    contents: Mapping[tuple[str, str], str] | None = None,
    cores: int | None = None,
    shared: SharedFolder | None = None,
) -> Outcome:
    """Trains in this process from the first step, with the local loader; reports at the end of each epoch.

    report    gets step, epoch, train/… and select/…, all finite floats; returning True ends the run
    validate  as for `train`
    folder    where the checkpoint `best` is written; None writes none
    contents  what this process has to find, as from `contents`; None: whatever is there
    cores     what `auto` means for its threads; None: the cores that this process may use
    shared    a folder of this machine for decoded batches, which its processes share; None: in memory only
    A later call in the same process reuses the untrained model and the decoded batches where backbone and
    data are the same, as in the trials of one sweep.
    """
    device = torch.device(device)
    cores = cores or usable_cpus()
    config = with_numbers(config, threads=cores, decode_threads=cores)
    prepare_process(config, device)
    local = config.data.model_copy(update={"loader": "local"})
    config, shards, bank = open_data(config.model_copy(update={"data": local}))
    check_contents(contents or {}, config, shards, bank)
    model = _UNTRAINED.get(_model_key(config, device), lambda: _Untrained(config, device)).model()
    source = _SOURCES.get(
        (key := _data_key(config, shards, bank, model)) + str(shared),
        lambda: _open_source(
            config, shards, bank, model, shared and replace(shared, path=shared.path / key[:16])
        ),
    )
    source.check_targets(config)  # an earlier call may have had another loss
    before = source.counts

    def each_epoch(progress: StepReport) -> bool | None:
        if progress.kind == "step":
            return None
        return report({**progress.metrics, "step": float(progress.step), "epoch": float(progress.epoch)})

    save = None if folder is None else best_writer(RunDir(Path(folder)), config, shards, bank)
    try:
        return fit(
            config,
            model,
            WISELoss.from_config(config.loss),
            source,
            report=each_epoch,
            save=save,
            validate=validate,
            device=device,
        )
    finally:
        if shared is not None:
            decoded, found = (now - then for now, then in zip(source.counts, before, strict=True))
            _log.info("%d batches were decoded here, %d by other trials or earlier", decoded, found)


def _open_source(
    config: TrainConfig, shards: ShardSet, bank: CaptionBank, model: DualEncoder, shared: SharedFolder | None
) -> StreamSource:
    if (note := model.tokenizer.cut_note(drawn_captions(config, shards, bank))) is not None:
        _log.warning(note)
    source = StreamSource(config, bank, preprocess=model.preprocess, cache_train=True, shared=shared)
    if (note := source.select_note) is not None:
        _log.warning(note)
    return source


class _Latest(Generic[T]):
    """A cache of one object, the latest: consecutive trials of a sweep need the same one."""

    def __init__(self) -> None:
        self._key: str | None = None
        self._value: T | None = None

    def get(self, key: str, make: Callable[[], T]) -> T:
        if self._value is None or key != self._key:
            self._key, self._value = key, make()
        return self._value


class _Untrained:
    """A model that is reset to its first weights for each run."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self._model = build_model(config, device)
        self._first = {name: tensor.clone() for name, tensor in self._model.state_dict().items()}

    def model(self) -> DualEncoder:
        self._model.load_state_dict(self._first)
        return self._model


_UNTRAINED: _Latest[_Untrained] = _Latest()
_SOURCES: _Latest[StreamSource] = _Latest()


def _model_key(config: TrainConfig, device: torch.device) -> str:
    return digest([resolved(config.model), resolved(config.finetune), config.seed, str(device)])


def _data_key(config: TrainConfig, shards: ShardSet, bank: CaptionBank, model: DualEncoder) -> str:
    return digest([resolved(config.data), config.seed, shards.digest, bank.digest, model.preprocess.digest])
