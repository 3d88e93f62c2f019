"""Retrieval in the grid: on real tiles with a real model, from cached embeddings, against a plain ranking."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
from real_tiles import tiles
from test_retrieval import FIGURES, plain_ranks

from his2lip.config import validate
from his2lip.data.captions import CaptionBank
from his2lip.data.cards.card import Card
from his2lip.data.images.codec import encode_png
from his2lip.data.shards.reader import open_shards
from his2lip.data.shards.schema import Patch
from his2lip.data.shards.writer import ShardWriter
from his2lip.errors import ConfigError
from his2lip.evaluation.config import PREFIX, BenchmarkConfig, ModelEntry
from his2lip.evaluation.embeddings import EmbeddingCache
from his2lip.evaluation.encoders import ModelEncoder, SentenceEncoder
from his2lip.evaluation.grid_plans import plan_cells
from his2lip.evaluation.grid_task import Outcome, Work, score_models
from his2lip.evaluation.leaderboard import write_leaderboard
from his2lip.evaluation.merge import merge_boards
from his2lip.evaluation.protocols import drawn
from his2lip.evaluation.results import CellFailure
from his2lip.evaluation.retrieval import NEVER, Items, chance, rank
from his2lip.evaluation.retrieval_task import DIRECTIONS, OTHER_BANK, RELEVANCES, RetrievalPlan
from his2lip.evaluation.statistics import Clusters
from his2lip.evaluation.task_results import TASKS, TaskCell, TaskRow, read_tasks, write_tasks
from his2lip.evaluation.tasks import read_evidence
from his2lip.evaluation.verify import verify_board
from his2lip.evaluation.verify_from_images import verify_images
from his2lip.models import load_model, save_checkpoint
from his2lip.report import write_pages

PAIRS = [(t, b) for t in ("Stroma", "Tumor") for b in ("CD3", "Ki67")]
PROTOCOL = {
    "split": "test",
    "label": "tissue",
    "classes": {"Stroma": ["Stroma"], "Tumor": ["Tumor"]},
    "prompts": "tissue",
    "basis": "ours",
}
CARD = {
    "name": "ward",
    "reader": "none",
    "splits": {"test": {"role": "report"}},
    "protocols": {"default": PROTOCOL},
}


@dataclass(frozen=True)
class Ward:
    """A prepared dataset of 48 real tiles of 8 cases, one of them twice, and a caption bank."""

    shards: str
    bank: Path
    folder: Path

    def config(self, **changes: object) -> BenchmarkConfig:
        tree = {
            "models": ["tiny"],
            "datasets": {"ward": self.shards},
            "protocols": [],
            "baselines": ["chance"],
            "retrieval": {"captions": str(self.bank)},
            "cache": str(self.folder / "cache"),
            "storage": str(self.folder / "runs"),
        }
        return validate(BenchmarkConfig, tree | changes)

    def score(self, config: BenchmarkConfig, *, models: bool = True) -> list[Outcome]:
        """The outcomes of models, controls and baselines, or of baselines only, which load no model."""
        plans, failed = plan_cells(config)
        assert not failed
        baselines = [ModelEntry(name=PREFIX + kind, path=PREFIX + kind) for kind in config.baselines]
        entries = [*(row for model in config.models for row in config.rows_of(model)), *baselines]
        return list(score_models(entries if models else baselines, Work(plans, config)))


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory, real_ihc: np.ndarray) -> Ward:
    """One for all tests of a module: a finished grid cell is read back by the next test."""
    tmp_path = tmp_path_factory.mktemp("ward")
    squares = tiles(real_ihc)[:47]
    brown = np.array([float(s[..., 0].mean()) - float(s[..., 2].mean()) for s in squares])
    with ShardWriter(tmp_path / "ward", card=Card.model_validate(CARD)) as writer:
        for i, square in enumerate([*squares, squares[0]]):
            writer.add(
                Patch(
                    patch_id=f"ward/{i}.png",
                    image=encode_png(square),
                    dataset="ward",
                    split="test",
                    tissue="Tumor" if brown[i % 47] > np.median(brown) else "Stroma",
                    biomarker=("CD3", "Ki67", None)[i % 3],
                    case_id=f"case-{i % 8}",
                    width=64,
                    height=64,
                    mpp=0.5,
                )
            )
    for tissue, biomarker in PAIRS:
        (tmp_path / "captions" / tissue).mkdir(parents=True, exist_ok=True)
        families = [
            f"{w} {biomarker} {tissue} one {w}\n{w} {biomarker} {tissue} two x{w}" for w in "abcdefghij"
        ]
        (tmp_path / "captions" / tissue / f"{biomarker}.txt").write_text("\n\n".join(families))
    bank, _ = CaptionBank.from_folder(tmp_path / "captions")
    bank.save(tmp_path / "bank.json")
    return Ward(str(tmp_path / "ward"), tmp_path / "bank.json", tmp_path)


def plan_of(config: BenchmarkConfig) -> RetrievalPlan:
    (plan,) = plan_cells(config)[0]
    assert isinstance(plan, RetrievalPlan)
    return plan


def cell_of(outcome: Outcome) -> TaskCell:
    assert isinstance(outcome.cell, TaskCell), outcome.cell
    return outcome.cell


def row_of(cell: TaskCell, direction: str, relevance: str) -> TaskRow:
    (row,) = [r for r in cell.rows if r.setting == {"direction": direction, "relevance": relevance}]
    return row


def test_figures_of_all_directions_equal_a_plain_ranking_of_the_embeddings(ward: Ward) -> None:
    config = ward.config()
    cell = cell_of(ward.score(config)[0])
    assert [tuple(row.setting.values()) for row in cell.rows] == [
        (d, r) for d in DIRECTIONS for r in RELEVANCES
    ]
    plan = plan_of(config)
    bank = CaptionBank.load(ward.bank)
    assert sorted(c.text for c in plan.captions) == sorted(t for own in bank.held_out.values() for t in own)
    trained_on = {text for lines in bank.captions.values() for text in lines}
    assert trained_on.isdisjoint(c.text for c in plan.captions)

    table = open_shards(ward.shards).table("test")
    model = load_model("tiny", seed=0)
    cache = EmbeddingCache(config.cache)
    images = cache.embed(ModelEncoder(model), open_shards(ward.shards), "test").features.astype(np.float64)
    texts = cache.embed_text(SentenceEncoder(model), [c.text for c in plan.captions]).astype(np.float64)
    assert (cache.counts.images, cache.counts.sentences) == (0, 0), "the grid's own embeddings"
    order = drawn(table["patch_id"].to_pylist(), len(table), 0)  # of equal similarities
    table = table.take(order)
    features = {"image": images[order], "text": texts}
    labels = {
        "image": list(zip(table["tissue"].to_pylist(), table["biomarker"].to_pylist(), strict=True)),
        "text": [c.labels for c in plan.captions],
    }
    pictures = table["sha256"].to_pylist()
    selves = {
        "image": np.array([pictures.index(p) for p in pictures]),
        "text": 100 + np.arange(len(plan.captions)),
    }
    numbers: dict[object, int] = {}
    for row in cell.rows:
        direction, relevance = row.setting.values()
        sides = []
        for kind in direction.split("-to-"):
            unit = features[kind] / np.linalg.norm(features[kind], axis=1, keepdims=True)
            asked = [
                -1
                if relevance != "tissue" and b is None
                else numbers.setdefault(t if relevance == "tissue" else (t, b), len(numbers))
                for t, b in labels[kind]
            ]
            sides.append(Items(unit, np.array(asked), selves[kind], np.full(len(unit), NEVER)))
        expected = plain_ranks(*sides)
        found = {name: row.figures[name].value for name in FIGURES}
        assert found == pytest.approx(expected, abs=1e-9), row.name
        assert row.sizes["gallery"] == len(sides[1])


def test_a_model_that_embeds_all_images_alike_is_not_ranked_by_the_order_of_the_rows(ward: Ward) -> None:
    """Rows of published datasets are often sorted by class, as these are."""
    plan, count = plan_of(ward.config()), 400
    selection = replace(
        plan.selection,
        labels=np.repeat([0, 1, 2, 3], count // 4),
        classes=("Stroma", "Tumor", "Necrosis", "Background"),
        unit_ids=[f"ward/{i:04}.png" for i in range(count)],
        unit=np.arange(count),
        image_keys=np.arange(count, dtype=np.uint64),
        clusters=Clusters([f"case {i % 8}" for i in range(count)], "case"),
        breakdown={"biomarker": [None] * count},
    )
    alike = replace(plan, selection=selection)._items("image", "tissue", np.ones((count, 2)), None)
    found, expected = rank(alike, alike)[0], chance(rank(alike, alike)[0])
    precision = float(found.figures()["mean_average_precision"])
    assert precision == pytest.approx(expected["mean_average_precision"], abs=0.02)
    in_order = Items(alike.features, np.sort(alike.classes), np.arange(count), np.full(count, NEVER))
    sorted_precision = float(rank(in_order, in_order)[0].figures()["mean_average_precision"])
    assert abs(sorted_precision - expected["mean_average_precision"]) > 0.1


def test_intervals_are_by_case_and_by_pair_of_captions_and_sizes_are_on_the_row(ward: Ward) -> None:
    cell = cell_of(ward.score(ward.config())[0])
    row = row_of(cell, "image-to-text", "tissue")
    assert (row.sizes["queries"], row.clusters, row.cluster_kind) == (48, 8, "case")
    assert row_of(cell, "image-to-text", "tissue and biomarker").sizes["queries"] == 32, (
        "16 without biomarker"
    )
    shown = row.figures["mean_average_precision"]
    assert shown.lo is not None
    assert shown.lo < shown.value < shown.hi
    assert row.figures["median_rank"].lo is None, "the jackknife is not valid for a median"
    captions = row_of(cell, "text-to-text", "tissue")
    assert (captions.clusters, captions.cluster_kind) == (4, "pair")
    assert captions.no_interval is not None


def test_chance_stands_beside_every_figure_and_in_a_row_of_its_own(ward: Ward) -> None:
    model, baseline = map(cell_of, ward.score(ward.config()))
    for own, random in zip(model.rows, baseline.rows, strict=True):
        assert own.setting == random.setting
        for name in FIGURES:
            assert own.figures[f"{name}_chance"].value == random.figures[name].value, name
            assert random.figures[name].lo is None
    assert 0.4 < row_of(baseline, "image-to-image", "tissue").figures["recall_at_1"].value < 0.6


def test_a_finished_cell_is_read_back_and_a_changed_bank_or_size_is_another_cell(ward: Ward) -> None:
    first = ward.score(ward.config())
    again = ward.score(ward.config())
    assert [o.reused for o in again] == [True, True]
    assert [o.cell for o in again] == [o.cell for o in first]
    smaller = ward.score(ward.config(retrieval={"captions": str(ward.bank), "most_images": 20}))
    assert not any(o.reused for o in smaller)
    assert smaller[0].counts.images == 0, "embedded before"
    assert cell_of(smaller[0]).rows[0].sizes["queries"] == 20
    few = ward.config(retrieval={"captions": str(ward.bank), "most_captions": 6})
    fewer = cell_of(ward.score(few, models=False)[0])
    assert fewer.rows[0].sizes["gallery"] == 6
    assert len({cell_of(o).cell for o in (first[1], smaller[1])} | {fewer.cell}) == 3


def test_a_damaged_cell_is_reported_and_scored_again(ward: Ward, tmp_path: Path) -> None:
    config = ward.config(storage=str(tmp_path))
    first = cell_of(ward.score(config, models=False)[0])
    for name in ("cell.json", "evidence.parquet"):
        path = Path(config.folder, "cells", first.cell, name)
        path.write_bytes(path.read_bytes()[:-20])
        outcome = ward.score(config, models=False)[0]
        assert (outcome.cell, outcome.reused) == (first, False)
        assert outcome.damaged is not None


def test_the_figures_follow_from_the_stored_ranks_of_the_queries(ward: Ward) -> None:
    config = ward.config()
    cell = cell_of(ward.score(config)[0])
    evidence = read_evidence(config.folder, cell)
    row = row_of(cell, "image-to-image", "tissue and biomarker")
    own = evidence.filter(
        pc.and_(
            pc.equal(evidence["direction"], "image-to-image"),
            pc.equal(evidence["relevance"], "tissue and biomarker"),
        )
    )
    first = own["first_rank"].to_numpy()
    assert len(first) == row.sizes["queries"]
    assert row.figures["recall_at_5"].value == np.mean(first <= 5)
    assert row.figures["median_rank"].value == np.median(first)


def test_it_stands_beside_protocols_without_a_new_forward_and_controls_have_no_part_in_it(
    ward: Ward, tmp_path: Path
) -> None:
    places = {"cache": str(tmp_path / "cache"), "storage": str(tmp_path)}
    outcomes = ward.score(ward.config(protocols=["default"], controls=["empty-prompts"], **places))
    kinds = [(o.cell.model, o.cell.protocol) for o in outcomes]
    assert kinds == [
        ("tiny", "default"),
        ("tiny", "retrieval"),
        ("baseline:empty-prompts of tiny", "default"),
        ("baseline:chance", "default"),
        ("baseline:chance", "retrieval"),
    ]
    assert not any(isinstance(o.cell, CellFailure) for o in outcomes)
    assert [o.counts.images for o in outcomes[:2]] == [47, 0], "each picture passed through the model once"


def test_tasks_are_verified_and_merged_with_their_board(ward: Ward, tmp_path: Path) -> None:
    config = ward.config()
    cells = [cell_of(o) for o in ward.score(config)]
    write_leaderboard(config.folder, [], [], config)
    write_tasks(config.folder, cells)
    for found in (verify_board(config.folder), verify_images(config.folder, sample=4)):
        assert (list(found.mismatches), list(found.cells)) == ([], cells)
    merge_boards([config.folder], str(tmp_path / "merged"))
    assert read_tasks(tmp_path / "merged") == cells
    assert verify_board(str(tmp_path / "merged")).mismatches == []

    other = ward.config(name="other", retrieval={"captions": str(ward.bank), "most_images": 20})
    write_leaderboard(other.folder, [], [], other)
    write_tasks(other.folder, [cell_of(o) for o in ward.score(other)])
    with pytest.raises(ConfigError) as refused:
        merge_boards([config.folder, other.folder], str(tmp_path / "both"))
    assert refused.value.key in ("split_sha256", "settings_sha256")

    rows = [cells[0].rows[0].model_copy(update={"clusters": 99}), *cells[0].rows[1:]]
    write_tasks(config.folder, [cells[0].model_copy(update={"rows": rows}), *cells[1:]])
    assert [m.file for m in verify_board(config.folder).mismatches] == [f"cells/{cells[0].cell}"]


def test_the_table_is_written_read_back_and_removed_with_the_task(ward: Ward) -> None:
    config = ward.config()
    cells = [cell_of(o) for o in ward.score(config)]
    write_tasks(config.folder, cells)
    assert read_tasks(config.folder) == cells
    lines = Path(config.folder, "retrieval.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 8
    assert lines[0].startswith(
        "model,dataset,direction,relevance,queries,gallery,recall_at_1,recall_at_1_lo,"
    )
    metrics = cells[0].metrics()
    assert metrics["retrieval/text-to-image/tissue/recall_at_10"] == pytest.approx(
        row_of(cells[0], "text-to-image", "tissue").figures["recall_at_10"].value
    )
    path = Path(config.folder, TASKS)
    path.write_text(path.read_text().replace('"queries": 48', '"queries": 49'))
    with pytest.raises(ConfigError) as damaged:
        read_tasks(config.folder)
    assert damaged.value.where == str(path)
    write_tasks(config.folder, [])
    assert not Path(config.folder, "retrieval.csv").exists()


@pytest.mark.parametrize("what", ["bank", "protocol"])
def test_what_cannot_be_searched_is_a_failure_with_its_reason(ward: Ward, tmp_path: Path, what: str) -> None:
    if what == "bank":
        CaptionBank({PAIRS[0]: ("one",)}).save(tmp_path / "none.json")
        section = {"captions": str(tmp_path / "none.json")}
    else:
        section = {"captions": str(ward.bank), "protocol": "defautl"}
    plans, (failure,) = plan_cells(ward.config(retrieval=section))
    assert plans == []
    assert (failure.dataset, failure.protocol, failure.trace) == ("ward", "retrieval", "")


def test_a_model_that_was_trained_from_another_bank_is_marked(ward: Ward) -> None:
    own = replace(CaptionBank.load(ward.bank), missing="template").digest
    for name, captions in (("own", own), ("other", CaptionBank.templates().digest)):
        meta = {"captions_digest": captions, "data_digest": "of another dataset"}
        save_checkpoint(ward.folder / name, load_model("tiny", seed=len(name)), meta=meta)
    models = [{"name": n, "path": str(ward.folder / n)} for n in ("own", "other")]
    cells = map(cell_of, ward.score(ward.config(models=models, baselines=[])))
    assert [cell.caveat for cell in cells] == [None, OTHER_BANK]


def test_the_page_has_a_table_per_direction_beside_chance_and_no_zero_shot_mean(ward: Ward) -> None:
    """Page, Markdown and LaTeX of a benchmark that has retrieval only."""
    config = ward.config(models=["tiny", {"name": "<b>", "path": "tiny"}])
    cells = [cell_of(o) for o in ward.score(config)]
    write_leaderboard(config.folder, [], [], config)
    write_tasks(config.folder, cells)
    page = write_pages(Path(config.folder, "leaderboard.csv"), ward.folder / "report")
    html, text = page.read_text(), page.with_name("leaderboard.md").read_text()
    for direction in DIRECTIONS:
        for relevance in RELEVANCES:
            assert f"ward: {direction}, same {relevance}" in html
            assert f"ward: {direction}, same {relevance}" in text
            assert f"ward: {direction}, same {relevance}" in page.with_name("leaderboard.tex").read_text()
    shown = row_of(cells[0], "image-to-image", "tissue").figures["mean_average_precision"]
    assert f">{100 * shown.value:.2f}<" in html
    assert f"{100 * shown.lo:.1f} to {100 * shown.hi:.1f}" in text
    assert "retrieval.csv" in html
    for written in (html, text, page.with_name("leaderboard.tex").read_text()):
        assert written.count("own case are in the gallery; they are often the nearest") == 1
    assert "<b>" not in html.split('id="retrieval"')[1].split("</section>")[0].replace("<b></b>", "")


def test_a_benchmark_without_protocols_needs_a_task_and_knows_its_datasets(ward: Ward) -> None:
    with pytest.raises(ConfigError) as nothing:
        ward.config(retrieval=None)
    assert nothing.value.key == "protocols"
    with pytest.raises(ConfigError) as unknown:
        ward.config(retrieval={"captions": str(ward.bank), "datasets": ["wart"]})
    assert unknown.value.key == "retrieval.datasets"
