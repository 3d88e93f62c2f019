"""How far probabilities can be believed, measured on units that the temperature was not fitted to.

Intervals leave out one cluster at a time (statistics.py), as those of all other figures do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from his2lip.config import Config
from his2lip.errors import DatasetError
from his2lip.evaluation.statistics import even_clusters, interval
from his2lip.evaluation.task_results import Estimate, Unit

BINS = 15  # bins of confidence of the calibration error, of equal numbers of units
COVERAGES = tuple(i / 20 for i in range(1, 21))  # shares of the units that are answered, on the curve
_BLOCK = 2**22  # entries of the orders without one cluster each that are in memory at once
_MOST = 2**28  # entries of all these orders, above which the area under the curve has no interval


class RiskPoint(Config):
    """A point of the risk-coverage curve: units whose confidence is `least` or more are answered.

    coverage  share of the units that are answered
    risk      share of the answered units that are wrong
    least     `--abstain-below` of this point
    """

    coverage: float
    risk: float
    least: float


class Calibrated(Config):
    """Calibration figures of a grid cell, measured on its n scored units.

    temperature  fitted to fitted_n units of other cases, of the split fitted_on, by maximum likelihood
    figures      brier, nll, ece, slope and aurc, see `FIGURES`
    curve        the risk-coverage curve
    """

    temperature: float
    fitted_on: str
    fitted_n: int
    figures: dict[str, Estimate]
    curve: list[RiskPoint]


@dataclass(frozen=True)
class Fitted:
    """A temperature, and the n units of a split that it was fitted to."""

    temperature: float
    split: str
    n: int


@dataclass(frozen=True)
class Answers:
    """N scored units with their probabilities.

    logits    float64 (N, C), scores divided by the temperature
    labels    int64 (N,), class numbers
    clusters  int64 (N,), cluster numbers from 0 to G-1
    """

    logits: np.ndarray
    labels: np.ndarray
    clusters: np.ndarray

    @property
    def groups(self) -> int:
        return int(self.clusters.max()) + 1

    @property
    def confidence(self) -> np.ndarray:
        """float64 (N,): the probability of the predicted class."""
        return softmax(self.logits).max(axis=1)

    @property
    def right(self) -> np.ndarray:
        """bool (N,): whether the predicted class, the first of the best, is the true one."""
        return self.logits.argmax(axis=1) == self.labels


# A figure, and the figure without one cluster each (G,); None where the figure is not defined.
Measured = tuple[float, np.ndarray] | None


def brier(answers: Answers) -> Measured:
    """Brier score: mean squared distance of the probabilities from the true class, 0 to 2 (Brier 1950)."""
    away = softmax(answers.logits)
    away[np.arange(len(away)), answers.labels] -= 1
    return _mean((away**2).sum(axis=1), answers)


def nll(answers: Answers) -> Measured:
    """Mean negative log likelihood of the true class, in nats."""
    shifted = answers.logits - answers.logits.max(axis=1, keepdims=True)
    truth = shifted[np.arange(len(shifted)), answers.labels]
    return _mean(np.log(np.exp(shifted).sum(axis=1)) - truth, answers)


def ece(answers: Answers) -> Measured:
    """Squared calibration error of the confidence in `BINS` bins, debiased; it can be below 0.

    In each bin, the gap of accuracy and confidence is squared as the mean over pairs of units of different
    clusters. A square of the mean gap would be too large by the variance of that mean: 15 bins of a perfect
    model would read 11 % for 100 units. With one unit per cluster and one confidence per bin this is the
    debiased estimator of Kumar, Liang and Ma (2019, Verified Uncertainty Calibration, section 5); pairs
    within a cluster are left out here because units of one patient are right or wrong together. Bins have
    equal numbers of units, but equal confidences are in one bin, so that the order of units does not matter;
    a bin of one cluster has no pairs and is left out.
    """
    gap = answers.right - answers.confidence
    _, of_value, alike = np.unique(answers.confidence, return_inverse=True, return_counts=True)
    middle = np.cumsum(alike) - (alike + 1) / 2  # mean rank, from 0, of the units with one confidence
    bins = (middle * BINS // len(gap)).astype(np.int64)[of_value]
    place = bins * answers.groups + answers.clusters
    size = BINS * answers.groups
    sums = np.bincount(place, gap, minlength=size).reshape(BINS, -1)  # (BINS, G)
    counts = np.bincount(place, minlength=size).reshape(BINS, -1).astype(np.float64)
    terms = (sums, sums**2, counts, counts**2)
    whole = [term.sum(axis=1, keepdims=True) for term in terms]
    value = float(_squared_gap(*whole)[0])
    without = _squared_gap(*(a - b for a, b in zip(whole, terms, strict=True)))
    return None if math.isnan(value) else (value, without)


def _squared_gap(total: np.ndarray, squares: np.ndarray, n: np.ndarray, own: np.ndarray) -> np.ndarray:
    """The mean over bins, weighted by their n (BINS, K) units, of the mean over pairs of clusters: (K,)."""
    pairs = n**2 - own
    usable = pairs > 0.5  # whole numbers
    each = np.divide(total**2 - squares, pairs, out=np.zeros_like(pairs), where=usable)
    weight = np.where(usable, n, 0.0)
    size = weight.sum(axis=0)
    return np.divide((each * weight).sum(axis=0), size, out=np.full(size.shape, np.nan), where=size > 0)


def slope(answers: Answers) -> Measured:
    """Calibration slope: the factor of the log probabilities that fits the labels best (Cox 1958).

    1 for calibrated probabilities, below 1 for too confident ones. Values without one cluster are one Newton
    step from the slope of all units. Not defined where no finite factor is best.
    """
    try:
        factor = 1 / fit_temperature(answers.logits, answers.labels, where="the scored units")
    except DatasetError:
        return None
    chances = softmax(factor * answers.logits)
    mean = (chances * answers.logits).sum(axis=1)
    score = answers.logits[np.arange(len(mean)), answers.labels] - mean
    spread = (chances * answers.logits**2).sum(axis=1) - mean**2
    own, width = (np.bincount(answers.clusters, x, minlength=answers.groups) for x in (score, spread))
    others = width.sum() - width
    step = np.divide(own, others, out=np.full(others.shape, np.nan), where=others > 0)
    return factor, factor - step


def aurc(answers: Answers) -> Measured:
    """Area under the risk-coverage curve: mean share of wrong answers over all coverages.

    Geifman, Uziel and El-Yaniv 2019. Its values without one cluster are NaN where units times clusters are
    more than `_MOST`.
    """
    order = np.argsort(-answers.confidence, kind="stable")
    wrong, clusters = ~answers.right[order], answers.clusters[order]
    groups, n = answers.groups, len(order)
    _, starts, runs = np.unique(-answers.confidence[order], return_index=True, return_inverse=True)

    def areas(kept: np.ndarray) -> np.ndarray:
        """The area under the curve of the units of each row of `kept`, bool (K, N)."""
        sums = np.add.reduceat(kept & wrong, starts, axis=1, dtype=np.float64)
        counts = np.add.reduceat(kept, starts, axis=1, dtype=np.float64)
        mean = (sums / np.maximum(counts, 1))[:, runs]  # units of equal confidence have no order
        place = np.cumsum(kept, axis=1)
        risk = np.cumsum(kept * mean, axis=1) / np.maximum(place, 1)
        return (risk * kept).sum(axis=1) / np.maximum(place[:, -1], 1)

    value = float(areas(np.ones((1, n), dtype=bool))[0])
    if groups * n > _MOST:
        return value, np.full(groups, np.nan)
    step = max(1, _BLOCK // n)
    blocks = (np.arange(first, min(first + step, groups)) for first in range(0, groups, step))
    return value, np.concatenate([areas(clusters[None, :] != block[:, None]) for block in blocks])


# Name -> what measures it, its unit, its range.
FIGURES: dict[str, tuple[Callable[[Answers], Measured], Unit, tuple[float, float]]] = {
    "brier": (brier, "coefficient", (0.0, 2.0)),
    "nll": (nll, "coefficient", (0.0, math.inf)),
    "ece": (ece, "fraction", (-1.0, 1.0)),
    "slope": (slope, "coefficient", (-math.inf, math.inf)),
    "aurc": (aurc, "fraction", (0.0, 1.0)),
}


def calibration_figures(answers: Answers, *, has_interval: bool = True) -> dict[str, Estimate]:
    """Every figure with its interval. `ece` and its limits are roots, 0 where the square is below 0."""
    found, effective = {}, even_clusters(np.bincount(answers.clusters))
    for name, (measure, unit, bounds) in FIGURES.items():
        known = measure(answers)
        if known is None:
            found[name] = Estimate(value=None, unit=unit)
            continue
        value, replicates = known
        limits = interval(value, replicates, bounds=bounds, effective=effective) if has_interval else None
        low, high = limits or (None, None)
        if name == "ece":
            value, low, high = _root(value), None if low is None else _root(low), high and _root(high)
        found[name] = Estimate(value=value, lo=low, hi=high, unit=unit)
    return found


def risk_coverage(answers: Answers) -> list[RiskPoint]:
    """The risk-coverage curve at `COVERAGES`, the most confident units first (El-Yaniv and Wiener 2010)."""
    order = np.argsort(-answers.confidence, kind="stable")
    confidence, wrong = answers.confidence[order], np.cumsum(~answers.right[order])
    places = [math.ceil(round(share * len(order), 9)) - 1 for share in COVERAGES]
    # Equal confidences are answered together, so each place is the last of its ties.
    places = [int(np.searchsorted(-confidence, -confidence[max(i, 0)], side="right")) - 1 for i in places]
    return [
        RiskPoint(coverage=(i + 1) / len(order), risk=float(wrong[i] / (i + 1)), least=float(confidence[i]))
        for i in dict.fromkeys(max(place, 0) for place in places)
    ]


def calibrated(
    scores: np.ndarray, labels: np.ndarray, clusters: np.ndarray, fit: Fitted, *, has_interval: bool
) -> Calibrated:
    """The figures of N scored units under a temperature: scores (N, C), class numbers and clusters (N,)."""
    answers = Answers(scores.astype(np.float64) / fit.temperature, labels, clusters)
    return Calibrated(
        temperature=fit.temperature,
        fitted_on=fit.split,
        fitted_n=fit.n,
        figures=calibration_figures(answers, has_interval=has_interval),
        curve=risk_coverage(answers),
    )


def fit_temperature(scores: np.ndarray, labels: np.ndarray, *, where: str) -> float:
    """The temperature T that minimises the negative log likelihood of softmax(scores / T).

    scores float (N, C), labels int64 (N,). The loss is convex in 1 / T, so its minimum is where the slope,
    the mean over patches of (expected score - score of the true class), is 0. Raises DatasetError, with the
    place `where`, if no finite temperature is best: the scores carry no information on the labels, or every
    patch is classified correctly.
    """
    values = scores.astype(np.float64)
    truth = values[np.arange(len(labels)), labels]

    def slope(inverse: float) -> float:
        return float(((softmax(values * inverse) * values).sum(axis=1) - truth).mean())

    if slope(0) >= 0:
        what = "the similarities carry no information on the labels, so that no temperature is best"
        fix = "check the labels and the prompts, or choose another model"
        raise DatasetError(what, where=where, key="label", fix=fix)
    if (truth == values.max(axis=1)).all():
        what = "every patch is classified correctly, so that no finite temperature is best"
        raise DatasetError(what, where=where, key="split", fix="use a larger select split")
    low, high = 0.0, 1 / float(values.std())
    while slope(high) < 0:
        low, high = high, 2 * high
    return 1 / float(brentq(slope, low, high, xtol=1e-300, rtol=4 * np.finfo(np.float64).eps, maxiter=200))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities float64 (N, C) of logits (N, C); each row sums to 1."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def _mean(values: np.ndarray, answers: Answers) -> tuple[float, np.ndarray]:
    """The mean of values (N,), and without one cluster each."""
    sums = np.bincount(answers.clusters, values, minlength=answers.groups)
    sizes = np.bincount(answers.clusters, minlength=answers.groups)
    left = len(values) - sizes
    return float(values.mean()), np.where(left > 0, (sums.sum() - sums) / np.maximum(left, 1), np.nan)


def _root(value: float) -> float:
    return math.sqrt(max(value, 0.0))
