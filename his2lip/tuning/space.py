"""The search space: a range or a choice of values for each dotted key that a sweep varies."""

from __future__ import annotations

import math
import typing
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic
from pydantic import Field

from his2lip.config import Config, OptionError
from his2lip.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Scalar = str | int | float | bool | None
Params = dict[str, Any]  # dotted key -> value, such as {"loss.tau": 0.5}
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Uniform(Config):
    """A real number anywhere in [low, high]; with `step`, on the grid low, low + step, …"""

    kind: Literal["uniform"]
    low: Finite
    high: Finite
    step: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> Uniform:
        _check_order(self.low, self.high)
        return self

    def contains(self, value: Scalar) -> bool:
        if not _is_real(value) or not self.low <= value <= self.high:
            return False
        return self.step is None or _on_grid(value - self.low, self.step)

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import FloatDistribution

        return FloatDistribution(self.low, self.high, step=self.step)


class Log(Config):
    """A real number in [low, high], uniform in its logarithm; it excludes zero."""

    kind: Literal["log"]
    low: float = Field(gt=0, allow_inf_nan=False)
    high: Finite

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> Log:
        _check_order(self.low, self.high)
        return self

    def contains(self, value: Scalar) -> bool:
        return _is_real(value) and self.low <= value <= self.high

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import FloatDistribution

        return FloatDistribution(self.low, self.high, log=True)


class Int(Config):
    """A whole number in [low, high], in steps of `step`; with `log`, uniform in its logarithm."""

    kind: Literal["int"]
    low: int
    high: int
    step: int = Field(default=1, ge=1)
    log: bool = False

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> Int:
        _check_order(self.low, self.high)
        if self.log and (self.low < 1 or self.step != 1):
            raise ValueError("a logarithmic int starts at 1 or above, in steps of 1")
        return self

    def contains(self, value: Scalar) -> bool:
        if not _is_real(value) or value != int(value):
            return False
        return self.low <= value <= self.high and (int(value) - self.low) % self.step == 0

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import IntDistribution

        return IntDistribution(self.low, self.high, step=self.step, log=self.log)


class Choice(Config):
    """One of several values without an order."""

    kind: Literal["choice"]
    values: tuple[Scalar, ...] = Field(min_length=1)

    def contains(self, value: Scalar) -> bool:
        return any(type(value) is type(v) and value == v for v in self.values)

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.values)


Dimension = Annotated[Uniform | Log | Int | Choice, Field(discriminator="kind")]
KINDS = ("uniform", "log", "int", "choice")


def check_dimension(key: str, tree: Any) -> None:
    """Raises OptionError, with an example, where the YAML of a dimension is not a mapping of a known kind."""
    if isinstance(tree, Config):
        return
    kind = tree.get("kind") if isinstance(tree, Mapping) else None
    if kind not in KINDS:
        example = f"{key}: {{kind: uniform, low: 0.0, high: 2.0}}"
        what = f"'{key}' needs a kind, one of {', '.join(KINDS)}, such as {example}"
        raise OptionError(what, key=key)


def check_point(space: Mapping[str, Dimension], point: Mapping[str, Scalar]) -> None:
    """Raises OptionError where a point to run names an unknown dimension or leaves a range."""
    for key, value in point.items():
        if key not in space:
            what = f"the point {dict(point)} sets '{key}', which is not in the space"
            raise OptionError(what, key=f"points.{key}")
        if not space[key].contains(value):
            what = f"the point {dict(point)} sets '{key}' outside {describe(space[key])}"
            raise OptionError(what, key=f"points.{key}")


def check_keys(keys: Iterable[str], known: Iterable[str], *, where: str) -> None:
    """Raises ConfigError for the first key that is not among the `known` dotted keys."""
    known = list(known)
    for key in keys:
        if key not in known:
            raise ConfigError(f"unknown key '{key}'", where=where, key=key, fix=did_you_mean(key, known))


def dotted_keys(kind: type[pydantic.BaseModel], prefix: str = "") -> list[str]:
    """The dotted key of every value of a configuration, through its sections."""
    keys: list[str] = []
    for name, field in kind.model_fields.items():
        nested = _nested(field.annotation)
        keys += dotted_keys(nested, f"{prefix}{name}.") if nested else [f"{prefix}{name}"]
    return keys


def corners(space: Mapping[str, Dimension]) -> Iterable[Params]:
    """The ends of each dimension, one at a time: points that show a wrong range before the first trial."""
    for key, dimension in space.items():
        ends = dimension.values if isinstance(dimension, Choice) else (dimension.low, dimension.high)
        yield from ({key: end} for end in ends)


def describe(dimension: Dimension) -> str:
    """A dimension in brief, for messages."""
    if isinstance(dimension, Choice):
        return "{" + ", ".join(map(str, dimension.values)) + "}"
    return f"[{dimension.low:g}, {dimension.high:g}]"


def _nested(annotation: Any) -> type[pydantic.BaseModel] | None:
    """The model that an annotation is, or is optionally (`Model | None`)."""
    for candidate in (annotation, *typing.get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, pydantic.BaseModel):
            return candidate
    return None


def _check_order(low: float, high: float) -> None:
    if low > high:
        raise ValueError(f"low ({low:g}) must not be above high ({high:g})")


def _is_real(value: Scalar) -> typing.TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _on_grid(offset: float, step: float) -> bool:
    return math.isclose(offset / step, round(offset / step), abs_tol=1e-8)
