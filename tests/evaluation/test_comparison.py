"""Differences by simulation: equal models are rarely told apart, a better one mostly, the best stays on top.

The population: a patch is answered rightly where the sum of normal terms is below a threshold. The terms are
shared by all models (of the case, of the patch) or are a model's own. Two patches of one case correlate by
0.3 for each model.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy.special import ndtri

from his2lip.evaluation.comparison import FLIPS, Differences, _letter, _limit, compare, sign_vectors
from his2lip.evaluation.metrics import METRICS, Counts, Predictions, macro_f1
from his2lip.evaluation.statistics import standard_error

OF_CASE, OWN_OF_CASE = 0.27, 0.03  # shares of the variance, which together are the correlation of 0.3
OF_PATCH = 0.35  # the other 0.35 is each model's own
PATCHES = 100  # per case
RIGHT = 0.6  # share of right answers


def simulate(rng: np.random.Generator, cases: int, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Macro F1 (M,) of models with these shares of right answers (M,), and without one case each (M, G)."""
    models = len(right)
    shared = np.sqrt(OF_CASE) * rng.standard_normal((1, cases, 1))
    shared = shared + np.sqrt(OF_PATCH) * rng.standard_normal((1, cases, PATCHES))
    own = np.sqrt(OWN_OF_CASE) * rng.standard_normal((models, cases, 1))
    own = own + np.sqrt(1 - OF_CASE - OWN_OF_CASE - OF_PATCH) * rng.standard_normal((models, cases, PATCHES))
    labels = rng.choice(3, p=[0.5, 0.3, 0.2], size=(cases, PATCHES))
    wrong = (labels + rng.integers(1, 3, size=labels.shape)) % 3
    predicted = np.where(shared + own < ndtri(right)[:, None, None], labels, wrong)
    place = np.arange(models)[:, None, None] * cases + np.arange(cases)[:, None]
    flat = (place * 9 + labels * 3 + predicted).ravel()
    counts = np.bincount(flat, minlength=models * cases * 9).reshape(models, cases, 3, 3)
    total = counts.sum(axis=1)
    return macro_f1(Counts(total)), macro_f1(Counts(total[:, None] - counts))


def compared(values: np.ndarray, replicates: np.ndarray, *, seed: int = 0) -> Differences:
    """The differences of models on cases of one size, where each has an equal share in the figures."""
    groups = replicates.shape[1]
    influence = (groups - 1) / groups * (replicates.mean(axis=1, keepdims=True) - replicates)
    shares = np.full(groups, 1 / groups)
    return compare(values, replicates, influence + values[:, None] * shares, shares, seed=seed)


def found(models: int, cases: int, runs: int, lead: float) -> list[Differences]:
    """The differences in each run; the last model is better by `lead`."""
    rng = np.random.default_rng([models, cases, int(1000 * lead)])
    right = np.full(models, RIGHT)
    right[-1] += lead
    return [compared(*simulate(rng, cases, right), seed=run) for run in range(runs)]


def check_equal_models(models: int, cases: int, runs: int) -> None:
    told = [differences.distinguishable.any() for differences in found(models, cases, runs, 0.0)]
    assert np.mean(told) <= 0.07


def check_a_better_model(models: int, cases: int, runs: int) -> None:
    """The share of the other models that it is told from, and whether it is in the top group."""
    runs_of = found(models, cases, runs, 0.1)
    assert np.mean([differences.distinguishable[-1, :-1] for differences in runs_of]) >= 0.8
    assert np.mean([differences.top_group()[-1] for differences in runs_of]) >= 0.95


def check_the_best_is_in_the_top_group(models: int, cases: int, runs: int) -> None:
    """It leads by two points only, so that another one often has the largest figure."""
    runs_of = found(models, cases, runs, 0.02)
    assert np.mean([differences.values.argmax() != models - 1 for differences in runs_of]) > 0.1
    assert np.mean([differences.top_group()[-1] for differences in runs_of]) >= 0.95


@pytest.mark.parametrize(("models", "cases", "runs"), [(8, 8, 200), (20, 8, 100), (8, 30, 100), (20, 30, 30)])
def test_equal_models_are_rarely_told_apart(models: int, cases: int, runs: int) -> None:
    check_equal_models(models, cases, runs)


def test_a_model_that_is_ten_points_better_is_told_from_the_others() -> None:
    check_a_better_model(8, 30, 50)


def test_the_best_model_is_in_the_top_group() -> None:
    check_the_best_is_in_the_top_group(8, 8, 150)


@pytest.mark.slow
@pytest.mark.parametrize("models", [8, 20])
def test_differences_are_told_and_held_back_at_their_rates_in_many_runs(models: int) -> None:
    for cases in (8, 30):
        check_equal_models(models, cases, 1500)
        check_the_best_is_in_the_top_group(models, cases, 500)
    check_a_better_model(models, 30, 500)


def test_intervals_and_groups_agree() -> None:
    differences = found(8, 30, 1, 0.1)[0]
    for i in range(8):
        for j in range(8):
            limits = differences.interval(i, j)
            told = limits is not None and not limits[0] <= 0 <= limits[1]
            assert told == differences.distinguishable[i, j]


@pytest.mark.parametrize("models", [1, 2, 5, 20])
def test_models_share_a_letter_exactly_where_they_cannot_be_told_apart(models: int) -> None:
    rng = np.random.default_rng(models)
    for _ in range(20):
        errors = np.abs(rng.normal(0.1, 0.05, (models, models)))
        values, errors = rng.random(models), errors + errors.T
        differences = Differences(values, errors, values[:, None] - values - errors, clusters=9)
        among = rng.random(models) < 0.8
        letters = differences.groups(among)
        assert [bool(own) for own in letters] == among.tolist()
        for i, j in zip(*np.nonzero(among[:, None] & among), strict=True):
            assert bool(set(letters[i]) & set(letters[j])) != (differences.distinguishable[i, j] and i != j)
        if among.any():
            best = int(np.where(among, differences.values, -1).argmax())
            assert letters[best].startswith("a")


def plain_groups(differences: Differences) -> list[frozenset[int]]:
    """Insertion and absorption as published: every group is compared with every other one."""
    models = range(len(differences.values))
    groups = [frozenset(models)]
    for i, j in combinations(models, 2):
        if differences.distinguishable[i, j]:
            parts = {g - {k} for g in groups if {i, j} <= g for k in (i, j)}
            parts |= {g for g in groups if not {i, j} <= g}
            groups = [g for g in parts if not any(g < other for other in parts)]
    return sorted(groups, key=lambda g: sorted(-differences.values[i] for i in g))


@pytest.mark.parametrize("models", [3, 8, 25])
def test_letters_are_those_of_comparing_all_groups_also_where_figures_are_equal(models: int) -> None:
    rng = np.random.default_rng(models)
    for _ in range(10):
        values, errors = rng.random(models).round(1), np.abs(rng.normal(0.1, 0.05, (models, models)))
        lower = values[:, None] - values - errors - errors.T
        differences = Differences(values, errors + errors.T, lower, clusters=9)
        wanted = plain_groups(differences)
        letters = ["".join(_letter(n) for n, g in enumerate(wanted) if i in g) for i in range(models)]
        assert differences.groups() == letters


def plain_limit(contributions: np.ndarray) -> float:
    """The limit of the test, from one pair of models at a time."""
    largest: list[float] = []
    for signs in sign_vectors(contributions.shape[1], seed=0):
        sums, most = contributions @ signs.T, np.zeros(len(signs))
        for i, j in combinations(range(len(contributions)), 2):
            if (norm := np.linalg.norm(contributions[i] - contributions[j])) > 1e-12:
                most = np.maximum(most, np.abs(sums[i] - sums[j]) / norm)
        largest += most.tolist()
    return float(np.sort(largest)[-int(0.05 * len(largest) + 1e-9) - 1]) ** 2


@pytest.mark.parametrize(("models", "cases"), [(3, 8), (9, 30), (5, 2500)])
def test_all_pairs_at_once_are_to_the_bit_the_pairs_one_by_one(models: int, cases: int) -> None:
    rng = np.random.default_rng(cases)
    replicates = rng.random((models, cases)) / cases + rng.random((models, 1))
    contributions = rng.random((models, cases))
    for own in (replicates, contributions):
        own[-1] = own[0]  # two models with the same predictions
    found_ = compare(replicates.mean(axis=1), replicates, contributions, np.full(cases, 1 / cases))
    errors = [[standard_error(b - a) for b in replicates] for a in replicates]
    np.testing.assert_array_equal(found_.errors, errors)
    assert _limit(contributions, 0) == plain_limit(contributions)


def test_the_detectable_difference_is_seen_in_four_of_five_runs() -> None:
    detectable = np.mean([differences.detectable() for differences in found(2, 30, 40, 0.0)])
    seen = np.mean([d.distinguishable[0, 1] for d in found(2, 30, 300, round(float(detectable), 3))])
    assert 0.7 <= seen <= 0.9


def test_models_with_the_same_predictions_are_not_told_apart() -> None:
    values, replicates = simulate(np.random.default_rng(0), 12, np.array([0.3, 0.8]))
    same = compared(values[[0, 0, 1]], replicates[[0, 0, 1]])
    assert same.interval(0, 1) is None
    assert same.distinguishable.tolist() == [
        [False, False, True], [False, False, True], [True, True, False],
    ]  # fmt: skip


@pytest.mark.parametrize("cases", [5, 6])
def test_five_clusters_have_too_few_sign_flips_for_any_difference(cases: int) -> None:
    values, replicates = simulate(np.random.default_rng(0), cases, np.array([0.1, 0.9]))
    differences = compared(values, replicates)
    assert differences.distinguishable.any() == (cases > 5)
    assert (differences.detectable() is None) == (cases == 5)


def test_all_sign_flips_are_tried_where_there_are_few() -> None:
    few = np.concatenate(list(sign_vectors(6, seed=0)))
    assert len({tuple(row) for row in few.tolist()}) == len(few) == 2**5
    many = np.concatenate(list(sign_vectors(40, seed=0)))
    assert many.shape == (FLIPS, 40)
    assert (many[0] == 1).all()


@pytest.mark.parametrize("cases", [5, 8])
def test_a_difference_on_which_all_clusters_agree_can_be_told_but_has_no_interval(cases: int) -> None:
    """A model without an error, and one that always answers with one class."""
    differences = compared(np.array([1.0, 0.5]), np.array([[1.0], [0.5]]).repeat(cases, axis=1))
    assert differences.distinguishable[0, 1] == (cases == 8)
    assert differences.interval(0, 1) is None
    assert differences.detectable() is None


# Units of each class in each case: one case has most of them; a class is in few cases; each case has one
# label, and few have the second.
UNEVEN = {
    "one large case": [[10, 10]] * 14 + [[300, 300]],
    "sizes from 10 to 400": [[n // 2, n // 2] for n in (10, 10, 20, 20, 40, 80, 200, 400)],
    "a class in 3 cases": [[20, 20, 0]] * 12 + [[15, 15, 10]] * 3,
    "one label per case": [[40, 0]] * 27 + [[0, 40]] * 3,
}
METRIC_NAMES = ("accuracy", "balanced_accuracy", "macro_f1", "specificity")


def guesses(rng: np.random.Generator, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, predictions and cases of units; two units of a case correlate by 0.3, and 60 % are right."""
    case, label = (np.repeat(place, sizes.ravel()) for place in map(np.ravel, np.indices(sizes.shape)))
    size = 1 / 0.3 - 1
    right = rng.random(len(case)) < rng.beta(RIGHT * size, (1 - RIGHT) * size, len(sizes))[case]
    other = (label + rng.integers(1, sizes.shape[1], len(case))) % sizes.shape[1]
    return label, np.where(right, label, other), case


@pytest.mark.parametrize("design", list(UNEVEN))
def test_equal_models_are_rarely_told_apart_where_cases_are_of_other_sizes_or_classes(design: str) -> None:
    """The shares of units, in place of 1/G for each case, matter: with 1/G, 20 to 27 % were told apart."""
    sizes, rng, runs = np.array(UNEVEN[design]), np.random.default_rng(len(design)), 150
    names = [f"c{i}" for i in range(sizes.shape[1])]
    told = dict.fromkeys(METRIC_NAMES, 0)
    for run in range(runs):
        drawn = [guesses(rng, sizes) for _ in range(2)]
        models = [(Predictions(label, predicted, names), case) for label, predicted, case in drawn]
        for name in METRIC_NAMES:
            metric = METRICS[name]
            if (first := metric.compute(models[0][0])) is None:
                continue
            values = np.array([first, metric.compute(models[1][0])], dtype=float)
            replicates = [metric.replicates(*model) for model in models]
            if not np.isfinite(replicates).all():
                continue
            added = [metric.contributions(*m, r) for m, r in zip(models, replicates, strict=True)]
            np.testing.assert_allclose([own.sum() for own in added], values, atol=1e-12)
            differences = compare(
                values, np.stack(replicates), np.stack(added), metric.shares(*models[0]), seed=run
            )
            told[name] += differences.distinguishable[0, 1]
    assert max(told.values()) / runs <= 0.09, told


def test_contributions_to_recalls_are_the_right_units_of_each_case() -> None:
    sizes = np.array(UNEVEN["a class in 3 cases"])
    label, predicted, case = guesses(np.random.default_rng(0), sizes)
    predictions = Predictions(label, predicted, ["a", "b", "c"])
    metric = METRICS["balanced_accuracy"]
    found_ = metric.contributions(predictions, case, metric.replicates(predictions, case))
    own = [case[(label == predicted) & (label == c)] for c in range(3)]
    right = np.stack([np.bincount(cases, minlength=15) for cases in own], axis=1)
    plain = (right / sizes.sum(axis=0)).mean(axis=1)
    # Leaving out one of three cases with a class also changes the denominator of its recall.
    np.testing.assert_allclose(found_[:12], plain[:12], atol=0.002)
    np.testing.assert_allclose(found_[12:], plain[12:], atol=0.03)
