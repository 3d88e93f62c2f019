"""Metrics against scikit-learn, and over classes that are absent."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from his2lip.evaluation.metrics import summarise


@settings(max_examples=80, deadline=None)
@given(st.integers(2, 6).flatmap(lambda c: st.tuples(
    st.just(c), st.lists(st.tuples(st.integers(0, c - 1), st.integers(0, c - 1)), min_size=1, max_size=60)
)))  # fmt: skip
def test_figures_equal_scikit_learn(case: tuple[int, list[tuple[int, int]]]) -> None:
    from sklearn import metrics

    n_classes, pairs = case
    labels, predicted = np.array(pairs).T
    found = summarise(labels, predicted, [f"c{i}" for i in range(n_classes)])
    everything = list(range(n_classes))
    assert found.accuracy == pytest.approx(metrics.accuracy_score(labels, predicted))
    assert found.macro_f1 == pytest.approx(
        metrics.f1_score(labels, predicted, labels=everything, average="macro", zero_division=0)
    )
    recalls = metrics.recall_score(labels, predicted, labels=sorted(set(labels.tolist())), average="macro")
    assert found.balanced_accuracy == pytest.approx(recalls)
    np.testing.assert_array_equal(
        found.confusion, metrics.confusion_matrix(labels, predicted, labels=everything)
    )
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        labels, predicted, labels=everything, zero_division=0
    )
    for c, figures in enumerate(found.per_class.values()):
        assert (figures.precision, figures.recall) == pytest.approx((precision[c], recall[c]))
        assert (figures.f1, figures.support) == pytest.approx((f1[c], support[c]))
    if len({*labels.tolist(), *predicted.tolist()}) > 1:
        kappa = metrics.cohen_kappa_score(labels, predicted, labels=everything, weights="quadratic")
        assert found.quadratic_kappa == pytest.approx(kappa)


def test_a_class_that_never_occurs_still_counts_in_macro_f1() -> None:
    found = summarise(np.array([0, 1]), np.array([0, 1]), ["a", "b", "absent"])
    assert found.accuracy == 1.0
    assert found.macro_f1 == pytest.approx(2 / 3)
    assert found.balanced_accuracy == 1.0


@pytest.mark.parametrize(
    ("labels", "predicted"), [([], []), ([0], [0, 1]), ([0, 2], [0, 0]), ([0, 0], [0, -1])]
)
def test_labels_that_do_not_fit_are_refused(labels: list[int], predicted: list[int]) -> None:
    with pytest.raises(ValueError, match=r"labels|class numbers"):
        summarise(np.array(labels), np.array(predicted), ["a", "b"])
