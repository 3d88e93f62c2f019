"""Configuration of a benchmark: models x datasets x protocols, and where it works."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pydantic

from his2lip.config import Config
from his2lip.resources import CACHE, STORAGE

PREFIX = "baseline:"  # of the names of baselines, which need no model


class Blend(Config):
    """A point between two models' weights (WiSE-FT): the row's own model at alpha 1, `base` at 0."""

    sweep: str  # rows of one sweep are one curve
    base: str  # what `load_model` takes
    alpha: float = pydantic.Field(ge=0, le=1)


class ModelEntry(Config):
    """One row of the leaderboard: the name it goes by, and what `load_model` takes."""

    name: str
    path: str
    blend: Blend | None = None
    # Names of datasets that it was trained on; None asks the checkpoint.
    trained_on: list[str] | None = None


class BenchmarkConfig(Config):
    """One benchmark: models x datasets x protocols, and where it works."""

    name: str = pydantic.Field(default="zero-shot", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    models: list[ModelEntry]
    # Names of cards whose shards lie in `shards`/NAME, or each with the URI of its shards.
    datasets: list[str] | dict[str, str] = pydantic.Field(min_length=1)
    shards: str = f"{STORAGE}/shards"
    protocols: list[str] = ["default"]  # a dataset without one of them goes without
    baselines: list[Literal["chance", "majority", "mean-colour", "stained-area", "dab-threshold"]] = [
        "chance",
        "majority",
    ]
    # Dataset, or dataset/protocol -> prompt set (a name or a file) in place of the one that the card names.
    prompts: dict[str, str] = {}
    precision: Literal["fp32", "bf16"] = "fp32"
    batch_size: int = pydantic.Field(default=64, ge=1)
    # Of one model's task. Fractions let several share a GPU; "auto" takes one where the cluster has any.
    cpus: float = pydantic.Field(default=1.0, ge=0)
    threads: int | None = pydantic.Field(default=None, ge=1)  # None: as many as cpus
    gpus: float | Literal["auto"] = "auto"
    memory_gb: float | None = pydantic.Field(default=None, gt=0)  # None: told from the checkpoint's size
    seed: int = 0  # of random weights (`tiny`)
    cache: str = CACHE
    storage: str = STORAGE

    @pydantic.field_validator("models", mode="before")
    @classmethod
    def _short_forms(cls, entries: Any) -> Any:
        """`clip` for {name: clip, path: clip}; {blend: [clip, RUN], alphas: [0, 0.5, 1]} for three rows."""
        return [row for e in entries for row in _rows(e)] if isinstance(entries, list) else entries

    @pydantic.model_validator(mode="after")
    def _names_differ(self) -> BenchmarkConfig:
        names = [m.name for m in self.models] + [f"{PREFIX}{b}" for b in self.baselines]
        if twice := {n for n in names if names.count(n) > 1}:
            raise ValueError(f"two models are called '{min(twice)}'; give each a name of its own")
        return self

    @property
    def folder(self) -> str:
        return f"{self.storage}/benchmark/{self.name}"

    @property
    def task_threads(self) -> int:
        """Threads that decode images, and torch's, in one model's task."""
        return self.threads or max(1, round(self.cpus))

    def uris(self) -> dict[str, str]:
        """Dataset -> URI of its shards."""
        if isinstance(self.datasets, dict):
            return self.datasets
        return {name: f"{self.shards}/{name}" for name in self.datasets}


def _rows(entry: Any) -> list[Any]:
    """The rows that one entry of `models` stands for; what has neither form is left to be validated."""
    if isinstance(entry, str):
        return [{"name": _display(entry), "path": entry}]
    if not isinstance(entry, dict) or "alphas" not in entry:
        return [entry]
    unknown = set(entry) - {"blend", "alphas", "name", "trained_on"}
    pair, alphas = entry.get("blend"), entry["alphas"]
    if unknown or not isinstance(pair, list) or len(pair) != 2 or not isinstance(alphas, list) or not alphas:
        raise ValueError("a sweep of alpha is {blend: [BASE, TUNED], alphas: [0, 0.5, 1], name: NAME}")
    base, tuned = pair
    sweep = entry.get("name") or _display(str(tuned))
    row = {"path": tuned} | {key: entry[key] for key in ("trained_on",) if key in entry}
    blends = [{"sweep": sweep, "base": base, "alpha": alpha} for alpha in alphas]
    return [row | {"name": f"{sweep} alpha={blend['alpha']}", "blend": blend} for blend in blends]


def _display(path: str) -> str:
    """A checkpoint's run for runs/train/NAME/best, else the name as it is."""
    parts = Path(path).parts
    return parts[-2] if len(parts) > 2 and parts[-1] in ("best", "last", "checkpoint") else path
