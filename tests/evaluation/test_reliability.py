"""Calibration figures: against plain definitions, and by simulation with a known truth."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.special import logsumexp
from sklearn.metrics import brier_score_loss, log_loss

from his2lip.evaluation.reliability import (
    BINS,
    Answers,
    Measured,
    aurc,
    brier,
    calibration_figures,
    ece,
    fit_temperature,
    nll,
    risk_coverage,
    slope,
    softmax,
)


def drawn(
    n: int, *, seed: int, sharper: float = 1.0, per_case: int = 1, spread: float = 0.0, classes: int = 3
) -> Answers:
    """n units whose labels follow softmax(logits / sharper): `sharper` above 1 is too confident.

    spread  how far the cases move the true logits of their units, so that these are right or wrong together
    """
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (n, classes))
    clusters = np.arange(n) // per_case
    shift = rng.normal(0, spread, (int(clusters.max()) + 1, classes))[clusters] if spread else 0.0
    labels = (logits + shift + rng.gumbel(size=logits.shape)).argmax(axis=1)
    return Answers(sharper * logits, labels, clusters)


def without(answers: Answers, cluster: int) -> Answers:
    keep = answers.clusters != cluster
    clusters = np.unique(answers.clusters[keep], return_inverse=True)[1]
    return Answers(answers.logits[keep], answers.labels[keep], clusters)


def test_brier_and_log_likelihood_are_those_of_scikit_learn() -> None:
    answers = drawn(200, seed=1)
    chances = softmax(answers.logits)
    assert nll(answers)[0] == pytest.approx(log_loss(answers.labels, chances))
    assert brier(answers)[0] == pytest.approx(
        sum(brier_score_loss(answers.labels == c, chances[:, c]) for c in range(3))
    )


@pytest.mark.parametrize("figure", [brier, nll, slope, aurc])
def test_figures_without_one_cluster_are_those_of_the_other_units(
    figure: Callable[[Answers], Measured],
) -> None:
    answers = drawn(120, seed=2, per_case=5, sharper=1.3)
    _, found = figure(answers)
    plain = [figure(without(answers, c))[0] for c in range(answers.groups)]
    exact = figure is not slope  # one Newton step
    np.testing.assert_allclose(found, plain, rtol=1e-9 if exact else 5e-3)


def test_the_debiased_error_is_that_of_kumar_et_al_for_one_unit_per_case() -> None:
    """One confidence per bin: sum of shares x (gap^2 - accuracy (1 - accuracy) / (n - 1))."""
    rng = np.random.default_rng(3)
    logits = np.repeat(np.linspace(0.1, 3, BINS), 10)[:, None] * np.array([1.0, 0.0])
    labels = rng.integers(2, size=len(logits))
    answers = Answers(logits, labels, np.arange(len(logits)))
    confidence = answers.confidence.reshape(BINS, 10)[:, 0]
    accuracy = answers.right.reshape(BINS, 10).mean(axis=1)
    wanted = np.mean((accuracy - confidence) ** 2 - accuracy * (1 - accuracy) / 9)
    assert ece(answers)[0] == pytest.approx(wanted)


@pytest.mark.parametrize(("per_case", "spread"), [(1, 0.0), (10, 0.7)])
def test_a_perfect_model_reads_zero_and_its_interval_holds_zero(per_case: int, spread: float) -> None:
    """100 units in 15 bins, where the plain estimate reads about 11 %; and 300 units of cases that agree."""
    n = 100 if per_case == 1 else 300
    squares, holds, plain = [], [], []
    for seed in range(400):
        answers = drawn(n, seed=seed, per_case=per_case, spread=spread)
        if spread:  # the marginal truth: what units of new cases would do is known by simulation only
            answers = Answers(answers.logits, _labels_of_other_cases(answers, seed, spread), answers.clusters)
        found = calibration_figures(answers)["ece"]
        squares.append(ece(answers)[0])
        holds.append(found.lo == 0.0)
        gap = answers.right - answers.confidence
        parts = np.array_split(np.argsort(answers.confidence), BINS)
        plain.append(sum(abs(gap[part].sum()) for part in parts) / n)
    error = np.std(squares) / np.sqrt(len(squares))
    assert abs(np.mean(squares)) < 4 * error + 1e-4, "unbiased"
    assert np.mean(holds) >= 0.93
    if per_case == 1:
        assert np.mean(plain) > 0.10, "what is avoided"


def _labels_of_other_cases(answers: Answers, seed: int, spread: float) -> np.ndarray:
    """Labels that are right together within a case, and whose confidence is true over all cases.

    A unit is right with the probability of its confidence, by one normal variable per unit of which half the
    variance is its case's (a Gaussian copula).
    """
    from scipy.stats import norm

    rng = np.random.default_rng([seed, 7])
    of_case = rng.normal(size=answers.groups)[answers.clusters]
    common = np.sqrt(0.5) * of_case + np.sqrt(0.5) * rng.normal(size=len(of_case))
    right = norm.cdf(common) < answers.confidence
    predicted = answers.logits.argmax(axis=1)
    return np.where(right, predicted, (predicted + 1) % answers.logits.shape[1])


def test_the_interval_of_the_error_covers_that_of_a_model_that_is_too_confident() -> None:
    """The truth is that of 200,000 units."""
    true = np.sqrt(ece(drawn(200_000, seed=0, sharper=2.5))[0])
    assert true > 0.1
    found = [calibration_figures(drawn(300, seed=s, sharper=2.5, per_case=5))["ece"] for s in range(200)]
    assert np.mean([e.lo <= true <= e.hi for e in found]) > 0.88
    assert np.mean([e.lo > 0 for e in found]) > 0.9, "and it is told from a perfect one"


def test_the_slope_is_one_for_true_probabilities_and_below_for_too_confident_ones() -> None:
    assert slope(drawn(20_000, seed=1))[0] == pytest.approx(1, abs=0.05)
    assert slope(drawn(20_000, seed=1, sharper=2.0))[0] == pytest.approx(0.5, abs=0.03)
    covers = [calibration_figures(drawn(200, seed=s, per_case=4))["slope"] for s in range(200)]
    assert 0.9 <= np.mean([e.lo <= 1 <= e.hi for e in covers]) <= 0.99
    perfect = Answers(np.eye(3)[[0, 1, 2]], np.array([0, 1, 2]), np.arange(3))
    assert slope(perfect) is None, "no finite factor is best"


def test_units_of_equal_confidence_have_no_order() -> None:
    scores = np.tile([1.0, 0.0], (6, 1))
    labels, clusters = np.array([0, 0, 0, 1, 1, 1]), np.arange(6)
    one, other = Answers(scores, labels, clusters), Answers(scores, labels[::-1], clusters)
    assert aurc(one)[0] == aurc(other)[0] == pytest.approx(0.5)
    (point,) = {(p.coverage, p.risk) for p in risk_coverage(one)}
    assert point == (1.0, 0.5), "all are answered together"


def test_risk_falls_with_coverage_where_confidence_is_informative() -> None:
    answers = drawn(2_000, seed=4)
    curve = risk_coverage(answers)
    assert [p.coverage for p in curve] == pytest.approx([i / 20 for i in range(1, 21)])
    assert curve[-1].risk == pytest.approx(1 - answers.right.mean())
    assert curve[0].risk < curve[9].risk < curve[-1].risk
    half = answers.confidence >= curve[9].least
    assert (half.mean(), 1 - answers.right[half].mean()) == pytest.approx((0.5, curve[9].risk))
    order = np.argsort(-answers.confidence)
    risks = [1 - answers.right[order[:k]].mean() for k in range(1, len(order) + 1)]
    assert aurc(answers)[0] == pytest.approx(np.mean(risks))


def test_the_temperature_has_the_least_loss() -> None:
    answers = drawn(500, seed=5, sharper=3.0)
    t = fit_temperature(answers.logits, answers.labels, where="here")
    least = nll(Answers(answers.logits / t, answers.labels, answers.clusters))[0]
    for factor in (0.9, 1.1):
        z = answers.logits / (t * factor)
        assert least <= (logsumexp(z, axis=1) - z[np.arange(500), answers.labels]).mean()


def test_no_figure_depends_on_the_order_of_units_with_equal_confidence() -> None:
    labels, logits = np.repeat([0, 1], 150), np.zeros((300, 2))
    logits[:, 0] = 0.02
    mixed = np.random.default_rng(0).permutation(300)
    by_class, other = (
        calibration_figures(Answers(logits[order], labels[order], np.arange(300)[order]))
        for order in (np.arange(300), mixed)
    )
    for name in sorted(set(by_class) - {"slope"}):  # units that are all alike have none
        assert by_class[name].value == pytest.approx(other[name].value, nan_ok=True), name
