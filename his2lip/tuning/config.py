"""What a sweep is made of: every option of `his2lip tune`, with its default and its reason."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from his2lip import resources
from his2lip.config import Config, read_yaml, resolved
from his2lip.resources import STORAGE
from his2lip.tuning.space import Dimension, Scalar, check_dimension, check_keys, check_point

# Values that stand for a trial without a finite one: far below (above) any metric in use, yet finite.
WORST = {"max": -1e6, "min": 1e6}


class SamplerConfig(Config):
    """Optuna's TPE, which models good and bad trials apart (Bergstra et al. 2011), all keys together."""

    kind: Literal["tpe"] = "tpe"
    startup: int = Field(default=10, ge=1)  # trials, enqueued points among them, before it starts to model


class SchedulerConfig(Config):
    """ASHA (Li et al. 2020): at 1, 3, 9, … reports only the best third of the trials so far goes on."""

    kind: Literal["asha", "none"] = "asha"
    grace: int = Field(default=1, ge=1)  # reports that every trial makes before it can be stopped
    reduction: int = Field(default=3, ge=2)  # one in so many goes on; also the factor between two rungs


class SweepConfig(Config):
    """One sweep; its name is also that of its directory under `storage`/tune, and of its Optuna study."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(default=0, ge=0)
    # The training run that every trial starts from: a mapping, or a file that holds one.
    train: dict[str, Any]
    space: dict[str, Dimension] = Field(min_length=1)
    # Run first, in this order; a key that a point leaves out is sampled.
    points: tuple[dict[str, Scalar], ...] = ()
    trials: int = Field(default=20, ge=1)
    max_concurrent: int = Field(default=2, ge=1)
    sampler: SamplerConfig = SamplerConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    metric: str = "select/macro_f1"  # of the trial's best report, which is also its kept checkpoint
    mode: Literal["max", "min"] = "max"
    split: str = "select"  # where the metric is measured: a split whose role is select, never report
    worst: float | None = Field(default=None, allow_inf_nan=False)  # stands for a NaN or infinite metric
    keep: int = Field(default=1, ge=1)  # checkpoints of the best so many trials are kept
    # Of each trial. auto shares out the GPUs that are there; say 1 on a cluster that starts with none.
    gpus: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    storage: str = STORAGE
    study: str | None = None  # the study's database (SQLAlchemy URL), by default a file under `storage`

    @pydantic.field_validator("train", mode="before")
    @classmethod
    def _read_train(cls, value: Any) -> Any:
        return read_yaml(resources.find(value)) if isinstance(value, str) else value

    @pydantic.field_validator("space", mode="before")
    @classmethod
    def _each_has_a_kind(cls, value: Any) -> Any:
        for key, tree in value.items() if isinstance(value, Mapping) else ():
            check_dimension(str(key), tree)
        return value

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> SweepConfig:
        for point in self.points:
            check_point(self.space, point)
        if len({json.dumps(p, sort_keys=True) for p in self.points}) < len(self.points):
            raise ValueError("a point stands twice in points")
        if len(self.points) > self.trials:
            raise ValueError(f"{len(self.points)} points are to be run, but only {self.trials} trials")
        return self

    @property
    def worst_value(self) -> float:
        """The finite value that stands for a trial whose metric was NaN or infinite."""
        return WORST[self.mode] if self.worst is None else self.worst

    def check_keys(self, known: Iterable[str]) -> None:
        """Raises ConfigError where the space varies a key that the training configuration does not have."""
        check_keys(self.space, known, where=f"sweep {self.name}, key space")

    def identity(self) -> dict[str, Any]:
        """What all trials share, besides what they train. Trials and points can be added; this stays."""
        tree = resolved(self)
        for key in (
            "name",
            "train",
            "trials",
            "points",
            "max_concurrent",
            "keep",
            "gpus",
            "storage",
            "study",
        ):
            del tree[key]
        return tree
