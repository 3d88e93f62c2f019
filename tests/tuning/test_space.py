"""The search space: values of a range, known keys, and corners."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FixedTrial

from his2lip.config import Config, validate
from his2lip.errors import ConfigError
from his2lip.tuning.config import SweepConfig
from his2lip.tuning.space import (
    Choice,
    Int,
    Log,
    Mixed,
    Uniform,
    check_keys,
    corners,
    dotted_keys,
    from_study,
    suggest,
    to_study,
)

numbers = st.floats(min_value=-1e3, max_value=1e3)


class Inner(Config):
    tau: float = 1.0
    sizes: tuple[int, ...] = ()


class Outer(Config):
    name: str = ""
    loss: Inner = Inner()
    other: Inner | None = None


@given(low=numbers, high=numbers, at=st.floats(0, 1))
def test_a_uniform_range_contains_exactly_the_values_between_its_ends(
    low: float, high: float, at: float
) -> None:
    low, high = sorted((low, high))
    dimension = Uniform(kind="uniform", low=low, high=high)
    inside = min(max(low + at * (high - low), low), high)
    assert dimension.contains(inside)
    assert not dimension.contains(high + 1)
    assert not dimension.contains(low - 1)
    assert dimension.distribution()._contains(inside)


@given(
    low=st.integers(-50, 50), width=st.integers(0, 50), step=st.integers(1, 7), value=st.integers(-60, 110)
)
def test_an_int_range_contains_exactly_the_values_that_optuna_draws(
    low: int, width: int, step: int, value: int
) -> None:
    high = low + width - width % step  # Optuna reduces the range to a whole number of steps
    dimension = Int(kind="int", low=low, high=high, step=step)
    assert dimension.contains(value) == dimension.distribution()._contains(float(value))


@pytest.mark.parametrize(
    ("dimension", "inside", "outside"),
    [
        (Uniform(kind="uniform", low=0, high=1, step=0.1), [0, 0.3, 1.0], [0.25, 1.1, True, "0.3", None]),
        (Log(kind="log", low=0.1, high=10), [0.1, 1, 10], [0, -1, 10.1, float("nan"), float("inf")]),
        (Int(kind="int", low=1, high=9, step=2), [1, 3, 9.0], [2, 1.5, 11, False]),
        (
            Mixed(kind="mixed", values=("scale",), range=Log(kind="log", low=0.5, high=50.0)),
            ["scale", 0.5, 50],
            ["free", 0.1, 51, True, None],
        ),
        (Choice(kind="choice", values=("a", 1, None)), ["a", 1, None], ["b", True, 1.0]),
    ],
)
def test_each_kind_contains_its_values_and_refuses_others(
    dimension: Any, inside: list[Any], outside: list[Any]
) -> None:
    assert [v for v in inside if not dimension.contains(v)] == []
    assert [v for v in outside if dimension.contains(v)] == []


@pytest.mark.parametrize(
    ("tree", "key"),
    [
        ({"kind": "uniform", "low": 2.0, "high": 1.0}, ""),
        ({"kind": "log", "low": 0.0, "high": 1.0}, ".low"),
        ({"kind": "int", "low": 0, "high": 4, "log": True}, ""),
        ({"kind": "int", "low": 0.5, "high": 4}, ".low"),
        ({"kind": "choice", "values": []}, ".values"),
        ({"kind": "uniform", "low": 0.0, "high": float("inf")}, ".high"),
        ({"kind": "uniform", "low": 0.0, "hihg": 1.0, "high": 2.0}, ".hihg"),
        ({"kind": "normal", "low": 0.0, "high": 1.0}, ""),
        ({"low": 0.0, "high": 1.0}, ""),
        (3, ""),
    ],
)
def test_a_wrong_dimension_is_refused_in_one_sentence(tree: Any, key: str) -> None:
    with pytest.raises(ConfigError) as refused:
        validate(SweepConfig, {"name": "s", "train": {}, "space": {"loss.tau": tree}})
    assert refused.value.key == f"space.loss.tau{key}"
    assert "\n" not in str(refused.value)


def test_an_unknown_key_is_refused_with_the_nearest_known_key() -> None:
    known = dotted_keys(Outer)
    assert known == ["name", "loss.tau", "loss.sizes", "other.tau", "other.sizes"]
    check_keys(["loss.tau"], known, where="here")
    with pytest.raises(ConfigError) as refused:
        check_keys(["loss.tau", "loss.tua"], known, where="here")
    assert (refused.value.key, refused.value.where) == ("loss.tua", "here")
    assert "'loss.tau'" in str(refused.value.fix)


def test_corners_have_one_dimension_at_an_end_of_its_range() -> None:
    space = {"a": Log(kind="log", low=0.1, high=10), "b": Choice(kind="choice", values=(1, "x"))}
    assert list(corners(space)) == [{"a": 0.1}, {"a": 10}, {"b": 1}, {"b": "x"}]


MIXED = Mixed(kind="mixed", values=("scale",), range=Log(kind="log", low=0.5, high=50.0))
CONDITIONAL = {
    "terms": Choice(kind="choice", values=("full", "hard")),
    "kappa": MIXED.model_copy(update={"when": {"terms": "full"}}),
    "step": Int(kind="int", low=1, high=3, when={"kappa": "free"}),
}


@pytest.mark.parametrize(
    ("params", "stored"),
    [
        ({"terms": "hard"}, {"terms": "hard"}),
        ({"terms": "full", "kappa": "scale"}, {"terms": "full", "kappa:kind": "scale"}),
        (
            {"terms": "full", "kappa": 2.0, "step": 3},
            {"terms": "full", "kappa:kind": "free", "kappa": 2.0, "step": 3},
        ),
    ],
)
def test_parameters_are_the_same_after_the_study_and_only_active_keys_are_drawn(
    params: dict[str, Any], stored: dict[str, Any]
) -> None:
    assert to_study(CONDITIONAL, params) == stored
    assert from_study(stored) == params
    assert suggest(CONDITIONAL, FixedTrial(stored)) == params


def test_corners_meet_the_conditions_of_their_keys() -> None:
    found = list(corners(CONDITIONAL))
    assert {"terms": "full", "kappa": 0.5, "step": 1} in found
    assert all("terms" in corner for corner in found)
