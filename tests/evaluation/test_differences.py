"""Differences of stored grid cells: paired by unit, on the board, and from a reference with a margin."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cell_results import plan_of
from scipy.special import stdtrit
from typer.testing import CliRunner

from his2lip.cli.app import app
from his2lip.config import validate
from his2lip.data.shards.reader import ShardSet
from his2lip.errors import ConfigError
from his2lip.evaluation.comparison import compare
from his2lip.evaluation.config import BenchmarkConfig
from his2lip.evaluation.controls import ControlScorer
from his2lip.evaluation.grid_cell import CellPlan, Scored, run_cell
from his2lip.evaluation.leaderboard import over_seeds, with_differences, with_seeds, write_leaderboard
from his2lip.evaluation.metrics import METRICS
from his2lip.evaluation.results import CellResult, read_results
from his2lip.evaluation.sight import Sight
from his2lip.evaluation.statistics import Clusters, crossed_interval, standard_error
from his2lip.evaluation.stored_cell import stored_predictions
from his2lip.evaluation.zero_shot import Scores
from his2lip.report.board import Board
from his2lip.report.notes import notes
from his2lip.report.pages import write_pages
from his2lip.report.seeds import pooled

CASES, UNITS = 8, 10  # per case


class FixedScorer:
    """A model that is wrong on the given units of each case."""

    uses_prompts = False

    def __init__(self, name: str, *wrong: int) -> None:
        self.name, self._wrong = name, list(wrong)
        self.weights = f"wrong on {wrong}"

    def identity(self, plan: CellPlan) -> str:
        return self.weights

    def trained_on(self, plan: CellPlan) -> bool:
        return False

    def overlap(self, plan: CellPlan) -> None:
        return None

    def cut_prompts(self, plan: CellPlan) -> None:
        return None

    def score(self, plan: CellPlan) -> Scored:
        place = np.arange(len(plan.selection.labels))
        wrong = np.isin(place % UNITS, self._wrong) ^ (place % 31 == 7)  # cases differ a little
        predicted = np.where(wrong, 1 - plan.selection.labels, plan.selection.labels)
        scores = np.eye(2, dtype=np.float32)[predicted]
        return Scored(Scores(scores, predicted, np.zeros_like(predicted), 0))

    def sight(self, plan: CellPlan) -> Sight:
        return Sight()


class OneClassScorer(FixedScorer):
    """A model that predicts the first class for every unit, with scores that differ."""

    def score(self, plan: CellPlan) -> Scored:
        first = np.random.default_rng(0).uniform(0.6, 1, len(plan.selection.labels)).astype(np.float32)
        predicted = np.zeros(len(first), dtype=np.int64)
        return Scored(Scores(np.stack([first, 1 - first], axis=1), predicted, np.zeros_like(predicted), 0))


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path / "runs/benchmark/grid")


def plan_with(labels: np.ndarray, shards: ShardSet) -> CellPlan:
    """A plan of `CASES` cases of `UNITS` units with these labels."""
    plan, cases = plan_of(shards), [f"p{i // UNITS}" for i in range(CASES * UNITS)]
    selection = replace(
        plan.selection,
        unit_ids=[f"u{i}" for i in range(CASES * UNITS)],
        case_ids=cases,
        clusters=Clusters(cases, "case"),
        labels=labels,
        breakdown={},
    )
    return replace(plan, selection=selection)


@pytest.fixture
def cells(write_shards: Callable[..., ShardSet], folder: str) -> list[CellResult]:
    """`good` is wrong on one unit of a case, its `copy` too, `other` on another one, `poor` on four."""
    plan = plan_with(np.arange(CASES * UNITS) % 2, write_shards())
    scorers = [
        FixedScorer("good", 0),
        FixedScorer("copy", 0),
        FixedScorer("other", 3),
        FixedScorer("poor", 0, 1, 2, 3),
    ]
    return [run_cell(scorer, plan, folder).result for scorer in scorers]


def test_models_in_the_top_group_are_those_that_cannot_be_told_from_the_best(
    cells: list[CellResult], folder: str
) -> None:
    compared = {c.model: c.compared for c in with_differences(folder, cells)}
    assert {name: found["macro_f1"].top for name, found in compared.items()} == {
        "good": True, "copy": True, "other": True, "poor": False,
    }  # fmt: skip
    assert compared["good"]["macro_f1"].detectable == compared["poor"]["macro_f1"].detectable
    assert all(found["macro_f1"].difference is None for found in compared.values()), "there is no reference"


def test_the_detectable_difference_is_that_of_models_and_not_of_baselines(
    write_shards: Callable[..., ShardSet], folder: str
) -> None:
    """A pair of a model and a baseline has another error: with them the median was of no pair of models."""
    plan = plan_with(np.arange(CASES * UNITS) % 2, write_shards())
    scorers = [FixedScorer("good", 0), FixedScorer("other", 3)]
    scorers += [FixedScorer(f"baseline:{i}", *range(i)) for i in range(5, 9)]
    good, other, *far = (run_cell(scorer, plan, folder).result for scorer in scorers)
    found = with_differences(folder, [good, other, *far])[0].compared["macro_f1"].detectable
    stored = [stored_predictions(folder, c) for c in (good, other, *far)]
    metric = METRICS["macro_f1"]
    without = [metric.replicates(*one) for one in stored]
    own = [metric.contributions(*one, w) for one, w in zip(stored, without, strict=True)]
    values = np.array([c.macro_f1 for c in (good, other, *far)])
    all_pairs = compare(values, np.stack(without), np.stack(own), metric.shares(*stored[0]))
    low, high = all_pairs.interval(0, 1) or (np.nan, np.nan)
    error = standard_error(without[0] - without[1])
    assert found == pytest.approx((high - low) / 2 + stdtrit(CASES - 1, 0.8) * error)
    assert found != pytest.approx(all_pairs.detectable())
    alone = with_differences(folder, [good, *far])[0].compared["macro_f1"]
    assert alone.detectable is None, "one model is no pair"


def test_differences_are_from_the_reference_and_a_small_loss_is_within_the_margin(
    cells: list[CellResult], folder: str
) -> None:
    found = {c.model: c for c in with_differences(folder, cells, reference="good", margin=0.2)}
    assert "difference" not in found["good"].compared["macro_f1"].model_dump(exclude_none=True)
    for name in ("other", "poor"):
        row = found[name].compared["macro_f1"]
        assert row.difference == pytest.approx(found[name].macro_f1 - found["good"].macro_f1)
        assert row.difference_lo is not None
        assert row.difference_hi is not None
        assert row.difference_lo < row.difference < row.difference_hi
        assert row.non_inferior == (row.difference_lo > -0.2)
    assert found["other"].compared["macro_f1"].non_inferior
    assert not found["poor"].compared["macro_f1"].non_inferior
    copied = found["copy"].compared["macro_f1"]
    assert (copied.difference, copied.difference_lo, copied.non_inferior) == (0.0, None, True)


def test_units_that_cannot_have_intervals_are_not_compared(cells: list[CellResult], folder: str) -> None:
    without = [cell.model_copy(update={"no_interval": "the slides are unknown"}) for cell in cells]
    assert all(cell.compared == {} for cell in with_differences(folder, without))


def test_a_grid_cell_of_other_units_is_not_compared_with_the_others(
    cells: list[CellResult], folder: str
) -> None:
    others = [cells[0], *(cell.model_copy(update={"split_sha256": "another"}) for cell in cells[1:])]
    assert with_differences(folder, others)[0].compared == {}


def test_an_expectation_over_draws_is_a_constant_and_not_the_draw_that_is_stored(
    cells: list[CellResult], folder: str
) -> None:
    chance = cells[3].model_copy(update={"model": "baseline:chance", "macro_f1": 0.5, "accuracy": 0.99})
    found = with_differences(folder, [*cells[:3], chance], reference="baseline:chance")
    row = found[0].compared["macro_f1"]
    assert row.difference == pytest.approx(cells[0].macro_f1 - 0.5)
    assert row.difference_lo is not None
    assert row.difference_lo > 0
    assert not found[3].compared["macro_f1"].top
    assert found[0].compared["accuracy"].top, "the best of those that are not expectations"
    assert not found[3].compared["accuracy"].top


def test_shuffled_labels_of_a_model_that_predicts_one_class_are_not_the_best_of_a_column_without_intervals(
    write_shards: Callable[..., ShardSet], folder: str
) -> None:
    """Its figures have limits, of draws, and models have none there: only controls would be compared."""
    plan = plan_with(np.arange(CASES * UNITS) % 2, write_shards())
    unknown = replace(plan.selection.clusters, kind="file", labels_of="slide")
    plan = replace(plan, selection=replace(plan.selection, clusters=unknown))
    flat = OneClassScorer("flat")
    shuffled = [ControlScorer(f"baseline:shuffled-labels of {n}", flat, "shuffled-labels") for n in "ab"]
    rows = [run_cell(scorer, plan, folder).result for scorer in (FixedScorer("good", 0), *shuffled)]
    assert rows[0].no_interval is not None
    assert rows[1].macro_f1 == pytest.approx(1 / 3) == rows[1].macro_f1_lo
    found = with_differences(folder, rows)
    assert found[0].compared == {}
    assert not any(figure.top or figure.groups for row in found[1:] for figure in row.compared.values())


def test_trainings_with_several_seeds_are_one_row_with_an_interval_over_cases_and_seeds(
    cells: list[CellResult], folder: str
) -> None:
    entries = validate(
        BenchmarkConfig,
        {"models": [{"seeds": ["a", "b", "c"], "name": "mine"}, "tiny"], "datasets": ["mihic"]},
    ).models
    assert [(e.name, e.seeds_of) for e in entries[:3]] == [(f"mine seed {i}", "mine") for i in (1, 2, 3)]
    names = ("mine seed 1", "mine seed 2", "tiny", "mine seed 3")
    named = [c.model_copy(update={"model": name}) for c, name in zip(cells, names, strict=True)]
    found = with_seeds(folder, with_differences(folder, named), entries)
    of_mine = [found[i].over_seeds["macro_f1"] for i in (0, 1, 3)]
    assert of_mine[0] == of_mine[1] == of_mine[2]
    values = [found[i].macro_f1 for i in (0, 1, 3)]
    assert (of_mine[0].seeds, of_mine[0].mean) == (3, pytest.approx(np.mean(values)))
    assert of_mine[0].deviation == pytest.approx(np.std(values, ddof=1))
    first = found[0].interval("macro_f1")
    assert of_mine[0].lo is not None
    assert first is not None
    assert of_mine[0].lo < first[0], "seeds that differ make it wider than that of the cases"
    assert found[2].over_seeds == {}
    assert of_mine[0].difference is None

    of_tiny = with_differences(folder, found, reference="tiny", margin=0.9)
    mean = of_tiny[0].over_seeds["macro_f1"]
    apart = np.array(values) - found[2].macro_f1
    assert mean.difference == pytest.approx(apart.mean())
    stored = [stored_predictions(folder, cells[i]) for i in (0, 1, 3, 2)]
    *own, base = [METRICS["macro_f1"].replicates(*one) for one in stored]
    limits = crossed_interval(apart, np.stack(own) - base, bounds=(-1.0, 1.0))
    assert (mean.difference_lo, mean.difference_hi) == limits
    pair = of_tiny[0].compared["macro_f1"]
    shown = pooled(of_tiny)[0].compared["macro_f1"]
    assert (shown.difference, shown.non_inferior) == (mean.difference, None), "its limits are for itself"
    assert pair.difference is not None
    assert shown.difference != pair.difference, "each training keeps its own"
    assert pair.non_inferior
    board = Path(write_leaderboard(folder, of_tiny, []))
    text = write_pages(board, board.parent / "report").read_text()
    assert "from the one training tiny, whose own seed variance is not in it" in text
    assert ">no loss<" not in text, "each other row is the reference or in the mean"
    of_first = with_differences(folder, of_tiny, reference="mine seed 1")
    assert of_first[0].over_seeds["macro_f1"].difference is None, "it is one of them"

    row, tiny = pooled(found)
    assert (row.model, tiny.model) == ("mine (3 seeds)", "tiny")
    assert (row.macro_f1, row.interval("macro_f1")) == (of_mine[0].mean, (of_mine[0].lo, of_mine[0].hi))
    assert "At least 5" in (row.caveat or "")
    path = Path(write_leaderboard(folder, found, []))
    page = write_pages(path, path.parent / "report")
    assert "mine (3 seeds): mean of 3 trainings" in page.read_text()
    assert [row.model for row in read_results(page.with_name("leaderboard.csv"))] == list(names)


def test_a_mean_over_trainings_has_no_interval_over_datasets_and_is_never_bold(
    cells: list[CellResult], folder: str
) -> None:
    """The standard error and the place in the top group that the row could take are of one training."""
    rows = ("mine", "mine", "mine", None)
    named = [c.model_copy(update={"seeds_of": of}) for c, of in zip(cells, rows, strict=True)]
    found = over_seeds(folder, with_differences(folder, named))
    assert found[0].compared["macro_f1"].top
    assert Board(found).mean_interval("good") is not None, "a single training has one"
    row, poor = pooled(found)
    board = Board([row, poor])
    assert row.interval("chance_corrected") is not None, "over cases and seeds, on this dataset"
    assert board.mean(row.model) == pytest.approx(np.mean([c.chance_corrected for c in cells[:3]]))
    assert board.mean_interval(row.model) is None
    assert board.mean_interval("poor") is not None
    assert not any(own.top for own in row.compared.values())
    told = " ".join(notes(board))
    assert "means over trainings are left out" in told
    assert "the mean over datasets has no interval" in told


def test_what_limits_a_mean_over_trainings_is_of_all_of_them(cells: list[CellResult], folder: str) -> None:
    """Of ties, units that were trained on and the rest, the row showed those of its first training."""
    changes: list[dict] = [
        {"overlap_units": None},
        {"ties": 7, "overlap_units": 3, "overlap_images": 3, "overlap_cases": None, "in_domain": True},
        {"ties": 2, "cut_prompts": 4},
        {},
    ]
    named = [
        cell.model_copy(update=change | {"seeds_of": None if i == 3 else "mine"})
        for i, (cell, change) in enumerate(zip(cells, changes, strict=True))
    ]
    row, poor = pooled(over_seeds(folder, with_differences(folder, named)))
    assert (row.ties, row.cut_prompts, row.overlap_units, row.in_domain) == (7, 4, 3, True)
    told = notes(Board([row, poor]))
    assert any(f"{row.model} 7 of {row.n}" in note for note in told)
    assert any(row.model in note and "ties are those of the one with most" in note for note in told)
    assert "Not in the mean" in told[0]


def test_a_mean_over_seeds_has_no_interval_where_its_rows_have_none(
    write_shards: Callable[..., ShardSet], folder: str
) -> None:
    """Units of the positive class, on which sensitivity rests, are in three of eight cases."""
    labels = np.where(np.arange(CASES * UNITS) < 3 * UNITS, np.arange(CASES * UNITS) % 2, 0)
    plan = plan_with(labels, write_shards())
    rows = [run_cell(FixedScorer(name, i), plan, folder).result for i, name in enumerate("abc")]
    seeds = [row.model_copy(update={"seeds_of": "mine"}) for row in rows[:2]]
    found = with_differences(folder, over_seeds(folder, [*seeds, rows[2]]), reference="c")
    assert found[0].interval("sensitivity") is None
    own = found[0].over_seeds["sensitivity"]
    assert own.difference is not None
    assert (own.lo, own.hi, own.difference_lo, own.difference_hi) == (None, None, None, None)
    assert found[0].over_seeds["accuracy"].lo is not None


def test_a_list_of_seeds_without_a_name_is_refused_by_its_key() -> None:
    with pytest.raises(ConfigError) as refused:
        validate(BenchmarkConfig, {"models": [{"seeds": ["a", "b"]}], "datasets": ["mihic"]})
    assert "{seeds:" in str(refused.value)


def test_report_shows_the_differences_from_the_baseline_that_it_is_given(
    cells: list[CellResult], folder: str
) -> None:
    write_leaderboard(folder, with_differences(folder, cells, reference="poor", margin=0.05), [])
    done = CliRunner().invoke(app, ["report", folder, "--baseline", "good"])
    assert done.exit_code == 0, done.output
    out = Path(folder, "report")
    rows = read_results(out / "leaderboard.csv")
    assert {(row.reference, row.margin) for row in rows} == {("good", 0.05)}
    with (out / "differences.csv").open(newline="") as file:
        table = [row for row in csv.DictReader(file) if row["figure"] == "macro_f1"]
    assert [row["model"] for row in table] == ["good", "copy", "other", "poor"]
    page, lines = (out / "index.html").read_text(), (out / "leaderboard.md").read_text()
    poor = rows[3].compared["macro_f1"]
    assert poor.difference is not None
    for text in (page, lines):
        assert "Macro F1: difference from good, points" in text
        assert f"{100 * poor.difference:+.2f}" in text
    assert f"shows {100 * (poor.detectable or 0):.1f} points" in page
    assert f"**{100 * cells[0].macro_f1:.2f}**" in lines
    assert f"**{100 * cells[3].macro_f1:.2f}**" not in lines


def test_a_baseline_that_is_no_row_is_refused_with_the_nearest_name(
    cells: list[CellResult], folder: str
) -> None:
    write_leaderboard(folder, cells, [])
    done = CliRunner().invoke(app, ["report", folder, "--baseline", "god"])
    assert done.exit_code != 0
    assert isinstance(done.exception, ConfigError)
    assert done.exception.key == "--baseline"
    assert "good" in str(done.exception)


def test_a_reference_that_is_no_row_is_refused_by_its_key() -> None:
    with pytest.raises(ConfigError) as refused:
        validate(BenchmarkConfig, {"models": ["tiny"], "datasets": ["mihic"], "reference": "tin"})
    assert "tiny" in str(refused.value)
