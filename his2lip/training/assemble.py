"""From a TrainConfig to the things that the loop works with: model, loss, data, and where checkpoints go."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from his2lip.config import digest, resolved
from his2lip.data.batch import Batch
from his2lip.data.shards import ShardSet, open_shards
from his2lip.errors import ConfigError, DatasetError
from his2lip.models.checkpoint import ResumeState, is_checkpoint, read_meta, save_checkpoint
from his2lip.models.encoder import Precision
from his2lip.training.config import LossConfig, TrainConfig
from his2lip.training.loop import Save
from his2lip.training.runs import RunDir, code_version

if TYPE_CHECKING:
    from his2lip.data.captions import CaptionBank
    from his2lip.loss import WISELoss
    from his2lip.models.encoder import DualEncoder


def open_data(config: TrainConfig) -> tuple[ShardSet, CaptionBank]:
    """The shards and captions of a run. Raises DatasetError, also for a split that training may not read."""
    from his2lip.data.captions import CaptionBank

    shards = open_shards(config.data.shards)
    for key, split in (("split", config.data.split), ("select", config.data.select)):
        if split is None:
            continue
        if split not in shards.splits:
            raise DatasetError(
                f"these shards have no split '{split}'",
                where=config.data.shards,
                mend=f"they have {', '.join(shards.splits)}: set data.{key}",
            )
        if shards.info.roles.get(split) == "report":
            raise DatasetError(
                f"the split '{split}' is for reporting alone, and training may not read it",
                where=config.data.shards,
                mend="choose one whose role is train or select",
            )
    named = config.data.captions
    bank = CaptionBank.templates() if named == "templates" else CaptionBank.load(named)
    return shards, bank


def identity(config: TrainConfig, shards: ShardSet, bank: CaptionBank) -> dict[str, Any]:
    """What a run is made of, its digest (principle 7), and what else run.json records."""
    made_of: dict[str, Any] = {
        "config": config.identity(),
        "data": shards.digest,
        "captions": bank.digest,
    }
    backbone = Path(config.model.backbone)
    if is_checkpoint(backbone):  # its weights count, not where they are
        made_of["config"]["model"]["backbone"] = read_meta(backbone)["tensor_digest"]
    return {
        "id": digest(made_of),
        "made_of": made_of,
        "config": resolved(config),
        "code_version": code_version(),
    }


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """The same run for a process that stands in another folder."""
    data = config.data.model_copy(
        update={
            "shards": _absolute(config.data.shards),
            "captions": config.data.captions
            if config.data.captions == "templates"
            else _absolute(config.data.captions),
        }
    )
    model = config.model
    if Path(model.backbone).exists():
        model = model.model_copy(update={"backbone": str(Path(model.backbone).absolute())})
    return config.model_copy(update={"data": data, "model": model, "storage": _absolute(config.storage)})


def _absolute(place: str) -> str:
    return place if "://" in place else os.path.abspath(place)


def prepare_process(config: TrainConfig, device: torch.device) -> None:
    """Threads as configured; on the CPU also the algorithms that give the same bits every time."""
    torch.set_num_threads(config.workers.threads)
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)


def build_model(
    config: TrainConfig, device: torch.device, *, source: str | Path | None = None
) -> DualEncoder:
    """The backbone that `config` names, or the checkpoint `source`, in the precision that suits `device`."""
    from his2lip.models import load_model

    precision = _precision(config.model.precision, device)
    return load_model(
        str(source or config.model.backbone), device=str(device), precision=precision, seed=config.seed
    )


def _precision(asked: str, device: torch.device) -> Precision:
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if asked == "auto":
        return "bf16" if has_bf16 else "fp32"
    if asked == "bf16" and device.type == "cuda" and not has_bf16:
        raise ConfigError("this GPU has no bf16", where="model.precision", mend="set it to auto or fp32")
    return "bf16" if asked == "bf16" else "fp32"


def build_loss(config: LossConfig) -> WISELoss:
    """The WISE loss of design section 6, or the released code's arithmetic."""
    from his2lip.loss import LossWeights, SimilarityWeights, WISELoss

    weights = LossWeights(**resolved(config.weights))
    if config.variant == "released":
        return WISELoss.released(weights=weights, terms=config.terms)
    hard = config.terms == "hard"
    kept = LossWeights(
        image_text=weights.image_text,
        image_image=weights.image_image if config.terms in ("full", "image_only") else 0.0,
        text_text=weights.text_text if config.terms in ("full", "text_only") else 0.0,
    )
    return WISELoss(
        weights=kept,
        similarity=None if hard else SimilarityWeights(**resolved(config.similarity)),
        tau=config.tau,
        kappa=config.kappa,
        normalize=config.normalize,
    )


@dataclass(frozen=True)
class StreamSource:
    """The loop's Source over TrainStream: this rank's share of both splits' orders."""

    config: TrainConfig
    bank: CaptionBank
    image_size: int
    rank: int = 0
    world: int = 1

    @property
    def steps_per_epoch(self) -> int:
        raise NotImplementedError

    def train(self, start: int, stop: int) -> Iterable[Batch]:
        raise NotImplementedError

    def select(self) -> Iterable[Batch]:
        raise NotImplementedError


def checkpoint_writer(run: RunDir, config: TrainConfig, shards: ShardSet, bank: CaptionBank) -> Save:
    """Writes `best` and `last`, each atomically; only `last` carries the optimizer.

    A process killed between the two leaves a `best` that is newer than `last`; going on from `last` computes
    the very same `best` again.
    """
    known = {
        "config": resolved(config),
        "vocabularies": shards.info.vocabularies,
        "data_digest": shards.digest,
        "captions_digest": bank.digest,
        "code_version": code_version(),
    }

    def save(model: DualEncoder, resume: ResumeState, metrics: dict[str, float], best: bool) -> None:
        meta = known | {"step": resume.step, "metrics": metrics}
        if best:
            save_checkpoint(run.best, model, meta=meta)
        save_checkpoint(run.last, model, meta=meta, resume=resume)

    return save
