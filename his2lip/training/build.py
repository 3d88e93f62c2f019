"""Builds what a run needs from its configuration: the process settings, the model, the checkpoint writers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from his2lip.config import recorded
from his2lip.data.captions import CaptionBank
from his2lip.data.shards import ShardSet, patch_scale
from his2lip.data.stream import rows_with_captions
from his2lip.models import (
    TRAINING_DATA,
    DualEncoder,
    FineTuning,
    ResumeState,
    TrainingData,
    TrainingRecord,
    case_keys,
    check_resumable,
    compile_blocks,
    image_keys,
    load_model,
    load_resume,
    meta_of,
    origins,
    prepare_finetuning,
    read_steady,
    resolve_precision,
    save_checkpoint,
    set_image_size,
    training_data_of,
    training_record,
)
from his2lip.runtime import usable_cpus
from his2lip.training.config import TrainConfig
from his2lip.training.loop import Save
from his2lip.training.placement import number
from his2lip.training.run_directory import RunDir
from his2lip.training.run_inputs import terms_of_run


def prepare_process(config: TrainConfig, device: torch.device) -> None:
    """Sets the number of threads, float32 convolutions and, on the CPU, the deterministic algorithms."""
    torch.set_num_threads(number(config.workers.threads, usable_cpus()))
    torch.backends.cudnn.allow_tf32 = False  # by default a GPU would compute their gradients in TF32
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)


def build_model(
    config: TrainConfig, device: torch.device, *, source: str | Path | None = None
) -> DualEncoder:
    """The backbone of `config`, or the run's checkpoint `source`, prepared for fine-tuning on `device`.

    Preprocessing, image size, frozen towers, adapters and heads are as configured.
    """
    precision = resolve_precision(config.model.precision, device, key="model.precision")
    model = load_model(str(source or config.model.backbone), precision=precision, seed=config.seed)
    if config.model.preprocessing == "released":
        model.preprocess = model.preprocess.as_released()
    if config.model.image_size is not None:
        set_image_size(model, config.model.image_size)
    prepare_finetuning(model, _fine_tuning(config))
    if config.model.compile:
        compile_blocks(model)
    return model.to(device)


def build_resumed(
    config: TrainConfig, run: RunDir, device: torch.device
) -> tuple[DualEncoder, ResumeState | None]:
    """The model of a run, and the state that it resumes from: both of one checkpoint `last`.

    Without that checkpoint it is the backbone of `config`, and None. Raises CheckpointError.
    """

    def build() -> tuple[DualEncoder, ResumeState | None]:
        check_resumable(run.last)
        saved = load_resume(run.last)
        return build_model(config, device, source=run.last if saved else None), saved

    return read_steady(run.last, build)


def _fine_tuning(config: TrainConfig) -> FineTuning:
    """The `finetune` section of a configuration."""
    chosen, lora = config.finetune, config.finetune.lora
    return FineTuning(
        freeze=None if chosen.freeze == "none" else chosen.freeze,
        lora_rank=None if lora is None else lora.rank,
        lora_alpha=None if lora is None else lora.alpha,
        heads=chosen.projection == "released",
        recompute=chosen.gradient_checkpointing,
        seed=config.seed,
    )


def best_writer(run: RunDir, config: TrainConfig, shards: ShardSet, bank: CaptionBank) -> Save:
    """Writes `best` only, for runs that are never resumed."""
    write = _writer(config, shards, bank)

    def save(model: DualEncoder, resume: ResumeState, metrics: dict[str, float], best: bool) -> None:
        if best:
            write(run.best, model, {"step": resume.step, "metrics": metrics}, None)

    return save


def checkpoint_writer(run: RunDir, config: TrainConfig, shards: ShardSet, bank: CaptionBank) -> Save:
    """Writes `best` and `last`, each atomically; only `last` has the state of the optimizer.

    A process killed between the two leaves a `best` that is newer than `last`. Resuming from `last` then
    computes the same `best` again.
    """
    write = _writer(config, shards, bank)

    def save(model: DualEncoder, resume: ResumeState, metrics: dict[str, float], best: bool) -> None:
        meta = {"step": resume.step, "metrics": metrics}
        if best:
            write(run.best, model, meta, None)
            run.keep(run.best.name)
        write(run.last, model, meta, resume)
        run.keep(run.last.name)

    return save


def _writer(
    config: TrainConfig, shards: ShardSet, bank: CaptionBank
) -> Callable[[Path, DualEncoder, dict[str, Any], ResumeState | None], None]:
    """Writes one checkpoint. What all checkpoints of the run share is computed at the first one."""

    @cache
    def shared() -> tuple[dict[str, Any], TrainingRecord]:
        return _metadata(config, shards, bank), _record(config, shards, bank)

    def write(folder: Path, model: DualEncoder, meta: dict[str, Any], resume: ResumeState | None) -> None:
        common, record = shared()
        save_checkpoint(folder, model, meta=common | meta, trained_on=record, resume=resume)

    return write


def _metadata(config: TrainConfig, shards: ShardSet, bank: CaptionBank) -> dict[str, Any]:
    """The part of his2lip.json that all checkpoints of the run share."""
    start = config.model.backbone
    before = meta_of(start)
    seen = [*training_data_of(before), TrainingData.of(shards, config.data.split)]
    return {
        "config": recorded(config),
        "vocabularies": shards.info.vocabularies,
        "data_digest": shards.digest,
        "captions_digest": bank.digest,
        "patch": patch_scale(shards, config.data.split),
        "terms": terms_of_run(config, shards).to_json(),
        "began_as": origins(start, before),
        TRAINING_DATA: [data.model_dump() for data in seen],
    }


def _record(config: TrainConfig, shards: ShardSet, bank: CaptionBank) -> TrainingRecord:
    """What the run's checkpoints are trained on: its data, and those of the model that it starts from."""
    table = shards.table(config.data.split, ["sha256", "case_id"])
    kept = rows_with_captions(shards, config.data.split, bank)
    if kept is not None:
        table = table.filter(pa.array(kept))
    cases = table["case_id"].unique().drop_null().to_pylist()
    own = TrainingRecord(
        datasets=(shards.info.origin,),
        digests=(shards.digest,),
        images=np.unique(image_keys(table["sha256"].to_pylist())),
        cases=np.unique(case_keys(shards.info.origin, cases)),
    )
    both = TrainingRecord.union([training_record(config.model.backbone), own])
    assert both is not None
    return both
