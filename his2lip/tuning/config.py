"""The options of `his2lip tune`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from his2lip import resources
from his2lip.config import NAME, Config, OptionError, read_yaml, resolved
from his2lip.resources import STORAGE
from his2lip.tuning.space import (
    Choice,
    Dimension,
    Params,
    Scalar,
    check_conditions,
    check_dimension,
    check_keys,
    check_point,
)

PAPER = "paper"  # in `warm_start`: the loss of the paper
# The options of the paper's loss (HIS2LIP, WACV 2026, section 3).
PAPER_POINT: Params = {
    "loss.variant": "wise",
    "loss.terms": "full",
    "loss.weights.image_text": 1.0,
    "loss.weights.image_image": 0.5,
    "loss.weights.text_text": 0.5,
    "loss.tau": 1.0,
    "loss.kappa": 1.0,
    "loss.similarity.tissue": 1.0,
    "loss.similarity.pair": 1.0,
    "loss.similarity.biomarker": 0.0,
}
# The value of a trial without a finite metric: far worse than any metric in use, but finite.
WORST = {"max": -1e6, "min": 1e6}


class SamplerConfig(Config):
    """Optuna's TPE (Bergstra et al. 2011): it models where good and where bad trials are dense."""

    kind: Literal["tpe"] = "tpe"
    """The only sampler so far. A sweep does not resume with another one."""
    startup: int = Field(default=10, ge=1)
    """Random trials, including the points, before the sampler starts to model."""


class SchedulerConfig(Config):
    """ASHA (Li et al. 2020) stops weak trials at reports grace, grace x reduction, grace x reduction^2, …

    With several metrics it judges by the first.
    """

    kind: Literal["asha", "none"] = "asha"
    """none: every trial runs to its end."""
    grace: int = Field(default=1, ge=1)
    """Reports of each trial before it can be stopped. A trial reports once per epoch."""
    reduction: int = Field(default=3, ge=2)
    """Keeps the best 1/reduction of the trials at each rung."""


class SweepConfig(Config):
    """One sweep."""

    name: str = Field(pattern=NAME)
    """Name of the sweep, of its folder under STORAGE/tune and of its Optuna study."""
    seed: int = Field(default=0, ge=0)
    """Seed of the sampler."""
    train: dict[str, Any]
    """The training run that every trial starts from: a mapping of its options, or a file that has them."""
    space: dict[str, Dimension] = Field(min_length=1)
    """What is varied: dotted keys of the training options, each with a range or a choice."""
    points: tuple[dict[str, Scalar], ...] = ()
    """Points of the space that run first, in this order; keys that a point leaves out are sampled."""
    cross: dict[str, tuple[Scalar, ...]] = {}
    """Further keys, each with its values: every point runs with every combination of them, and no trial is
    sampled. With {seed: [0, 1, 2, 3, 4]}, points are compared over five seeds."""
    warm_start: tuple[str, ...] = ()
    """Whose best points run after `points`: names of sweeps in STORAGE, their folders or URIs, or paper (its
    loss). Their values are not taken over, since the data may differ. Read when the sweep first starts."""
    warm_start_best: int = Field(default=3, ge=1)
    """How many points of each earlier sweep."""
    trials: int = Field(default=20, ge=1)
    """Number of trials, including the points."""
    max_concurrent: int = Field(default=2, ge=1)
    """Number of trials that run at the same time."""
    sampler: SamplerConfig = SamplerConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    metric: str | Annotated[tuple[str, ...], Field(min_length=1)] = "select/macro_f1"
    """The metric to optimise: select/macro_f1, select/retrieval or select/loss. The value of a trial is that
    of its best report. A list of two optimises both; the best report is then by the first. select/loss needs
    a space that leaves the loss and the select batches as they are, data.batch_size above all."""
    mode: Literal["max", "min"] = "max"
    """Whether the largest or the smallest metric is the best."""
    split: str = "select"
    """The split on which the metric is measured: one whose role is select."""
    trial_timeout: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Seconds without a report after which a trial is hung: its process is ended, and it is not run again."""
    worst: float | None = Field(default=None, allow_inf_nan=False)
    """What the sampler takes as the value of a trial that failed or hung; null: -1e6 for max, 1e6 for min."""
    keep: int = Field(default=1, ge=1)
    """Number of best trials whose checkpoints are kept."""
    gpus: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """GPUs per trial. auto shares those of the cluster; set 1 where the cluster starts without any."""
    shared_gb: float = Field(default=2.0, ge=0)
    """Gigabytes of decoded patches of each split that the trials of a machine share, so that they decode each
    once. They are files in the sweep's folder, removed at its end. Trials with another seed or other data
    have patches of their own within the same bound: where it is reached, those that no trial uses are
    removed. 0: each trial decodes for itself."""
    storage: str = STORAGE
    """Folder of sweeps: on a cluster, one that all nodes share, or the URI of an object store. That has no
    locks: a second command that runs the sweep elsewhere is not refused, and the first one then ends."""
    study: str | None = None
    """SQLAlchemy URL of the study's database; null: a SQLite file in the sweep's folder."""

    @pydantic.field_validator("train", mode="before", json_schema_input_type=str | dict[str, Any])
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
        check_conditions(self.space)
        for point in self.points:
            check_point(self.space, point)
        if len({json.dumps(p, sort_keys=True) for p in self.points}) < len(self.points):
            raise OptionError("points has the same point twice", key="points")
        if len(set(self.metrics)) < len(self.metrics):
            raise OptionError("metric has the same name twice", key="metric")
        if twice := set(self.cross) & set(self.space):
            raise OptionError(f"'{min(twice)}' is in the space and in cross", key="cross")
        if self.cross and (not self.points or self.warm_start):
            raise OptionError("cross needs points, and no warm_start", key="cross")
        count = len(self.all_points)
        if count > self.trials or (self.cross and count < self.trials):
            what = f"there are {count} points, but {self.trials} trials"
            raise OptionError(what, key="trials")
        return self

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics to optimise, the first of which chooses a trial's best report."""
        return (self.metric,) if isinstance(self.metric, str) else self.metric

    @property
    def dimensions(self) -> dict[str, Dimension]:
        """The space, with a choice for each key of `cross`."""
        return self.space | {key: Choice(kind="choice", values=values) for key, values in self.cross.items()}

    @property
    def all_points(self) -> list[Params]:
        """The points with every combination of `cross`: all points of one combination, then of the next."""
        combinations = [
            dict(zip(self.cross, c, strict=True)) for c in itertools.product(*self.cross.values())
        ]
        return [{**point, **combination} for combination in combinations for point in self.points]

    @property
    def worst_value(self) -> float:
        """What the sampler takes as the value of a trial that failed or hung."""
        return WORST[self.mode] if self.worst is None else self.worst

    def check_keys(self, known: Iterable[str]) -> None:
        """Raises ConfigError where the space varies a key that the training options do not have."""
        check_keys(self.dimensions, known, where=f"sweep {self.name}, key space")

    def identity(self) -> dict[str, Any]:
        """The options that all trials share, but the training run. Trials and points can be added later."""
        tree = resolved(self)
        for key in (
            "name",
            "train",
            "trials",
            "points",
            "max_concurrent",
            "keep",
            "gpus",
            "shared_gb",
            "storage",
            "study",
            "trial_timeout",
            "warm_start",
            "warm_start_best",
        ):
            del tree[key]
        # Sweeps from before these options keep their identity.
        if not self.cross:
            del tree["cross"]
        for dimension in tree["space"].values():
            if not dimension["when"]:
                del dimension["when"]
            if dimension["kind"] == "mixed":
                del dimension["range"]["when"]
        return tree
