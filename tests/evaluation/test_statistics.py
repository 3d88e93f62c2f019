"""Intervals by simulation: the share of them that hold the true value, for cases whose patches are alike.

The population: 3 classes; each case has its own share of right answers, drawn from a beta distribution such
that two patches of one case correlate by 0.3. The true macro F1 is that of the expected confusion matrix.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import stdtrit
from test_comparison import UNEVEN, guesses

from his2lip.evaluation.metrics import METRICS, Counts, Predictions, macro_f1
from his2lip.evaluation.results import intervals
from his2lip.evaluation.statistics import (
    LEVEL,
    Clusters,
    Part,
    all_right_limit,
    clusters_of,
    crossed_interval,
    interval,
    joined_interval,
    leave_one_out_counts,
    mean_interval,
    standard_error,
)

CORRELATION = 0.3  # of two patches of one case
PATCHES = 40  # per case
SHARES = np.array([0.5, 0.3, 0.2])  # of the classes
RIGHT = 0.6  # mean share of right answers
WRONG = np.array([[0.0, 0.7, 0.3], [0.5, 0.0, 0.5], [0.8, 0.2, 0.0]])  # what a wrong answer is, by true class
COVERED = (0.92, 0.975)
FAST = {5: 4000, 8: 4000, 15: 2000, 30: 2000}  # cases -> runs


def confusions(right: np.ndarray) -> np.ndarray:
    """Expected confusion matrices (..., 3, 3), as shares, of cases with these right shares (...)."""
    right = right[..., None, None]
    return SHARES[:, None] * (right * np.eye(3) + (1 - right) * WRONG)


TRUTH = float(macro_f1(Counts(confusions(np.array(RIGHT)))))


def simulate(rng: np.random.Generator, runs: int, cases: int) -> np.ndarray:
    """Confusion matrices of each case of each run, (R, G, 3, 3)."""
    size = 1 / CORRELATION - 1  # of the beta distribution: two draws of one case correlate by 1 / (size + 1)
    right = rng.beta(RIGHT * size, (1 - RIGHT) * size, (runs, cases))
    return rng.multinomial(PATCHES, confusions(right).reshape(runs, cases, 9)).reshape(runs, cases, 3, 3)


def coverage(limits: list[tuple[float, float] | None]) -> float:
    assert None not in limits
    low, high = np.array(limits).T
    return float(((low <= TRUTH) & (high >= TRUTH)).mean())


def jackknife_limits(counts: np.ndarray) -> list[tuple[float, float] | None]:
    total = counts.sum(axis=1)
    values, replicates = macro_f1(Counts(total)), macro_f1(Counts(total[:, None] - counts))
    return [interval(v, r) for v, r in zip(values.tolist(), replicates, strict=True)]


def jackknife_errors(counts: np.ndarray) -> list[float]:
    total = counts.sum(axis=1)
    return [float(standard_error(r)) for r in macro_f1(Counts(total[:, None] - counts))]


def stratified_limits(rng: np.random.Generator, counts: np.ndarray) -> list[tuple[float, float] | None]:
    """What must not be used: patches resampled within their classes, 200 times; percentiles."""
    total = counts.sum(axis=1)
    support = total.sum(axis=-1)
    drawn = rng.multinomial(support, total / support[..., None], size=(200, *support.shape))
    found = macro_f1(Counts(drawn))
    return list(map(tuple, np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0).T.tolist()))


@pytest.mark.parametrize("cases", list(FAST))
def test_intervals_hold_the_true_value_at_their_level(cases: int) -> None:
    counts = simulate(np.random.default_rng(cases), FAST[cases], cases)
    assert COVERED[0] <= coverage(jackknife_limits(counts)) <= COVERED[1]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("cases", list(FAST))
def test_intervals_hold_the_true_value_at_their_level_for_other_seeds(cases: int, seed: int) -> None:
    counts = simulate(np.random.default_rng([cases, seed]), 10_000, cases)
    assert COVERED[0] <= coverage(jackknife_limits(counts)) <= COVERED[1]


@pytest.mark.parametrize("cases", list(FAST))
def test_a_bootstrap_of_patches_within_classes_fails_the_same_test(cases: int) -> None:
    rng = np.random.default_rng(cases)
    assert coverage(stratified_limits(rng, simulate(rng, 300, cases))) < 0.8


def units(rng: np.random.Generator, cases: int) -> tuple[Predictions, np.ndarray]:
    """The patches of one run, in random order, and their cases."""
    matrix = simulate(rng, 1, cases)[0]
    case, label, predicted = (
        np.repeat(place, matrix.ravel()) for place in map(np.ravel, np.indices(matrix.shape))
    )
    order = rng.permutation(len(case))
    return Predictions(label[order], predicted[order], ["a", "b", "c"]), case[order]


def test_confusion_matrices_without_a_case_are_counted_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    predictions, case = units(np.random.default_rng(0), 11)
    matrices = [predictions.where(case != g).counts.matrix for g in range(11)]
    monkeypatch.setattr("his2lip.evaluation.statistics._BLOCK", 4 * 9)
    blocks = list(leave_one_out_counts(predictions.labels, predictions.predicted, case, 3))
    assert [len(block) for block in blocks] == [4, 4, 3]
    np.testing.assert_array_equal(np.concatenate(blocks), matrices)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_limits_are_within_the_range_of_the_figure(value: float) -> None:
    limits = interval(value, np.array([value, 0.5, value, 0.5, 0.5]))
    assert limits is not None
    assert 0 <= limits[0] < limits[1] <= 1


def test_a_figure_that_no_cluster_changes_has_no_interval() -> None:
    assert interval(1.0, np.ones(8)) is None
    assert interval(1.0, np.array([0.5, 0.6, np.nan, 0.5, 0.7])) is None


def test_units_depend_on_each_other_by_case_else_slide_else_file() -> None:
    files = ["f1", "f2", "f3", "f4"]
    by_case = clusters_of(["p", "p", "q", "q"], ["s1", "s2", None, None], files)
    assert (by_case.kind, by_case.count) == ("case", 2)
    mixed = clusters_of(["p", "p", None, None], ["s1", "s2", "p", "p"], files)
    assert (mixed.kind, mixed.count) == ("slide", 2), "a slide named as a case is another cluster"
    by_file = clusters_of([None] * 4, [None] * 4, ["f1", "f1", "f3", "f4"])
    assert (by_file.kind, by_file.numbers.tolist()) == ("file", [0, 0, 1, 2])


LABELS = np.array([0, 1] * 6)
NAMES = ["a", "b"]


def test_intervals_are_refused_with_the_reason() -> None:
    four = Clusters([f"p{i % 4}" for i in range(12)], "case")
    assert "5 cases, and there are only 4" in (four.refusal(LABELS, NAMES) or "")
    five = Clusters([f"p{i % 5}" for i in range(12)], "case")
    assert five.refusal(LABELS, NAMES) is None
    rare = np.array([0] * 11 + [1])
    assert "'b'" in (five.refusal(rare, NAMES) or "")


@pytest.mark.parametrize(
    ("labels_of", "kind", "refused"),
    [("slide", "file", True), ("slide", "slide", False), ("slide", "case", False), ("case", "slide", True),
     ("patch", "file", False)],
)  # fmt: skip
def test_intervals_are_refused_where_the_slides_that_share_a_label_are_unknown(
    labels_of: str, kind: str, refused: bool
) -> None:
    clusters = Clusters([str(i) for i in range(12)], kind, labels_of)  # type: ignore[arg-type]
    assert (clusters.refusal(LABELS, NAMES) is not None) == refused


def test_every_metric_has_an_interval_in_the_record() -> None:
    from his2lip.evaluation.results import CellResult

    assert {f"{name}_{end}" for name in METRICS for end in ("lo", "hi")} <= set(CellResult.model_fields)


@pytest.mark.parametrize(
    ("design", "name", "least"),
    [
        ("sizes from 10 to 400", "accuracy", 0.92),
        ("sizes from 10 to 400", "macro_f1", 0.92),
        ("one large case", "accuracy", 0.95),
        ("a class in 3 cases", "balanced_accuracy", 0.92),
        ("one label per case", "balanced_accuracy", 0.92),
        ("one label per case", "macro_f1", 0.92),
        ("15 and 5 cases", "specificity", 0.92),
    ],
)
def test_intervals_hold_the_true_value_where_cases_are_of_other_sizes_or_classes(
    design: str, name: str, least: float
) -> None:
    """With t(G-1), they held it in 85 to 91 % (sizes) and in 77 to 92 % (classes)."""
    designs = UNEVEN | {"15 and 5 cases": [[40, 0]] * 15 + [[0, 40]] * 5}
    sizes, rng, metric = np.array(designs[design]), np.random.default_rng(len(design)), METRICS[name]
    n, classes = sizes.sum(axis=0), sizes.shape[1]
    expected = n[:, None] * np.where(np.eye(classes, dtype=bool), 0.6, 0.4 / (classes - 1))
    assert metric.of_counts is not None
    truth, held = float(metric.of_counts(Counts(expected))), []
    for _ in range(400):
        label, predicted, case = guesses(rng, sizes)
        predictions = Predictions(label, predicted, [f"c{i}" for i in range(classes)])
        value, replicates = metric.compute(predictions), metric.replicates(predictions, case)
        assert value is not None
        limits = interval(value, replicates, effective=metric.effective(predictions, case))
        held.append(limits is not None and limits[0] <= truth <= limits[1])
    assert np.mean(held) >= least, np.mean(held)


def test_equal_cases_with_all_classes_count_as_they_are() -> None:
    label, predicted, case = guesses(np.random.default_rng(0), np.array([[20, 12, 8]] * 9))
    predictions = Predictions(label, predicted, ["a", "b", "c"])
    for metric in METRICS.values():
        if metric.weighs in ("units", "classes"):
            assert metric.effective(predictions, case) == pytest.approx(9)


def test_sensitivity_has_no_interval_where_few_cases_are_positive() -> None:
    label, predicted, case = guesses(np.random.default_rng(0), np.array(UNEVEN["one label per case"]))
    found = intervals(
        Predictions(label, predicted, ["a", "positive"]), Clusters([str(c) for c in case], "case")
    )
    assert {"accuracy_lo", "chance_corrected_df", "specificity_lo"} <= found.keys()
    assert "sensitivity_lo" not in found


def test_the_interval_of_a_mean_does_not_leave_the_range_and_has_the_whole_error() -> None:
    """With few degrees of freedom both limits of a dataset are cut to its range, and tell no error."""
    reach = float(stdtrit(1.5, 0.975)) * 0.3
    assert reach > 1.3
    assert mean_interval([Part(0.3, 0.3, 1.5)]) == (-1.0, 1.0)
    low, high = mean_interval([Part(0.3, 0.3, 1.5)], bounds=(-9.0, 9.0))
    assert (low, high) == pytest.approx((0.3 - reach, 0.3 + reach))


@pytest.mark.parametrize("cases", [5, 15])
def test_the_mean_of_several_datasets_has_an_interval_that_holds_the_true_mean(cases: int) -> None:
    rng = np.random.default_rng(cases)
    counts = [simulate(rng, 2000, own) for own in (cases, 8, 30)]
    values = [macro_f1(Counts(c.sum(axis=1))).tolist() for c in counts]
    errors = [jackknife_errors(c) for c in counts]
    sizes = [c.shape[1] for c in counts]
    found = [
        mean_interval([Part(values[d][run], errors[d][run], sizes[d] - 1) for d in range(3)])
        for run in range(2000)
    ]
    assert COVERED[0] <= coverage(list(found)) <= COVERED[1]


@pytest.mark.parametrize(
    ("seeds", "cases", "of_seeds"), [(5, 8, 0.06), (5, 30, 0.06), (5, 15, 0.0), (3, 30, 0.1)]
)
def test_intervals_over_seeds_hold_the_true_mean_over_cases_and_seeds(
    seeds: int, cases: int, of_seeds: float
) -> None:
    """Each training has its own share of right answers, and all see the same cases and patches."""
    rng = np.random.default_rng([seeds, cases])
    limits, narrow = [], []
    for _ in range(500):
        case = rng.normal(0, 0.2, (1, cases)) + rng.normal(0, 0.05, (seeds, cases))
        right = np.clip(0.5 + case + of_seeds * rng.normal(size=(seeds, 1)), 0, 1)
        counts = rng.binomial(PATCHES, right) / PATCHES  # accuracy of each training on each case
        values, total = counts.mean(axis=1), counts.sum(axis=1, keepdims=True)
        replicates = (total - counts) / (cases - 1)
        limits.append(crossed_interval(values, replicates))
        narrow.append(interval(values.mean(), replicates.mean(axis=0)))
    held = [low <= 0.5 <= high for low, high in limits]
    assert COVERED[0] <= np.mean(held) <= 0.985
    if of_seeds and cases == 30:
        assert np.mean([low <= 0.5 <= high for low, high in narrow]) < 0.9, "cases alone are not enough"


@pytest.mark.parametrize("wrong", [0.02, 0.05, 0.1, 0.2])
@pytest.mark.parametrize("datasets", [1, 3])
def test_the_limit_where_all_units_are_right_is_rarely_above_the_truth(wrong: float, datasets: int) -> None:
    """Cases of two classes, of which some have both: each answers all of a class right, or all wrong."""
    sizes = np.array([[3, 0]] * 6 + [[0, 2]] * 9 + [[1, 1]] * 5)
    limit = all_right_limit(sizes)
    low, high = joined_interval([1.0] * datasets, [(limit, 1.0)] * datasets)
    assert high == 1.0
    rng = np.random.default_rng(0)
    cases = rng.random((4000, datasets, len(sizes))) >= wrong  # both classes of a case are right or wrong
    all_right = cases.all(axis=(1, 2)).mean()
    assert low <= 1 - wrong or all_right <= 0.025 + 0.005
    assert all_right_limit(sizes, models=20) < limit
