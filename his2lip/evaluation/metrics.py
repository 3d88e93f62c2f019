"""Metrics of predictions against true classes: one registered function of the confusion matrix for each.

The functions take any number of confusion matrices at once, so that the same code gives a figure and its
values without one case each (statistics.py). The tests compare them with scikit-learn.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeVar

import numpy as np

from his2lip.config import Config, OptionError
from his2lip.evaluation.statistics import (
    LEAST_CLUSTERS,
    all_right_limit,
    clusters_of_classes,
    even_clusters,
    leave_one_out_counts,
)

Unit = Literal["fraction", "coefficient"]  # in [0, 1], shown in percent; or in [-1, 1], shown as it is
Jackknife = tuple[float | None, np.ndarray]  # a figure, and the figure without one cluster each (G,)
# What of a cluster counts: all its units; those of each class, all classes alike; those of one class of two.
Weighs = Literal["units", "classes", "positive", "negative"]


@dataclass(frozen=True)
class Predictions:
    """N units with their true and predicted classes.

    labels, predicted  int64 (N,), class numbers 0 to C-1
    classes            (C,) names; all of them count, whether or not a unit has them
    ordered            whether the classes are given in their order (scores 0, 1+, 2+, 3+)
    scores             float32 (N, C), a higher score is more similar; None where only the classes are known

    Raises OptionError, whose `key` is the argument, for no units, arrays of different lengths, or class
    numbers out of range.
    """

    labels: np.ndarray
    predicted: np.ndarray
    classes: Sequence[str]
    ordered: bool = False
    scores: np.ndarray | None = None

    def __post_init__(self) -> None:
        labels, predicted = np.asarray(self.labels), np.asarray(self.predicted)
        if labels.shape != predicted.shape or labels.ndim != 1 or not len(labels):
            what = "labels and predicted must be vectors of the same length, and not empty"
            got = f"got {labels.shape} and {predicted.shape}"
            raise OptionError(f"{what}, {got}", key="predicted" if labels.size else "labels")
        for name, numbers in (("labels", labels), ("predicted", predicted)):
            if numbers.min() < 0 or numbers.max() >= len(self.classes):
                what = f"{name} must be class numbers from 0 to {len(self.classes) - 1}"
                raise OptionError(what, key=name)
        if self.scores is not None and self.scores.shape != (len(labels), len(self.classes)):
            what = f"scores must be of shape {(len(labels), len(self.classes))}, got {self.scores.shape}"
            raise OptionError(what, key="scores")

    @property
    def counts(self) -> Counts:
        """The confusion matrix."""
        size = len(self.classes)
        matrix = np.bincount(self.labels * size + self.predicted, minlength=size * size)
        counts = matrix.reshape(size, size).astype(np.float64)
        return Counts(counts, positive_class(self.classes), self.ordered)

    def where(self, mask: np.ndarray) -> Predictions:
        """The units where `mask`, bool (N,), is true."""
        scores = None if self.scores is None else self.scores[mask]
        return Predictions(self.labels[mask], self.predicted[mask], self.classes, self.ordered, scores)


@dataclass(frozen=True)
class Counts:
    """Confusion matrices, any number of them.

    matrix    float64 (..., C, C): rows of true classes, columns of predicted ones
    positive  number of the positive class, where there are two classes
    ordered   whether the classes are given in their order
    """

    matrix: np.ndarray
    positive: int = 0
    ordered: bool = False

    @cached_property
    def right(self) -> np.ndarray:
        """(..., C): units of each class that are predicted as it."""
        return np.diagonal(self.matrix, axis1=-2, axis2=-1)

    @cached_property
    def support(self) -> np.ndarray:
        """(..., C): units of each class."""
        return self.matrix.sum(axis=-1)

    @cached_property
    def guessed(self) -> np.ndarray:
        """(..., C): units that are predicted as each class."""
        return self.matrix.sum(axis=-2)

    @cached_property
    def total(self) -> np.ndarray:
        """(...): all units."""
        return self.matrix.sum(axis=(-2, -1))

    @cached_property
    def recall(self) -> np.ndarray:
        """(..., C): share of each class that is predicted as it; NaN for a class without units."""
        return _ratio(self.right, self.support)

    @cached_property
    def precision(self) -> np.ndarray:
        """(..., C): share of the units predicted as each class that are of it; NaN where there are none."""
        return _ratio(self.right, self.guessed)

    @cached_property
    def f1(self) -> np.ndarray:
        """(..., C): F1 of each class; 0 for a class that no unit has and none is predicted as."""
        return np.nan_to_num(_ratio(2 * self.right, self.support + self.guessed))

    @cached_property
    def present(self) -> np.ndarray:
        """(...): number of classes that have units."""
        return (self.support > 0).sum(axis=-1)


@dataclass(frozen=True)
class Metric:
    """A registered metric: its name (also a field of `Figures`), title on pages, unit and meaning.

    compute     the figure of predictions; None where it is not defined
    replicates  the figure without one cluster each, float64 (G,), from cluster numbers, int64 (N,); NaN where
                it is not defined
    of_counts   the figure of confusion matrices; None where it does not follow from them
    weighs      what of a cluster counts in the figure
    by_class    whether only the units of a class tell about its part of the figure, as for recall
    terms       what each class adds to the figure of one confusion matrix, (C,), up to a constant; None: not
                known
    together    `compute` and `replicates` at once, where that saves work; else None
    at_random   the expectation where scores and labels are independent, of a figure that does not follow from
                confusion matrices; None: not known
    """

    name: str
    title: str
    unit: Unit
    description: str
    compute: Callable[[Predictions], float | None]
    replicates: Callable[[Predictions, np.ndarray], np.ndarray]
    of_counts: Callable[[Counts], np.ndarray] | None = None
    weighs: Weighs = "units"
    by_class: bool = False
    terms: Callable[[Counts], np.ndarray] | None = None
    together: Callable[[Predictions, np.ndarray], Jackknife] | None = None
    at_random: float | None = None

    def sizes(self, predictions: Predictions, clusters: np.ndarray) -> np.ndarray:
        """float64 (G, K): units in each cluster that count, in columns that count alike."""
        sizes = class_sizes(predictions, clusters)
        if self.weighs == "units":
            return sizes.sum(axis=1, keepdims=True)
        if self.weighs == "classes":
            return sizes[:, sizes.sum(axis=0) > 0]
        positive = predictions.counts.positive
        return sizes[:, [positive if self.weighs == "positive" else 1 - positive]]

    def has_interval(self, predictions: Predictions, clusters: np.ndarray) -> bool:
        """Whether enough clusters have units that count: sensitivity rests on those with positive units."""
        return int((self.sizes(predictions, clusters).sum(axis=1) > 0).sum()) >= LEAST_CLUSTERS

    def shares(self, predictions: Predictions, clusters: np.ndarray) -> np.ndarray:
        """float64 (G,): the share of each cluster in the figure; the sum is 1."""
        sizes = self.sizes(predictions, clusters)
        return (sizes / sizes.sum(axis=0)).mean(axis=1)

    def effective(self, predictions: Predictions, clusters: np.ndarray) -> float:
        """The number of clusters of equal weight by which the variance of the figure is known.

        It is G where all clusters have equally many units, and each has units of all classes.
        """
        sizes = class_sizes(predictions, clusters)
        if self.weighs in ("positive", "negative"):
            return even_clusters(self.sizes(predictions, clusters)[:, 0])
        even = even_clusters(sizes.sum(axis=1))
        return even * clusters_of_classes(sizes) / len(sizes) if self.by_class else even

    def contributions(
        self,
        predictions: Predictions,
        clusters: np.ndarray,
        replicates: np.ndarray,
        *,
        value: float | None = None,
    ) -> np.ndarray:
        """float64 (G,): what each cluster adds to the figure; the sum is the figure.

        The influence of a cluster (jackknife), and its share of what each class adds. Of recall these are the
        right units of the cluster over all units of the class: a cluster without such units adds nothing.

        value  the figure, where the caller has computed it
        """
        value, groups = self.compute(predictions) if value is None else value, len(replicates)
        assert value is not None, "a figure that is not defined has no contributions"
        found = (groups - 1) / groups * (replicates.mean() - replicates)
        shares, left = self.shares(predictions, clusters), value
        if self.terms is not None:
            sizes, terms = class_sizes(predictions, clusters), self.terms(predictions.counts)
            known = sizes.sum(axis=0) > 0
            found = found + (sizes[:, known] / sizes[:, known].sum(axis=0)) @ terms[known]
            left -= float(terms[known].sum())
        return found + left * shares

    @property
    def bounds(self) -> tuple[float, float]:
        """The range of the figure."""
        return (0.0, 1.0) if self.unit == "fraction" else (-1.0, 1.0)


METRICS: dict[str, Metric] = {}

F = TypeVar("F", bound=Callable[[Counts], np.ndarray])


def metric(
    title: str,
    *,
    unit: Unit = "fraction",
    weighs: Weighs = "units",
    by_class: bool = False,
    terms: Callable[[Counts], np.ndarray] | None = None,
) -> Callable[[F], F]:
    """Registers a function of the confusion matrix under its own name.

    It takes `Counts` of shape (..., C, C) and returns float64 (...), NaN where the metric is not defined. The
    first line of its docstring describes the metric. Options are the fields of `Metric`.
    """

    def register(function: F) -> F:
        def compute(predictions: Predictions) -> float | None:
            return _known(float(function(predictions.counts)))

        def replicates(predictions: Predictions, clusters: np.ndarray) -> np.ndarray:
            whole = predictions.counts
            blocks = leave_one_out_counts(
                predictions.labels, predictions.predicted, clusters, len(predictions.classes)
            )
            return np.concatenate([function(Counts(b, whole.positive, whole.ordered)) for b in blocks])

        METRICS[function.__name__] = Metric(
            function.__name__,
            title,
            unit,
            _first_line(function.__doc__),
            compute,
            replicates,
            function,
            weighs,
            by_class,
            terms,
        )
        return function

    return register


def jackknife(predictions: Predictions, clusters: np.ndarray) -> dict[str, Jackknife]:
    """`compute` and `replicates` of every registered metric by its name.

    The confusion matrices without one cluster each are counted once for all metrics.

    clusters  int64 (N,), cluster numbers from 0 to G-1
    """
    whole, labels, predicted = predictions.counts, predictions.labels, predictions.predicted
    functions = {name: known.of_counts for name, known in METRICS.items() if known.of_counts is not None}
    without: dict[str, list[np.ndarray]] = {name: [] for name in functions}
    for block in leave_one_out_counts(labels, predicted, clusters, len(predictions.classes)):
        counts = Counts(block, whole.positive, whole.ordered)
        for name, function in functions.items():
            without[name].append(function(counts))
    found: dict[str, Jackknife] = {}
    for name, known in METRICS.items():
        if name in functions:
            found[name] = _known(float(functions[name](whole))), np.concatenate(without[name])
        elif known.together is not None:
            found[name] = known.together(predictions, clusters)
        else:
            found[name] = known.compute(predictions), known.replicates(predictions, clusters)
    return found


def _first_line(doc: str | None) -> str:
    return (doc or "").strip().splitlines()[0]


def class_sizes(predictions: Predictions, clusters: np.ndarray) -> np.ndarray:
    """float64 (G, C): units of each true class in each cluster; clusters int64 (N,)."""
    groups, classes = int(clusters.max()) + 1, len(predictions.classes)
    counts = np.bincount(clusters * classes + predictions.labels, minlength=groups * classes)
    return counts.reshape(groups, classes).astype(np.float64)


def _recalls(counts: Counts) -> np.ndarray:
    """What each class adds to balanced accuracy, (C,)."""
    return np.nan_to_num(counts.recall) / counts.present


@metric("Accuracy")
def accuracy(counts: Counts) -> np.ndarray:
    """Share of the units whose predicted class is the true one."""
    return _ratio(counts.right.sum(axis=-1), counts.total)


@metric("Macro F1", weighs="classes", terms=lambda counts: counts.f1 / counts.f1.shape[-1])
def macro_f1(counts: Counts) -> np.ndarray:
    """Mean F1 over all classes of the protocol; a class that is absent or never predicted counts as 0."""
    return counts.f1.mean(axis=-1)


@metric("Balanced accuracy", weighs="classes", by_class=True, terms=_recalls)
def balanced_accuracy(counts: Counts) -> np.ndarray:
    """Mean recall over the classes that have units."""
    return _ratio(np.nan_to_num(counts.recall).sum(axis=-1), counts.present)


@metric(
    "Chance-corrected balanced accuracy",
    unit="coefficient",
    weighs="classes",
    by_class=True,
    terms=lambda counts: _recalls(counts) / (1 - 1 / counts.present),
)
def chance_corrected(counts: Counts) -> np.ndarray:
    """Balanced accuracy on a scale where chance is 0 and perfect is 1; below 0 is worse than chance.

    (b - 1/K) / (1 - 1/K) for the K classes that have units, as scikit-learn's `adjusted=True`.
    """
    chance = _ratio(np.ones_like(counts.total), counts.present)
    return _ratio(balanced_accuracy(counts) - chance, 1 - chance)


def all_right_interval(
    predictions: Predictions, clusters: np.ndarray, *, models: int = 1
) -> tuple[float, float]:
    """The limits of chance-corrected balanced accuracy where all units are right (`all_right_limit`)."""
    sizes = class_sizes(predictions, clusters)
    chance = 1 / int(sizes.any(axis=0).sum())
    return (all_right_limit(sizes, models=models) - chance) / (1 - chance), 1.0


@metric("Cohen's kappa", unit="coefficient")
def kappa(counts: Counts) -> np.ndarray:
    """Cohen's kappa: agreement beyond what the frequencies of the classes give by chance (Cohen 1960)."""
    return _kappa(counts, 1 - np.eye(counts.matrix.shape[-1]))


@metric("Quadratic kappa", unit="coefficient")
def quadratic_kappa(counts: Counts) -> np.ndarray:
    """Cohen's kappa with quadratic weights (Cohen 1968), for classes in their order.

    Not defined where the classes have no order, or where all units have one class and are predicted as it.
    """
    if not counts.ordered:
        return np.full_like(counts.total, np.nan)
    place = np.arange(counts.matrix.shape[-1])
    return _kappa(counts, (place[:, None] - place[None, :]) ** 2.0)


@metric("Sensitivity", weighs="positive", by_class=True)
def sensitivity(counts: Counts) -> np.ndarray:
    """Of two classes: recall of the positive one (`positive_class`)."""
    return _of_two(counts, counts.positive)


@metric("Specificity", weighs="negative", by_class=True)
def specificity(counts: Counts) -> np.ndarray:
    """Of two classes: recall of the negative one."""
    return _of_two(counts, 1 - counts.positive)


def auroc(predictions: Predictions) -> float | None:
    """Mean over the classes of the area under the ROC curve of each class against the rest.

    A unit's score for a class is the margin over its best other class, which is above 0 for the predicted
    class and needs no temperature. Not defined without scores, or where all units have one class.
    """
    return _known(float(_auroc(predictions, np.zeros(len(predictions.labels), dtype=np.int64))[0]))


def _auroc_jackknife(predictions: Predictions, clusters: np.ndarray) -> Jackknife:
    value, without = _auroc(predictions, clusters)
    return _known(value), without


def _auroc_replicates(predictions: Predictions, clusters: np.ndarray) -> np.ndarray:
    return _auroc(predictions, clusters)[1]


def _auroc(predictions: Predictions, clusters: np.ndarray) -> tuple[float, np.ndarray]:
    """The figure, and the figure without one cluster each (G,)."""
    groups = int(clusters.max()) + 1
    if predictions.scores is None:
        return math.nan, np.full(groups, np.nan)
    margins = _margins(predictions.scores)
    areas = []
    for c in range(len(predictions.classes)):
        own = predictions.labels == c
        if own.any() and not own.all():
            areas.append(_area(margins[:, c], own, clusters, groups))
    if not areas:
        return math.nan, np.full(groups, np.nan)
    with np.errstate(invalid="ignore"):
        return float(np.mean([a for a, _ in areas])), np.mean([without for _, without in areas], axis=0)


def _margins(scores: np.ndarray) -> np.ndarray:
    """(N, C): each score minus the best of the other classes."""
    top = np.partition(scores, -2, axis=1)[:, -2:]
    best, second = top[:, 1:], top[:, :1]
    return np.where(scores == best, scores - second, scores - best)


def _area(scores: np.ndarray, own: np.ndarray, clusters: np.ndarray, groups: int) -> tuple[float, np.ndarray]:
    """The area under the ROC curve of `own`, bool (N,), and without one cluster each (G,).

    The area is the share of the pairs (own, other) in order, where a tie is half a pair. A left-out cluster
    takes with it the pairs of its own units with all others and the reverse; pairs within it count once.
    """
    rank = np.unique(scores, return_inverse=True)[1].reshape(-1)
    within = clusters * (int(rank.max()) + 1) + rank  # ranks of one cluster lie together
    start = clusters * (int(rank.max()) + 1)
    of_own, of_other = clusters[own], clusters[~own]
    below = _wins(rank[own], np.sort(rank[~own]), np.zeros(len(of_own)))
    above = own.sum() - _wins(rank[~own], np.sort(rank[own]), np.zeros(len(of_other)))
    inside = _wins(within[own], np.sort(within[~own]), np.searchsorted(np.sort(within[~own]), start[own]))
    pairs_own, pairs_other = np.bincount(of_own, minlength=groups), np.bincount(of_other, minlength=groups)
    lost = np.bincount(of_own, below - inside, groups) + np.bincount(of_other, above, groups)
    left = (own.sum() - pairs_own) * ((~own).sum() - pairs_other)
    area = below.sum() / (own.sum() * (~own).sum())
    return float(area), _ratio(below.sum() - lost, left)


def _wins(values: np.ndarray, others: np.ndarray, start: np.ndarray) -> np.ndarray:
    """For each value, how many of the sorted `others` from `start` on are below it; a tie is a half."""
    return (np.searchsorted(others, values) + np.searchsorted(others, values, side="right")) / 2 - start


METRICS["auroc"] = Metric(
    "auroc",
    "AUROC, one against the rest",
    "fraction",
    _first_line(auroc.__doc__),
    auroc,
    _auroc_replicates,
    weighs="classes",
    by_class=True,
    at_random=0.5,
    together=_auroc_jackknife,
)


_POSITIVE = re.compile(r"(?<!non)(?<!not)(?<!un)(?<!non[-_ ])(?<!not[-_ ])positive")


def positive_class(classes: Sequence[str]) -> int:
    """The number of the positive class of two: the one that is named so, else the first."""
    found = [c for c, name in enumerate(classes) if is_positive(name)]
    return found[0] if len(found) == 1 else 0


def is_positive(name: str) -> bool:
    """Whether a class is named as a positive one: `Ki67-positive`, HER2 `3+`, and not `non-positive`."""
    return name.endswith("3+") or _POSITIVE.search(name.lower()) is not None


class Figures(Config):
    """The metrics of a result: one field for each registered function, of the same name."""

    accuracy: float
    macro_f1: float
    balanced_accuracy: float
    chance_corrected: float | None
    kappa: float | None
    quadratic_kappa: float | None
    sensitivity: float | None
    specificity: float | None
    auroc: float | None


def measure(predictions: Predictions) -> dict[str, float | None]:
    """Every registered metric by its name."""
    return {name: registered.compute(predictions) for name, registered in METRICS.items()}


class ClassFigures(Config):
    """Precision, recall and F1 of one class (fractions), and the number of its units (support)."""

    precision: float
    recall: float
    f1: float
    support: int


def per_class(predictions: Predictions) -> dict[str, ClassFigures]:
    """The figures of each class, in the order of the classes; 0 where a quotient is undefined."""
    counts = predictions.counts
    columns = (np.nan_to_num(counts.precision), np.nan_to_num(counts.recall), counts.f1, counts.support)
    return {
        name: ClassFigures(precision=p, recall=r, f1=f, support=int(s))
        for name, p, r, f, s in zip(predictions.classes, *(c.tolist() for c in columns), strict=True)
    }


def confusion(predictions: Predictions) -> list[list[int]]:
    """C rows (true class) of C counts (predicted class)."""
    return predictions.counts.matrix.astype(int).tolist()


def _kappa(counts: Counts, weights: np.ndarray) -> np.ndarray:
    """1 - observed / expected disagreement, with weights (C, C) of disagreement."""
    expected = (weights * counts.support[..., :, None] * counts.guessed[..., None, :]).sum(axis=(-2, -1))
    return 1 - _ratio((weights * counts.matrix).sum(axis=(-2, -1)) * counts.total, expected)


def _of_two(counts: Counts, number: int) -> np.ndarray:
    """Recall of the class of this number, where there are two."""
    is_binary = counts.matrix.shape[-1] == 2
    return counts.recall[..., number] if is_binary else np.full_like(counts.total, np.nan)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """`above` / `below`, NaN where `below` is 0."""
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=np.asarray(below) != 0)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
