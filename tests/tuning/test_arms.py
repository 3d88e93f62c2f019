"""Points over seeds: means, spreads, and intervals of differences against scipy's paired test."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from his2lip.tuning.arms import compare_arms

A = [0.50, 0.55, 0.60, 0.52, 0.58]
B = [0.55, 0.57, 0.66, 0.55, 0.64]


def runs(*arms: list[float]) -> list[tuple[dict[str, float], float]]:
    return [({"x": i, "seed": s}, value) for i, arm in enumerate(arms) for s, value in enumerate(arm)]


def test_the_interval_of_a_difference_is_that_of_the_paired_t_test() -> None:
    base, other = compare_arms(runs(A, B), {"x": 0})
    assert (base.mean, base.difference) == (pytest.approx(np.mean(A)), None)
    assert base.spread == pytest.approx(np.std(A, ddof=1))
    wanted = stats.ttest_rel(B, A).confidence_interval(0.95)
    assert (other.low, other.high) == (pytest.approx(wanted.low), pytest.approx(wanted.high))


def test_several_intervals_hold_together() -> None:
    alone = compare_arms(runs(A, B), {"x": 0})[1]
    both = compare_arms(runs(A, B, A[::-1]), {"x": 0})[1]
    wanted = stats.ttest_rel(B, A).confidence_interval(1 - 0.05 / 2)
    assert (both.low, both.high) == (pytest.approx(wanted.low), pytest.approx(wanted.high))
    assert both.difference == pytest.approx(alone.difference)


def test_a_reference_that_is_written_as_an_integer_is_found() -> None:
    floats = [
        ({"loss.tau": float(params["x"]), "seed": params["seed"]}, value) for params, value in runs(A, B)
    ]
    base, other = compare_arms(floats, {"loss.tau": 0})
    assert (base.reference, other.reference) == (True, False)
    assert other.difference == pytest.approx(np.mean(B) - np.mean(A))
    switched = compare_arms([({"x": True, "seed": 0}, 0.5), ({"x": 1, "seed": 0}, 0.6)], {"x": 1})
    assert [(arm.params, arm.reference) for arm in switched] == [({"x": 1}, True), ({"x": True}, False)]


def test_without_the_reference_no_arm_has_a_difference() -> None:
    arms = compare_arms(runs(A, B), {"x": 7})
    assert [(arm.reference, arm.difference) for arm in arms] == [(False, None)] * 2


def test_only_seeds_that_both_have_are_compared() -> None:
    base, other = compare_arms([*runs(A), ({"x": 1, "seed": 4}, 0.6), ({"x": 1, "seed": 9}, 0.1)], {"x": 0})
    assert (base.seeds, other.seeds) == (5, 2)
    assert other.difference == pytest.approx(0.6 - 0.58)
    assert other.low is None
    assert not math.isnan(other.mean)


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_seeds_that_all_differ_by_the_same_give_no_interval_of_width_zero(shift: float) -> None:
    _, other = compare_arms(runs(A, [value + shift for value in A]), {"x": 0})
    assert other.difference == pytest.approx(shift)
    assert (other.low, other.high) == (None, None)
