"""Chance and shuffled labels as expectations: equal to formulas and to scikit-learn on single draws."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cell_results import plan_of
from sklearn.metrics import accuracy_score, f1_score

from his2lip.data.shards.reader import ShardSet
from his2lip.evaluation.baselines import BaselineScorer
from his2lip.evaluation.controls import ControlScorer
from his2lip.evaluation.embeddings import EmbeddingCache
from his2lip.evaluation.grid_cell import run_cell
from his2lip.evaluation.metrics import METRICS, Predictions, auroc
from his2lip.evaluation.random_tables import TABLES, RandomTables
from his2lip.evaluation.scorers import ModelScorer
from his2lip.models.load import load_model
from his2lip.report.board import Board
from his2lip.report.markdown import markdown
from his2lip.report.section import Inputs

Write = Callable[..., ShardSet]
LABELS = np.repeat([0, 1, 2], [50, 30, 20])


def whole(predicted: np.ndarray) -> Predictions:
    return Predictions(LABELS, predicted, ("a", "b", "c"), scores=np.ones((len(LABELS), 3), dtype=np.float32))


def test_chance_has_the_expectation_and_the_range_of_single_draws() -> None:
    found = RandomTables.uniform(LABELS, 3, seed=1).figures(whole(LABELS))
    rng = np.random.default_rng(2)
    drawn = [rng.integers(3, size=len(LABELS)) for _ in range(200)]
    f1 = [f1_score(LABELS, d, average="macro", zero_division=0) for d in drawn]
    accuracy = [accuracy_score(LABELS, d) for d in drawn]
    assert found["accuracy"] == pytest.approx(1 / 3, abs=0.006)
    assert found["balanced_accuracy"] == pytest.approx(1 / 3, abs=0.006)
    assert found["chance_corrected"] == pytest.approx(0, abs=0.01)
    assert found["auroc"] == 0.5
    assert found["macro_f1"] == pytest.approx(np.mean(f1), abs=0.015)
    for name, single in (("macro_f1", f1), ("accuracy", accuracy)):
        limits = found[f"{name}_lo"], found[f"{name}_hi"]
        assert limits == pytest.approx(np.quantile(single, [0.025, 0.975]), abs=0.03)


def test_shuffled_labels_keep_the_numbers_of_labels_and_of_predictions() -> None:
    predicted = np.repeat([0, 2], [70, 30])
    tables = RandomTables.shuffled(LABELS, predicted, 3, seed=1)
    assert (tables.matrix.sum(axis=2) == [50, 30, 20]).all()
    assert (tables.matrix.sum(axis=1) == [70, 0, 30]).all()
    rng = np.random.default_rng(2)
    f1 = [f1_score(rng.permutation(LABELS), predicted, average="macro", zero_division=0) for _ in range(200)]
    assert tables.figures(whole(predicted))["macro_f1"] == pytest.approx(np.mean(f1), abs=0.015)


def test_scores_tell_nothing_about_shuffled_labels() -> None:
    """The scores of a perfect model, whose own AUROC is 1."""
    perfect = Predictions(LABELS, LABELS, ("a", "b", "c"), scores=np.eye(3, dtype=np.float32)[LABELS])
    found = RandomTables.shuffled(LABELS, LABELS, 3, seed=1).figures(perfect)
    assert METRICS["auroc"].compute(perfect) == 1.0
    rng, drawn = np.random.default_rng(2), []
    for _ in range(100):
        labels = rng.permutation(LABELS)
        drawn.append(auroc(Predictions(labels, LABELS, perfect.classes, scores=perfect.scores)))
    assert found["auroc"] == 0.5 == pytest.approx(np.mean(drawn), abs=0.02)


def test_the_mean_table_has_the_support_of_each_class_in_its_row() -> None:
    labels = np.repeat([0, 1, 2], [1, 4, 7])
    table = RandomTables.uniform(labels, 3, seed=0).confusion()
    assert [sum(row) for row in table] == [1, 4, 7]


def test_the_row_of_chance_is_an_expectation_with_its_range_and_the_same_every_time(
    write_shards: Write, tmp_path: Path
) -> None:
    images = [np.full((16, 16, 3), [i, 9, i // 3], dtype=np.uint8) for i in range(90)]
    plan = plan_of(write_shards(images=images))
    scorer = BaselineScorer("baseline:chance", EmbeddingCache(str(tmp_path)))
    cell = run_cell(scorer, plan, str(tmp_path / "one")).result
    assert cell == run_cell(scorer, plan, str(tmp_path / "two")).result
    assert cell.accuracy == pytest.approx(0.5, abs=0.01)
    low, high = cell.interval("accuracy") or (0, 0)
    width = 1.96 * 0.5 / np.sqrt(cell.n)  # of the binomial distribution
    assert (low, high) == pytest.approx((0.5 - width, 0.5 + width), abs=0.04)
    assert cell.no_interval is None
    assert f"{TABLES:,} random draws" in str(cell.caveat)
    assert cell.ties == cell.n


def test_baselines_that_measure_stain_confirm_themselves_on_generated_images_only(
    write_shards: Write, tmp_path: Path
) -> None:
    plan, cache = plan_of(write_shards()), EmbeddingCache(str(tmp_path))
    scorer = BaselineScorer("baseline:stained-area", cache)
    assert run_cell(scorer, plan, str(tmp_path / "real")).result.caveat is None
    object.__setattr__(plan, "generated", True)
    cell = run_cell(scorer, plan, str(tmp_path / "generated")).result
    assert "self-confirmation" in str(cell.caveat)
    assert "self-confirmation" in markdown(Inputs(Board([cell])), [])
    assert (
        run_cell(BaselineScorer("baseline:majority", cache), plan, str(tmp_path / "g")).result.caveat is None
    )


def test_negative_controls_of_a_model_score_as_chance_and_as_a_constant(
    write_shards: Write, tmp_path: Path
) -> None:
    plan, folder = plan_of(write_shards()), str(tmp_path / "grid")
    model = ModelScorer("tiny", load_model("tiny", seed=1), EmbeddingCache(str(tmp_path)))
    own = run_cell(model, plan, folder).result
    shuffled = ControlScorer("baseline:shuffled-labels of tiny", model, "shuffled-labels")
    cell = run_cell(shuffled, shuffled.plan(plan), folder).result
    assert (cell.n, cell.is_baseline, cell.prompt_pool) == (own.n, True, None)
    assert cell.chance_corrected == pytest.approx(0, abs=0.03)
    assert np.sum(cell.confusion, axis=0) == pytest.approx(np.sum(own.confusion, axis=0), abs=1)
    empty = ControlScorer("baseline:empty-prompts of tiny", model, "empty-prompts")
    cell = run_cell(empty, empty.plan(plan), folder).result
    assert (cell.ties, cell.chance_corrected) == (cell.n, 0.0)
    assert cell.prompts_sha256 != own.prompts_sha256
    assert len({own.cell, cell.cell, own.weights_sha256, cell.weights_sha256}) == 4
