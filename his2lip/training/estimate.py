"""What a run will take, before it starts: its time, from earlier runs of its kind, and its disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any

from his2lip.config import resolved
from his2lip.data.shards import ShardSet
from his2lip.errors import His2lipError
from his2lip.files import below, free_bytes
from his2lip.training.config import TrainConfig
from his2lip.training.run_directory import RunDir

SECONDS = "seconds_per_step"  # key of a finished run's result in run.json


@dataclass(frozen=True)
class RunEstimate:
    """What is left of a run. What is not known is None.

    seconds   that its steps take
    based_on  the earlier run that seconds and bytes rest on
    bytes     that its checkpoints will have beyond those that are there
    best      bytes of its best checkpoint, all that a trial of a sweep keeps
    free      bytes on the disk of its storage
    """

    steps: int
    seconds: float | None
    based_on: str | None
    bytes: int | None
    best: int | None
    free: int | None


def estimate_run(config: TrainConfig, shards: ShardSet) -> RunEstimate:
    """What is left of a run, from the latest finished run of the same storage with steps of the same kind.

    These are runs with the same model, fine-tuning, batch and workers. The time of their steps includes the
    validation, the checkpoints and the start of the workers.
    """
    per_epoch = max(sum(shards.info.counts[config.data.split].values()) // config.data.batch_size, 1)
    steps = config.optim.steps or config.optim.epochs * per_epoch
    if "://" in config.storage:
        return RunEstimate(steps, None, None, None, None, None)
    like = _latest_like(config)
    own = RunDir(Path(config.storage, "train", config.name))
    left = max(steps - steps_done(own), 0)
    if like is None:
        return RunEstimate(left, None, None, None, None, free_bytes(config.storage))
    run, state = like
    size = sum(_size(path) for path in (run.best, run.last) if path.is_dir())
    missing = max(size - sum(_size(path) for path in (own.best, own.last)), 0)
    seconds = left * float(state["result"][SECONDS])
    return RunEstimate(left, seconds, run.path.name, missing, _size(run.best), free_bytes(config.storage))


def _latest_like(config: TrainConfig) -> tuple[RunDir, dict[str, Any]] | None:
    """The latest finished run whose steps take as long as those of `config`, and its run.json."""
    wanted, found = _kind(resolved(config)), []
    for file in Path(config.storage, "train").glob("*/run.json"):
        run = RunDir(file.parent)
        try:
            state = run.read()
        except His2lipError:  # damaged: its own command tells
            continue
        if state and SECONDS in state.get("result", {}) and _kind(state.get("config", {})) == wanted:
            found.append((file.stat().st_mtime, run, state))
    return max(found, key=lambda one: one[0])[1:] if found else None


def _kind(config: Mapping[str, Any]) -> tuple[Any, ...]:
    """What decides the time of a step, out of a resolved configuration."""
    data, workers = config.get("data", {}), config.get("workers", {})
    return (
        config.get("model"),
        config.get("finetune"),
        [data.get(key) for key in ("batch_size", "loader", "augment")],
        [workers.get(key) for key in ("num", "use_gpu", "threads")],
    )


def steps_done(run: RunDir) -> int:
    """The step from which a run resumes; 0 without a checkpoint that can be read."""
    from his2lip.models import is_checkpoint, read_meta

    try:
        return int(read_meta(run.last)["step"]) if is_checkpoint(run.last) else 0
    except (His2lipError, KeyError):
        return 0


def _size(folder: Path) -> int:
    return sum(stat.st_size for _, stat in below(folder) if S_ISREG(stat.st_mode))
