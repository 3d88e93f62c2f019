"""Metrics follow their definitions on the confusion matrix, also for classes that do not occur."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from his2lip.config import OptionError
from his2lip.evaluation.metrics import METRICS, Predictions, confusion, measure, per_class


@settings(max_examples=80, deadline=None)
@given(st.integers(2, 6).flatmap(lambda c: st.tuples(
    st.just(c), st.lists(st.tuples(st.integers(0, c - 1), st.integers(0, c - 1)), min_size=1, max_size=60)
)))  # fmt: skip
def test_figures_follow_from_the_confusion_matrix(case: tuple[int, list[tuple[int, int]]]) -> None:
    from sklearn import metrics

    n_classes, pairs = case
    labels, predicted = np.array(pairs).T
    predictions = Predictions(labels, predicted, [f"c{i}" for i in range(n_classes)], ordered=True)
    found, everything = measure(predictions), list(range(n_classes))
    assert list(found) == list(METRICS)
    assert found["accuracy"] == pytest.approx(np.mean(labels == predicted))
    matrix = np.array(confusion(predictions))
    np.testing.assert_array_equal(matrix, metrics.confusion_matrix(labels, predicted, labels=everything))
    right, truth, guessed = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    f1 = [2 * r / (t + g) if t + g else 0.0 for r, t, g in zip(right, truth, guessed, strict=True)]
    assert found["macro_f1"] == pytest.approx(np.mean(f1))
    recalls = [r / t for r, t in zip(right, truth, strict=True) if t]
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    for c, figures in enumerate(per_class(predictions).values()):
        assert figures.precision == pytest.approx(right[c] / guessed[c] if guessed[c] else 0.0)
        assert figures.recall == pytest.approx(right[c] / truth[c] if truth[c] else 0.0)
        assert (figures.f1, figures.support) == pytest.approx((f1[c], truth[c]))
    assert found["quadratic_kappa"] == pytest.approx(_quadratic_kappa(matrix))


def _quadratic_kappa(matrix: np.ndarray) -> float | None:
    """1 - observed / expected disagreement, weighted by the squared distance of classes (Cohen 1968)."""
    place = np.arange(len(matrix))
    weight = (place[:, None] - place[None, :]) ** 2
    expected = (weight * np.outer(matrix.sum(axis=1), matrix.sum(axis=0)) / matrix.sum()).sum()
    return float(1 - (weight * matrix).sum() / expected) if expected else None


def test_quadratic_kappa_is_only_defined_for_ordered_classes() -> None:
    labels = np.array([0, 1, 2])
    assert measure(Predictions(labels, labels, "abc"))["quadratic_kappa"] is None
    assert measure(Predictions(labels, labels, "abc", ordered=True))["quadratic_kappa"] == 1.0


def test_a_class_that_never_occurs_still_counts_in_macro_f1() -> None:
    found = measure(Predictions(np.array([0, 1]), np.array([0, 1]), ["a", "b", "absent"]))
    assert found["accuracy"] == 1.0
    assert found["macro_f1"] == pytest.approx(2 / 3)
    assert found["balanced_accuracy"] == 1.0


@pytest.mark.parametrize(
    ("labels", "predicted", "named"),
    [
        ([], [], "labels"),
        ([0], [0, 1], "predicted"),
        ([0, 2], [0, 0], "labels"),
        ([0, 0], [0, -1], "predicted"),
    ],
)
def test_labels_that_do_not_fit_are_refused_by_name(
    labels: list[int], predicted: list[int], named: str
) -> None:
    with pytest.raises(OptionError) as refused:
        Predictions(np.array(labels, dtype=int), np.array(predicted, dtype=int), ["a", "b"])
    assert refused.value.key == named
