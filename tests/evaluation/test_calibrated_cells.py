"""Calibration of grid cells: fitted on the select split, measured on other cases, stored and shown."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cell_results import plan_of
from PIL import Image
from real_tiles import tiles

from his2lip.cli.benchmark_record import _drawn
from his2lip.data.cards.card import Card
from his2lip.data.shards.reader import ShardSet, open_shards
from his2lip.evaluation.embeddings import EmbeddingCache
from his2lip.evaluation.grid_cell import CellPlan, FitPlan, run_cell
from his2lip.evaluation.grid_plans import fit_plan
from his2lip.evaluation.leaderboard import write_leaderboard
from his2lip.evaluation.protocols import select
from his2lip.evaluation.reliability import Fitted, calibrated, fit_temperature
from his2lip.evaluation.reliability_diagram import reliability_points
from his2lip.evaluation.results import CellResult, figures
from his2lip.evaluation.scorers import ModelScorer
from his2lip.evaluation.stored_cell import stored_predictions
from his2lip.evaluation.verify import verify_board
from his2lip.models.load import load_model
from his2lip.report.pages import write_pages
from his2lip.report.task_images import draw_reliability

Write = Callable[..., ShardSet]
CARD = Card.model_validate({"name": "toy", "reader": "none", "splits": {"test": {"role": "report"}}})


@pytest.fixture
def plan(write_shards: Write, real_ihc: np.ndarray) -> CellPlan:
    """64 real tiles: 21 in `select`, 21 in `test`, of other cases."""
    shards = write_shards(images=tiles(real_ihc)[:64])
    plan = plan_of(shards)
    return replace(plan, fit=fit_plan(plan, CARD, shards))


@pytest.fixture
def scorer(tmp_path: Path) -> ModelScorer:
    return ModelScorer("m", load_model("tiny", seed=SEED), EmbeddingCache(str(tmp_path / "cache")))


SEED = 3  # of a model whose similarities say something on these labels


def run(scorer: ModelScorer, plan: CellPlan, tmp_path: Path) -> CellResult:
    found = run_cell(scorer, plan, str(tmp_path / "board")).result
    assert isinstance(found, CellResult)
    return found


def test_the_temperature_is_fitted_on_select_and_its_figures_are_those_of_the_scored_units(
    plan: CellPlan, scorer: ModelScorer, tmp_path: Path
) -> None:
    cell = run(scorer, plan, tmp_path)
    assert cell.calibration is not None, cell.no_calibration
    assert (cell.calibration.fitted_on, cell.calibration.fitted_n, cell.n) == ("select", 21, 21)

    protocol = plan.protocol.model_copy(update={"split": "select"})
    on_select = replace(plan, protocol=protocol, fit=None, selection=select(open_shards(plan.uri), protocol))
    scores = scorer.score(on_select).scores.scores
    assert cell.calibration.temperature == fit_temperature(scores, on_select.selection.labels, where="select")

    predictions, clusters = stored_predictions(str(tmp_path / "board"), cell)
    assert predictions.scores is not None
    fit = Fitted(cell.calibration.temperature, "select", 21)
    again = calibrated(predictions.scores, predictions.labels, clusters, fit, has_interval=False)
    assert again == cell.calibration
    assert figures(cell)["brier"] == cell.calibration.figures["brier"].value

    points = reliability_points(str(tmp_path / "board"), cell)
    assert sum(point.n for point in points) == cell.n
    assert np.average([p.accuracy for p in points], weights=[p.n for p in points]) == pytest.approx(
        cell.accuracy
    )
    assert reliability_points(str(tmp_path / "board"), cell.model_copy(update={"calibration": None})) == []
    (image,) = draw_reliability(str(tmp_path / "board"), [cell], tmp_path / "plots")
    with Image.open(image) as opened:
        opened.verify()


def test_the_plots_of_a_model_are_all_drawn_after_a_stop_between_two_of_them(
    scorer: ModelScorer, plan: CellPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    cell, board, plots = run(scorer, plan, tmp_path), str(tmp_path / "board"), tmp_path / "plots"
    with monkeypatch.context() as stopped:
        stopped.setattr("his2lip.report.draw_reliability", stop)
        with pytest.raises(KeyboardInterrupt):
            _drawn(board, [cell], plots)
    assert [path.name for path in _drawn(board, [cell], plots)] == ["confusion.png", "reliability.png"]


def test_units_of_scored_cases_or_images_are_not_fitted_to(plan: CellPlan, real_ihc: np.ndarray) -> None:
    assert isinstance(plan.fit, FitPlan)
    assert plan.fit.used.all()
    shards = open_shards(plan.uri)
    ids, images = list(plan.selection.clusters.ids), plan.selection.image_keys.copy()
    ids[0], images[1] = plan.fit.selection.clusters.ids[0], plan.fit.selection.image_keys[1]
    clusters = replace(plan.selection.clusters, ids=ids)
    shared = replace(plan.selection, clusters=clusters, image_keys=images)
    found = fit_plan(replace(plan, selection=shared), CARD, shards)
    assert isinstance(found, str), "too few are left"
    assert "labelled units of other cases" in found


def test_a_temperature_is_not_fitted_to_slides_that_are_scored_where_cases_are_unknown(
    write_shards: Write, real_ihc: np.ndarray
) -> None:
    shards = write_shards(images=tiles(real_ihc)[:64], case_id=None, slide_id="one")
    found = fit_plan(plan_of(shards), CARD, shards)
    assert isinstance(found, str)
    assert "0 labelled units of other cases" in found


def test_a_cell_says_why_it_has_no_calibration_and_is_measured_once_it_is_asked_for(
    plan: CellPlan, scorer: ModelScorer, tmp_path: Path
) -> None:
    bare = run(scorer, replace(plan, fit=None), tmp_path)
    assert (bare.calibration, bare.no_calibration) == (None, None)
    without = run(scorer, replace(plan, fit="the dataset has no split with the role select"), tmp_path)
    assert without.calibration is None
    assert without.no_calibration == "the dataset has no split with the role select"
    asked = run(scorer, plan, tmp_path)
    assert asked.calibration is not None
    assert len({bare.cell, without.cell, asked.cell}) == 3, "datasets may differ only in their fit"
    assert isinstance(plan.fit, FitPlan)
    used = plan.fit.used.copy()
    used[0] = False
    fewer = run(scorer, replace(plan, fit=replace(plan.fit, used=used)), tmp_path)
    assert run_cell(scorer, plan, str(tmp_path / "board")).reused
    assert fewer.calibration is not None
    assert (fewer.calibration.fitted_n, asked.calibration.fitted_n) == (20, 21)


def test_calibration_is_verified_and_stands_on_the_page_and_in_tables(
    plan: CellPlan, scorer: ModelScorer, tmp_path: Path
) -> None:
    cell = run(scorer, plan, tmp_path)
    assert cell.calibration is not None
    path = Path(write_leaderboard(str(tmp_path / "board"), [cell], []))
    assert list(verify_board(str(tmp_path / "board")).mismatches) == []
    page = write_pages(path, tmp_path / "report")
    assert "temperatures fitted to 21 units of select" in page.read_text(encoding="utf-8")
    rows = list(csv.DictReader((tmp_path / "report/calibration.csv").open()))
    assert [(r["model"], r["fitted_n"], r["n"]) for r in rows] == [("m", "21", "21")]
    assert float(rows[0]["aurc"]) == cell.calibration.figures["aurc"].value
    points = list(csv.DictReader((tmp_path / "report/risk_coverage.csv").open()))
    assert len(points) == len(cell.calibration.curve)
    assert float(points[-1]["risk"]) == pytest.approx(1 - cell.accuracy)
