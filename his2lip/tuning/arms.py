"""Points that ran with several seeds: their means, their spread, and their differences seed by seed."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from his2lip.config import digest
from his2lip.tuning.space import Params

SEED = "seed"
_SAME = 1e-12  # standard errors below it are rounding


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One point over its seeds. The difference is to the reference arm, over the seeds that both have.

    low, high  the 95 % interval of the mean difference, by Student's t over seeds; None below two seeds, and
               where all differences are equal, since an interval of width 0 would claim certainty. With
               several arms it is widened by Bonferroni's rule, so that all intervals hold together.
    """

    params: Params
    reference: bool
    seeds: int
    mean: float
    spread: float | None  # standard deviation over seeds
    difference: float | None = None
    low: float | None = None
    high: float | None = None


def compare_arms(runs: Iterable[tuple[Mapping[str, Any], float]], reference: Mapping[str, Any]) -> list[Arm]:
    """The arms of runs (parameters with `seed`, value), in order of their first run, the reference first.

    reference  the parameters of the arm that the others are compared with, without `seed`; where no run has
               them, no arm has a difference
    """
    values: dict[str, dict[Any, float]] = defaultdict(dict)
    params: dict[str, Params] = {}
    for given, value in runs:
        arm = {key: there for key, there in given.items() if key != SEED}
        key = _key(arm)
        params.setdefault(key, arm)
        values[key][given[SEED]] = value
    first = _key(reference)
    others = [key for key in params if key != first]
    keys = [first, *others] if first in params else others
    base = values.get(first, {})
    return [_arm(params[key], values[key], base if key != first else None, len(others)) for key in keys]


def _key(params: Mapping[str, Any]) -> str:
    """Equal for 1 and 1.0: a file may have either, and the study has what the dimension makes of it."""
    return digest({key: float(value) if type(value) is int else value for key, value in params.items()})


def _arm(params: Params, own: Mapping[Any, float], base: Mapping[Any, float] | None, count: int) -> Arm:
    """base: the values of the reference by seed; None: this arm is the reference."""
    found = [*own.values()]
    spread = statistics.stdev(found) if len(found) > 1 else None
    differences = [own[seed] - base[seed] for seed in own if seed in base] if base else []
    mean = statistics.fmean(differences) if differences else None
    low, high = _interval(differences, count)
    return Arm(
        params=params,
        reference=base is None,
        seeds=len(found),
        mean=statistics.fmean(found),
        spread=spread,
        difference=mean,
        low=low,
        high=high,
    )


def _interval(differences: list[float], count: int) -> tuple[float | None, float | None]:
    from scipy.stats import t

    n = len(differences)
    if n < 2:
        return None, None
    error = statistics.stdev(differences) / math.sqrt(n)
    if error < _SAME:
        return None, None
    half = float(t.ppf(1 - 0.025 / count, n - 1)) * error
    mean = statistics.fmean(differences)
    return mean - half, mean + half
