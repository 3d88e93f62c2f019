"""From a TrainConfig to the things that the loop works with: model, loss, data, and where checkpoints go."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from his2lip.config import digest, resolved
from his2lip.data.captions import CaptionBank
from his2lip.data.shards import ShardSet, open_shards
from his2lip.errors import ConfigError, DatasetError
from his2lip.models.checkpoint import ResumeState, is_checkpoint, read_meta, save_checkpoint
from his2lip.models.encoder import Precision
from his2lip.training.config import LossConfig, TrainConfig
from his2lip.training.loop import Save
from his2lip.training.runs import RunDir, code_version

if TYPE_CHECKING:
    from his2lip.loss import WISELoss
    from his2lip.models.encoder import DualEncoder


def open_data(config: TrainConfig) -> tuple[TrainConfig, ShardSet, CaptionBank]:
    """The shards and captions of a run, and its config with splits by name where it had their roles.

    Raises DatasetError where something is missing or cannot be read.
    """
    shards = open_shards(config.data.shards)
    split = _split(shards, config.data.split, key="split")
    select = None if config.data.select is None else _split(shards, config.data.select, key="select")
    data = config.data.model_copy(update={"split": split, "select": select})
    return config.model_copy(update={"data": data}), shards, _captions(config)


def _split(shards: ShardSet, name: str, *, key: str) -> str:
    """The split of this name, or else the one whose role has this name."""
    of_role = [split for split in shards.splits if shards.info.roles.get(split) == name]
    if name in shards.splits:
        return name
    if len(of_role) == 1:
        return of_role[0]
    mend = f"set data.{key} to one of {', '.join(shards.splits)}"
    raise DatasetError(
        f"these shards have no split '{name}', nor one split of that role",
        where=shards.uri,
        mend=f"{mend}, or to null" if key == "select" else mend,
    )


def _captions(config: TrainConfig) -> CaptionBank:
    """Our templates, a bank that was saved, or a folder in the released corpus's layout."""
    named = config.data.captions
    if named == "templates":
        bank = CaptionBank.templates()
    elif Path(named).is_dir():
        bank, _ = CaptionBank.from_folder(named)
    else:
        bank = CaptionBank.load(named)
    return replace(bank, missing=config.data.missing)


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
