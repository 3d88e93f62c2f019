"""Overlap with training data, from a real training to the row of a benchmark."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cell_results import cell_result, plan_of
from real_tiles import tiles

from his2lip.config import validate
from his2lip.data.cards.card import Card
from his2lip.data.images.codec import encode_png
from his2lip.data.prepare.dataset import prepare
from his2lip.data.shards.reader import ShardSet, open_shards
from his2lip.evaluation.config import BenchmarkConfig
from his2lip.evaluation.embeddings import EmbeddingCache
from his2lip.evaluation.grid_cell import run_cell
from his2lip.evaluation.grid_plans import plan_cells
from his2lip.evaluation.grid_task import Work, score_models
from his2lip.evaluation.overlap import overlap
from his2lip.evaluation.prompts import PromptSet
from his2lip.evaluation.results import CellResult, figures
from his2lip.evaluation.scorers import ModelScorer
from his2lip.models.load import load_model
from his2lip.models.registered import training_record
from his2lip.models.trained_on import TrainingRecord, case_keys, image_keys
from his2lip.report.board import Board
from his2lip.report.markdown import markdown
from his2lip.report.page import html_page, sections
from his2lip.report.section import Inputs
from his2lip.training.config import TrainConfig
from his2lip.training.local import run_in_process

TISSUES = ("Tumor", "Stroma")
CARD: dict[str, Any] = {
    "name": "biopsies",
    "reader": "manifest",
    "splits": {"train": {"role": "train", "groups": "case"}, "test": {"role": "report", "groups": "case"}},
    "carve": [{"source": "train", "into": "test", "fraction": 0.4, "by": "case"}],
    "protocols": {
        "default": {
            "split": "test",
            "label": "tissue",
            "classes": {name: [name] for name in TISSUES},
            "prompts": "tissue",
            "basis": "ours",
        }
    },
}


@pytest.fixture
def prepared(real_ihc: np.ndarray, tmp_path: Path) -> Callable[..., ShardSet]:
    """prepared(folder, patients, card) -> shards of two real tiles per patient, one of each tissue type."""
    squares = tiles(real_ihc)

    def make(folder: str, patients: Sequence[int], **changes: object) -> ShardSet:
        root = tmp_path / folder / "in"
        root.mkdir(parents=True)
        rows = [("path", "split", "case_id", "tissue", "biomarker")]
        for patient in patients:
            for i, tissue in enumerate(TISSUES):
                rows.append((f"P{patient}_{i}.png", "train", f"P{patient}", tissue, "Ki67"))
                (root / f"P{patient}_{i}.png").write_bytes(encode_png(squares[2 * patient + i]))
        with (root / "manifest.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
        out = tmp_path / folder / "shards"
        prepare(Card.model_validate(CARD | changes), root, out)
        return open_shards(out)

    return make


def train(shards: ShardSet, folder: Path, *, backbone: str = "tiny") -> Path:
    data = {"shards": shards.uri, "select": None, "batch_size": 4, "lanes": 2, "decode_threads": 1}
    tree = {"data": data, "model": {"backbone": backbone}, "optim": {"epochs": 1}}
    run_in_process(validate(TrainConfig, tree), report=lambda metrics: None, folder=folder)
    return folder / "best"


def benchmark(checkpoint: Path, shards: ShardSet, tmp_path: Path) -> CellResult:
    config = validate(
        BenchmarkConfig,
        {
            "models": [{"name": "ours", "path": str(checkpoint)}],
            "datasets": {"ward": shards.uri},
            "cache": str(tmp_path / "cache"),
            "storage": str(tmp_path / "runs"),
        },
    )
    plans, failed = plan_cells(config)
    assert not failed
    (outcome,) = score_models(config.models, Work(plans, config))
    assert isinstance(outcome.cell, CellResult)
    return outcome.cell


def test_units_that_were_trained_on_are_counted_after_the_dataset_was_prepared_again(
    prepared: Callable[..., ShardSet], tmp_path: Path
) -> None:
    first = prepared("first", range(10))
    best = train(first, tmp_path / "run")
    own = benchmark(best, first, tmp_path)
    assert (own.overlap_units, own.in_domain) == (0, True), "other patients of the dataset it was trained on"

    again = prepared("again", range(11))
    grown = benchmark(best, again, tmp_path)
    cases = [set(shards.table("train")["case_id"].to_pylist()) for shards in (first, again)]
    assert cases[0] <= cases[1], "no patient moved"
    assert (grown.overlap_units, grown.in_domain) == (0, True)

    carve = [CARD["carve"][0] | {"seed": 1}]
    other = prepared("other", range(11), carve=carve)
    moved = sorted(cases[0] & set(other.table("test")["case_id"].to_pylist()))
    assert moved
    found = benchmark(best, other, tmp_path)
    assert found.n == other.info.rows - len(other.table("train"))
    assert found.overlap_units == found.overlap_images == found.overlap_cases == 2 * len(moved)

    renamed = benchmark(best, prepared("renamed", range(11), carve=carve, name="ward"), tmp_path)
    assert (renamed.overlap_images, renamed.overlap_cases) == (2 * len(moved), 0), "no case of this dataset"
    assert renamed.in_domain
    assert figures(renamed)["overlap_units"] == 2 * len(moved), "logged to MLflow"


def test_a_run_from_an_earlier_checkpoint_was_trained_on_the_data_of_both(
    prepared: Callable[..., ShardSet], tmp_path: Path
) -> None:
    first, second = prepared("a", range(8)), prepared("b", range(8, 16), name="others")
    start = train(first, tmp_path / "one")
    both = training_record(str(train(second, tmp_path / "two", backbone=str(start))))
    assert both is not None
    assert (both.datasets, both.complete) == (("biopsies", "others"), True)
    for shards in (first, second):
        rows = shards.table("train")
        assert np.isin(image_keys(rows["sha256"].to_pylist()), both.images).all()
        assert np.isin(case_keys(shards.info.name, rows["case_id"].to_pylist()), both.cases).all()
    assert len(both.images) == len(first.table("train")) + len(second.table("train"))


def test_an_incomplete_record_counts_what_it_knows_and_never_states_that_there_is_no_overlap(
    write_shards: Callable[..., ShardSet],
) -> None:
    plan = plan_of(write_shards())
    rows = open_shards(plan.uri).table("test")
    known = image_keys(rows["sha256"].to_pylist()[:3])
    found = overlap(TrainingRecord(("x",), images=known, complete=False), plan.selection)
    assert found is not None
    assert (found.units, found.images, found.cases) == (3, 3, 0)
    assert overlap(TrainingRecord(("x",), complete=False), plan.selection) is None
    assert overlap(TrainingRecord(("x",)), plan.selection) is not None
    assert overlap(None, plan.selection) is None


def test_overlap_by_case_is_unknown_and_not_zero_where_the_case_of_a_scored_unit_is(
    write_shards: Callable[..., ShardSet],
) -> None:
    known, record = plan_of(write_shards()).selection, TrainingRecord(("x",))
    of_known = overlap(record, known)
    assert of_known is not None
    assert (of_known.images, of_known.cases, of_known.units) == (0, 0, 0)
    found = overlap(record, plan_of(write_shards("without", case_id=None)).selection)
    assert found is not None
    assert (found.images, found.cases, found.units) == (0, None, 0)
    keys = known.case_keys.copy()
    keys[0] = 0
    some = overlap(record, dataclasses.replace(known, case_keys=keys))
    assert some is not None
    assert some.cases is None, "one unit without a case is enough"
    matched = overlap(
        dataclasses.replace(record, cases=keys[1:2]), dataclasses.replace(known, case_keys=keys)
    )
    assert matched is not None
    assert matched.cases == (keys == keys[1]).sum()
    row = cell_result(overlap_units=3, overlap_images=3, overlap_cases=None, in_domain=True)
    assert row.overlap_note == "not zero-shot: 3 of 10 units trained on (3 by image, cases unknown)"


def test_a_finished_grid_cell_of_unknown_cases_is_read_again_with_its_overlap_by_case_unknown(
    write_shards: Callable[..., ShardSet], tmp_path: Path
) -> None:
    """Earlier versions stored 0. The overlap is no part of the identity and is computed for each run."""
    plan = plan_of(write_shards(case_id=None))
    model, cache = load_model("tiny"), EmbeddingCache(str(tmp_path / "cache"))
    first = run_cell(ModelScorer("m", model, cache), plan, str(tmp_path))
    trained = ModelScorer("m", model, cache, record=TrainingRecord(("x",)))
    again = run_cell(trained, plan, str(tmp_path))
    assert isinstance(again.result, CellResult)
    assert (again.reused, again.result.cell) == (True, first.result.cell)
    assert (again.result.overlap_units, again.result.overlap_cases) == (0, None)


def _pages(board: Board) -> tuple[str, str]:
    """The HTML page and the Markdown of a board."""
    inputs = Inputs(board)
    shown = sections(inputs)
    return html_page(inputs, shown), markdown(inputs, shown)


def test_the_page_marks_the_figures_of_units_that_were_trained_on() -> None:
    row = cell_result(overlap_units=4, overlap_images=3, overlap_cases=2, in_domain=True)
    note = "not zero-shot: 4 of 10 units trained on (3 by image, 2 by case)"
    assert row.overlap_note == note
    clean = cell_result(model="other", overlap_units=0, overlap_images=0, overlap_cases=0)
    assert clean.overlap_note is None
    board = Board([row, clean, cell_result(model="third")])
    assert board.mean("CLIP") is None, "the only column is in-domain for one model"
    page, text = _pages(board)
    for written in (page, text):
        assert written.count(f"CLIP on hnscc: {note}") == 1
    assert '40.00</a><span class="marks">‡§</span>' in page
    assert "40.00‡§" in text


def test_repeated_units_and_cut_prompts_are_counted_and_shown(
    write_shards: Callable[..., ShardSet], real_ihc: np.ndarray, tmp_path: Path
) -> None:
    brown, pale = tiles(real_ihc)[0], tiles(real_ihc)[9]
    plan = plan_of(write_shards(images=[pale, pale, brown, pale, pale, brown, pale, pale, pale]))
    assert (plan.selection.scored.sum(), plan.selection.repeated) == (3, 1)
    long = {"negative": ["stroma"], "positive": ["tumour", "tumour " * 99, "tumour " * 99]}
    prompts = PromptSet.build("long", long)
    scorer = ModelScorer("m", load_model("tiny"), EmbeddingCache(str(tmp_path)))
    assert scorer.cut_prompts(dataclasses.replace(plan, prompts=prompts)) == 1
    assert scorer.cut_prompts(plan) == 0
    board = Board([cell_result(repeated=3, cut_prompts=1)])
    for page in _pages(board):
        assert "hnscc: 3 of 10 units repeat the picture of another unit." in page
        assert "CLIP on hnscc: 1 of its prompts cut to fit its text tower." in page
