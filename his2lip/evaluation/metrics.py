"""Accuracy, macro F1, balanced accuracy and the confusion matrix, over all classes of a protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ClassFigures:
    """Precision, recall and F1 of one class (fractions), and its units (support)."""

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Summary:
    """The figures of one cell; fractions in [0, 1].

    macro_f1           mean F1 over all classes of the protocol, an absent or never-predicted class counting 0
    balanced_accuracy  mean recall over the classes that have units
    quadratic_kappa    Cohen's kappa with quadratic weights, for classes in their order; None: undefined
    confusion          C rows (truth) of C counts (prediction)
    """

    n: int
    accuracy: float
    macro_f1: float
    balanced_accuracy: float
    quadratic_kappa: float | None
    confusion: list[list[int]]
    per_class: dict[str, ClassFigures]


def summarise(labels: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> Summary:
    """Figures of predicted against true class numbers, both int (N,), 0 to C-1.

    Equal to scikit-learn's `accuracy_score`, `f1_score(labels=all C, average="macro", zero_division=0)`,
    `balanced_accuracy_score` and `cohen_kappa_score(weights="quadratic")`. Raises ValueError for no rows or
    numbers out of range.
    """
    matrix = confusion_matrix(labels, predicted, len(classes))
    right, truth, guessed = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    recall, precision = _ratio(right, truth), _ratio(right, guessed)
    f1 = _ratio(2 * right, truth + guessed)
    return Summary(
        n=int(matrix.sum()),
        accuracy=float(right.sum() / matrix.sum()),
        macro_f1=float(f1.mean()),
        balanced_accuracy=float(recall[truth > 0].mean()),
        quadratic_kappa=_quadratic_kappa(matrix),
        confusion=matrix.tolist(),
        per_class={
            name: ClassFigures(float(precision[c]), float(recall[c]), float(f1[c]), int(truth[c]))
            for c, name in enumerate(classes)
        },
    )


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, n_classes: int) -> np.ndarray:
    """int64 (C, C): rows are the truth, columns the prediction."""
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    if labels.shape != predicted.shape or labels.ndim != 1 or not len(labels):
        raise ValueError(
            f"labels {labels.shape} and predictions {predicted.shape} must be equal and not empty"
        )
    both = np.concatenate([labels, predicted])
    if both.min() < 0 or both.max() >= n_classes:
        raise ValueError(f"class numbers run from 0 to {n_classes - 1}")
    return np.bincount(labels * n_classes + predicted, minlength=n_classes**2).reshape(n_classes, n_classes)


def _quadratic_kappa(matrix: np.ndarray) -> float | None:
    """1 - observed / expected disagreement, weighted by the squared distance of classes (Cohen 1968)."""
    place = np.arange(len(matrix))
    weight = (place[:, None] - place[None, :]) ** 2
    expected = np.outer(matrix.sum(axis=1), matrix.sum(axis=0)) / matrix.sum()
    disagreement = float((weight * expected).sum())
    return 1 - float((weight * matrix).sum()) / disagreement if disagreement else None


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, 0 where the whole is 0."""
    return np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)
