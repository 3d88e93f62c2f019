"""Metrics equal those of scikit-learn, also for classes that do not occur, and without each cluster."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from his2lip.config import OptionError
from his2lip.evaluation.metrics import (
    METRICS,
    Predictions,
    confusion,
    jackknife,
    measure,
    per_class,
    positive_class,
)

predictions_of = st.integers(2, 6).flatmap(
    lambda c: st.tuples(
        st.just(c), st.lists(st.tuples(st.integers(0, c - 1), st.integers(0, c - 1)), min_size=1, max_size=60)
    )
)


@settings(max_examples=40, deadline=None)
@given(predictions_of)
def test_figures_are_those_of_scikit_learn(case: tuple[int, list[tuple[int, int]]]) -> None:
    from sklearn import metrics

    n_classes, pairs = case
    warnings.simplefilter("ignore")  # scikit-learn's, of absent classes
    labels, predicted = np.array(pairs).T
    predictions = Predictions(labels, predicted, [f"c{i}" for i in range(n_classes)], ordered=True)
    found, everything = measure(predictions), list(range(n_classes))
    assert list(found) == list(METRICS)

    def same(name: str, wanted: float) -> bool:
        return found[name] is None if np.isnan(wanted) else found[name] == pytest.approx(wanted)

    assert same("accuracy", metrics.accuracy_score(labels, predicted))
    macro = {"labels": everything, "average": "macro", "zero_division": 0}
    assert same("macro_f1", metrics.f1_score(labels, predicted, **macro))
    assert same("balanced_accuracy", metrics.balanced_accuracy_score(labels, predicted))
    if len(set(labels.tolist())) > 1:
        adjusted = metrics.balanced_accuracy_score(labels, predicted, adjusted=True)
        assert same("chance_corrected", adjusted)
    else:
        assert found["chance_corrected"] is None
    assert same("kappa", metrics.cohen_kappa_score(labels, predicted, labels=everything))
    quadratic = metrics.cohen_kappa_score(labels, predicted, labels=everything, weights="quadratic")
    assert same("quadratic_kappa", quadratic)
    matrix = metrics.confusion_matrix(labels, predicted, labels=everything)
    np.testing.assert_array_equal(confusion(predictions), matrix)
    columns = metrics.precision_recall_fscore_support(labels, predicted, labels=everything, zero_division=0)
    for c, figures in enumerate(per_class(predictions).values()):
        own = (figures.precision, figures.recall, figures.f1, figures.support)
        assert own == pytest.approx(tuple(column[c] for column in columns))
    if n_classes == 2:
        recall = {"zero_division": np.nan}
        assert same("sensitivity", metrics.recall_score(labels, predicted, pos_label=0, **recall))
        assert same("specificity", metrics.recall_score(labels, predicted, pos_label=1, **recall))
    else:
        assert found["sensitivity"] is found["specificity"] is None


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("decimals", [1, 9], ids=["with ties", "without ties"])
def test_auroc_is_that_of_scikit_learn_for_margins(classes: int, decimals: int) -> None:
    from sklearn.metrics import roc_auc_score

    predictions = scored_predictions(classes, decimals)
    assert predictions.scores is not None
    areas = []
    for c in range(classes):
        others = np.delete(predictions.scores, c, axis=1).max(axis=1)
        areas.append(roc_auc_score(predictions.labels == c, predictions.scores[:, c] - others))
    assert measure(predictions)["auroc"] == pytest.approx(np.mean(areas))
    without = Predictions(predictions.labels, predictions.predicted, predictions.classes)
    assert measure(without)["auroc"] is None


@pytest.mark.parametrize("name", list(METRICS))
@pytest.mark.parametrize("classes", [2, 4])
def test_figures_without_a_cluster_are_those_of_the_other_units(name: str, classes: int) -> None:
    predictions = scored_predictions(classes, 1)
    clusters = np.random.default_rng(1).integers(7, size=len(predictions.labels))
    found = METRICS[name].replicates(predictions, clusters)
    wanted = [METRICS[name].compute(predictions.where(clusters != g)) for g in range(7)]
    np.testing.assert_allclose(found, np.array(wanted, dtype=float))


def test_all_metrics_at_once_are_to_the_bit_each_of_its_own() -> None:
    predictions = scored_predictions(4, 1)
    clusters = np.random.default_rng(1).integers(7, size=len(predictions.labels))
    found = jackknife(predictions, clusters)
    assert list(found) == list(METRICS)
    for name, (value, without) in found.items():
        assert value == METRICS[name].compute(predictions)
        np.testing.assert_array_equal(without, METRICS[name].replicates(predictions, clusters))


def scored_predictions(classes: int, decimals: int) -> Predictions:
    """60 units with random scores that are higher for their own class, rounded."""
    rng = np.random.default_rng(classes)
    labels = rng.integers(classes, size=60)
    scores = rng.normal(size=(60, classes)) + np.eye(classes)[labels]
    scores = scores.round(decimals).astype(np.float32)
    return Predictions(labels, scores.argmax(axis=1), [f"c{i}" for i in range(classes)], True, scores)


def test_the_positive_class_of_two_is_the_one_named_so_or_else_the_first() -> None:
    assert positive_class(["negative", "positive"]) == 1
    assert positive_class(["0 or 1+", "3+"]) == 1
    assert positive_class(["tumour", "non-tumour"]) == 0
    for other in ("non-positive", "Ki67-non-positive", "not positive", "unpositive"):
        assert positive_class([other, "positive"]) == 1, other
    assert positive_class(["Ki67-negative", "Ki67-positive"]) == 1


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
