"""Metrics of predictions against true classes: one registered function for each, computed by scikit-learn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from his2lip.config import Config, OptionError

Unit = Literal["fraction", "coefficient"]  # in [0, 1], shown in percent; or in [-1, 1], shown as it is


@dataclass(frozen=True)
class Predictions:
    """N units with their true and predicted classes.

    labels, predicted  int64 (N,), class numbers 0 to C-1
    classes            (C,) names; all of them count, whether or not a unit has them
    ordered            whether the classes are given in their order (scores 0, 1+, 2+, 3+)

    Raises OptionError, whose `key` is the argument, for no units, arrays of different lengths, or class
    numbers out of range.
    """

    labels: np.ndarray
    predicted: np.ndarray
    classes: Sequence[str]
    ordered: bool = False

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

    @property
    def numbers(self) -> list[int]:
        """The numbers of all classes, as scikit-learn's `labels` argument."""
        return list(range(len(self.classes)))

    def where(self, mask: np.ndarray) -> Predictions:
        """The units where `mask`, bool (N,), is true."""
        return Predictions(self.labels[mask], self.predicted[mask], self.classes, self.ordered)


@dataclass(frozen=True)
class Metric:
    """A registered metric: its name (also a field of `Figures`), title on pages, unit and meaning."""

    name: str
    title: str
    unit: Unit
    description: str
    compute: Callable[[Predictions], float | None]


METRICS: dict[str, Metric] = {}

F = TypeVar("F", bound=Callable[[Predictions], "float | None"])


def metric(title: str, *, unit: Unit = "fraction") -> Callable[[F], F]:
    """Registers a function under its own name; the first line of its docstring describes the metric."""

    def register(function: F) -> F:
        name, described = function.__name__, (function.__doc__ or "").strip().splitlines()[0]
        METRICS[name] = Metric(name, title, unit, described, function)
        return function

    return register


@metric("Accuracy")
def accuracy(predictions: Predictions) -> float:
    """Share of the units whose predicted class is the true one."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(predictions.labels, predictions.predicted))


@metric("Macro F1")
def macro_f1(predictions: Predictions) -> float:
    """Mean F1 over all classes of the protocol; a class that is absent or never predicted counts as 0."""
    from sklearn.metrics import f1_score

    return float(
        f1_score(
            predictions.labels,
            predictions.predicted,
            labels=predictions.numbers,
            average="macro",
            zero_division=0,
        )
    )


@metric("Balanced accuracy")
def balanced_accuracy(predictions: Predictions) -> float:
    """Mean recall over the classes that have units."""
    from sklearn.metrics import recall_score

    # balanced_accuracy_score warns about every predicted class that no unit has.
    present = np.unique(predictions.labels)
    return float(recall_score(predictions.labels, predictions.predicted, labels=present, average="macro"))


@metric("Quadratic kappa", unit="coefficient")
def quadratic_kappa(predictions: Predictions) -> float | None:
    """Cohen's kappa with quadratic weights (Cohen 1968), for classes in their order.

    None where the classes have no order, or where all units have one class and are predicted as it.
    """
    from sklearn.metrics import cohen_kappa_score

    seen = {*predictions.labels.tolist(), *predictions.predicted.tolist()}
    if not predictions.ordered or len(seen) < 2:
        return None
    return float(
        cohen_kappa_score(
            predictions.labels, predictions.predicted, labels=predictions.numbers, weights="quadratic"
        )
    )


class Figures(Config):
    """The metrics of a result: one field for each registered function, of the same name."""

    accuracy: float
    macro_f1: float
    balanced_accuracy: float
    quadratic_kappa: float | None


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
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(
        predictions.labels, predictions.predicted, labels=predictions.numbers, zero_division=0
    )
    return {
        name: ClassFigures(precision=p, recall=r, f1=f, support=s)
        for name, p, r, f, s in zip(predictions.classes, *(c.tolist() for c in columns), strict=True)
    }


def confusion(predictions: Predictions) -> list[list[int]]:
    """C rows (true class) of C counts (predicted class)."""
    from sklearn.metrics import confusion_matrix

    matrix = confusion_matrix(predictions.labels, predictions.predicted, labels=predictions.numbers)
    return [[int(count) for count in row] for row in matrix]
