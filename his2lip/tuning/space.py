"""The search space: a range or a choice of values for each dotted key that a sweep varies.

A dimension with `when` is drawn only where other keys have certain values; elsewhere its key stays as it is
in the training run. `mixed` draws one of some values, or else a number of a range.
"""

from __future__ import annotations

import math
import typing
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic
from pydantic import Field

from his2lip.config import Config, OptionError
from his2lip.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial

Scalar = str | int | float | bool | None
Params = dict[str, Any]  # dotted key -> value, such as {"loss.tau": 0.5}
Finite = Annotated[float, Field(allow_inf_nan=False)]
When = dict[str, Scalar | tuple[Scalar, ...]]

FREE = "free"  # in `when`: any number of the range of a mixed key
_KIND = ":kind"  # ends the study's name of what a mixed key is: one of its values, or FREE


class _Drawn(Config):
    """What all kinds share: a condition."""

    when: When = Field(default_factory=dict)
    """Keys of the space, listed above this one, and the values that they need for this one to be drawn."""


class _Single(_Drawn, ABC):
    """What the kinds share that are one dimension of Optuna."""

    def suggest(self, key: str, trial: BaseTrial) -> Scalar:
        """The value that Optuna draws for `key` in a trial."""
        return trial._suggest(key, self.distribution())  # type: ignore[attr-defined]

    @abstractmethod
    def distribution(self) -> BaseDistribution:
        """Optuna's own form of the dimension."""


class Uniform(_Single):
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


class Log(_Single):
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


class Int(_Single):
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


class Choice(_Single):
    """One of several values without an order."""

    kind: Literal["choice"]
    values: tuple[Scalar, ...] = Field(min_length=1)

    def contains(self, value: Scalar) -> bool:
        return any(type(value) is type(v) and value == v for v in self.values)

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.values)


class Mixed(_Drawn):
    """One of some values, or a number of a range, such as a kappa that is tied to the scale, or free."""

    kind: Literal["mixed"]
    values: tuple[Scalar, ...] = Field(min_length=1)
    range: Annotated[Uniform | Log | Int, Field(discriminator="kind")]

    @pydantic.model_validator(mode="after")
    def _can_be_told_apart(self) -> Mixed:
        numbers = [value for value in self.values if self.range.contains(value)]
        if FREE in self.values or numbers or self.range.when:
            raise ValueError(
                f"values must be neither '{FREE}' nor in the range, and only the whole has a `when`"
            )
        return self

    def contains(self, value: Scalar) -> bool:
        return self.range.contains(value) or any(type(value) is type(v) and value == v for v in self.values)

    def suggest(self, key: str, trial: BaseTrial) -> Scalar:
        kind: Scalar = trial.suggest_categorical(f"{key}{_KIND}", (*self.values, FREE))
        return self.range.suggest(key, trial) if kind == FREE else kind


Dimension = Annotated[Uniform | Log | Int | Choice | Mixed, Field(discriminator="kind")]
Space = Mapping[str, Dimension]
KINDS = ("uniform", "log", "int", "choice", "mixed")


def suggest(space: Space, trial: BaseTrial) -> Params:
    """The parameters that Optuna draws for a trial, in the order of the space, without inactive keys."""
    params: Params = {}
    for key, dimension in space.items():
        if is_active(dimension, params, space):
            params[key] = dimension.suggest(key, trial)
    return params


def is_active(dimension: Dimension, params: Mapping[str, Scalar], space: Space) -> bool:
    """Whether the condition of a dimension holds for the parameters of a trial."""
    for key, wanted in dimension.when.items():
        if key not in params:
            return False
        parent, value = space[key], params[key]
        free = isinstance(parent, Mixed) and parent.range.contains(value)
        if (FREE if free else value) not in _allowed(wanted):
            return False
    return True


def to_study(space: Space, params: Mapping[str, Scalar]) -> Params:
    """Parameters as the study stores them: a mixed key says of what kind it is."""
    stored: Params = {}
    for key, value in params.items():
        dimension = space.get(key)
        if isinstance(dimension, Mixed):
            free = dimension.range.contains(value)
            stored[f"{key}{_KIND}"] = FREE if free else value
            if not free:
                continue
        stored[key] = value
    return stored


def from_study(stored: Mapping[str, Any]) -> Params:
    """Parameters of a trial as `suggest` gave them, from those that its study has."""
    params = {}
    for key, value in stored.items():
        name = key.removesuffix(_KIND)
        if name == key or value != FREE:
            params[name] = value
    return params


def check_conditions(space: Space) -> None:
    """Raises OptionError for a condition on a key that is not above its own, or on a value that it lacks."""
    above: dict[str, Dimension] = {}
    for key, dimension in space.items():
        for parent, wanted in dimension.when.items():
            if parent not in above:
                what = f"'{key}' depends on '{parent}', which is not above it in the space"
                raise OptionError(what, key=f"{key}.when")
            of = above[parent]
            for value in _allowed(wanted):
                if not (of.contains(value) or (isinstance(of, Mixed) and value == FREE)):
                    what = f"'{key}' depends on '{parent}' being {value}, which is outside {describe(of)}"
                    raise OptionError(what, key=f"{key}.when")
        above[key] = dimension


def _allowed(wanted: Scalar | tuple[Scalar, ...]) -> tuple[Scalar, ...]:
    return wanted if isinstance(wanted, tuple) else (wanted,)


def check_dimension(key: str, tree: Any) -> None:
    """Raises OptionError, with an example, where the YAML of a dimension is not a mapping of a known kind."""
    if isinstance(tree, Config):
        return
    kind = tree.get("kind") if isinstance(tree, Mapping) else None
    if kind not in KINDS:
        example = f"{key}: {{kind: uniform, low: 0.0, high: 2.0}}"
        what = f"'{key}' needs a kind, one of {', '.join(KINDS)}, such as {example}"
        raise OptionError(what, key=key)


def check_point(space: Space, point: Mapping[str, Scalar]) -> None:
    """Raises OptionError where a point to run names an unknown dimension or leaves a range."""
    for key, value in point.items():
        if key not in space:
            what = f"the point {dict(point)} sets '{key}', which is not in the space"
            raise OptionError(what, key=f"points.{key}")
        if not space[key].contains(value):
            what = f"the point {dict(point)} sets '{key}' outside {describe(space[key])}"
            raise OptionError(what, key=f"points.{key}")
    for key in point:
        if set(space[key].when) <= set(point) and not is_active(space[key], point, space):
            what = f"the point {dict(point)} sets '{key}', whose condition it does not meet"
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


def corners(space: Space) -> Iterable[Params]:
    """The ends of each dimension, one at a time: points that show a wrong range before the first trial."""
    for key, dimension in space.items():
        needed = _needed(dimension, space)
        yield from ({**needed, key: end} for end in _ends(dimension))


def _ends(dimension: Dimension) -> tuple[Scalar, ...]:
    if isinstance(dimension, Choice):
        return dimension.values
    if isinstance(dimension, Mixed):
        return (*dimension.values, *_ends(dimension.range))
    return (dimension.low, dimension.high)


def _needed(dimension: Dimension, space: Space) -> Params:
    """Parameters with which the condition of a dimension holds."""
    needed: Params = {}
    for key, wanted in dimension.when.items():
        first = _allowed(wanted)[0]
        parent = space[key]
        if isinstance(parent, Mixed) and first == FREE:
            first = _ends(parent.range)[0]
        needed |= {**_needed(parent, space), key: first}
    return needed


def describe(dimension: Dimension) -> str:
    """A dimension in brief, for messages."""
    if isinstance(dimension, Choice | Mixed):
        values = "{" + ", ".join(map(str, dimension.values)) + "}"
        return values if isinstance(dimension, Choice) else f"{values} or {describe(dimension.range)}"
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
