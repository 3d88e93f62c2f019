"""From a TrainConfig to what a worker works with: the model, the loss, and where checkpoints go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from his2lip.config import resolved
from his2lip.data.captions import CaptionBank
from his2lip.data.shards import ShardSet
from his2lip.errors import ConfigError
from his2lip.loss import LossWeights, SimilarityWeights, WISELoss
from his2lip.models import DualEncoder, ResumeState, load_model, save_checkpoint
from his2lip.models.encoder import Precision
from his2lip.training.assemble import terms_of_run
from his2lip.training.config import LossConfig, TrainConfig
from his2lip.training.loop import Save
from his2lip.training.runs import RunDir, code_version


def prepare_process(config: TrainConfig, device: torch.device) -> None:
    """Threads as configured; on the CPU also the algorithms that give the same bits every time."""
    torch.set_num_threads(config.workers.threads)
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)


def build_model(
    config: TrainConfig, device: torch.device, *, source: str | Path | None = None
) -> DualEncoder:
    """The backbone that `config` names, or the checkpoint `source`, in the precision that suits `device`."""
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


def best_writer(run: RunDir, config: TrainConfig, shards: ShardSet, bank: CaptionBank) -> Save:
    """Writes `best` alone, for runs that nobody goes on with."""
    known = _known(config, shards, bank)

    def save(model: DualEncoder, resume: ResumeState, metrics: dict[str, float], best: bool) -> None:
        if best:
            save_checkpoint(run.best, model, meta=known | {"step": resume.step, "metrics": metrics})

    return save


def checkpoint_writer(run: RunDir, config: TrainConfig, shards: ShardSet, bank: CaptionBank) -> Save:
    """Writes `best` and `last`, each atomically; only `last` carries the optimizer.

    A process killed between the two leaves a `best` that is newer than `last`; going on from `last` computes
    the very same `best` again.
    """
    known, save_best = _known(config, shards, bank), best_writer(run, config, shards, bank)

    def save(model: DualEncoder, resume: ResumeState, metrics: dict[str, float], best: bool) -> None:
        save_best(model, resume, metrics, best)
        save_checkpoint(
            run.last, model, meta=known | {"step": resume.step, "metrics": metrics}, resume=resume
        )

    return save


def _known(config: TrainConfig, shards: ShardSet, bank: CaptionBank) -> dict[str, Any]:
    """What his2lip.json says of the run itself."""
    return {
        "config": resolved(config),
        "vocabularies": shards.info.vocabularies,
        "data_digest": shards.digest,
        "captions_digest": bank.digest,
        "terms": terms_of_run(config, shards).to_json(),
        "code_version": code_version(),
    }
