"""Boards of several machines as one, and what must not be merged."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cell_results import plan_of
from real_tiles import tiles
from typer.testing import CliRunner

from his2lip.cli.app import app
from his2lip.config import digest
from his2lip.data.shards.reader import ShardSet, open_shards
from his2lip.errors import ConfigError
from his2lip.evaluation.baselines import BaselineScorer
from his2lip.evaluation.cell_files import cell_folder
from his2lip.evaluation.config import Probe
from his2lip.evaluation.embeddings import EmbeddingCache
from his2lip.evaluation.grid_cell import CellPlan, run_cell
from his2lip.evaluation.leaderboard import with_differences, write_leaderboard
from his2lip.evaluation.merge import merge_boards
from his2lip.evaluation.probe_scorer import ProbeScorer
from his2lip.evaluation.probes import labelled
from his2lip.evaluation.prompts import PromptSet
from his2lip.evaluation.protocols import Selection, groups_digest, select
from his2lip.evaluation.results import CellResult, read_results
from his2lip.evaluation.scorers import ModelScorer
from his2lip.evaluation.statistics import Clusters
from his2lip.evaluation.verify import verify_board
from his2lip.models.load import load_model

Write = Callable[..., ShardSet]
MakeBoard = Callable[..., str]


@pytest.fixture
def plan(write_shards: Write) -> CellPlan:
    return plan_of(write_shards())


@pytest.fixture
def make(tmp_path: Path, plan: CellPlan) -> MakeBoard:
    """make(name, {model: seed}, plan=…) -> the folder of a board with these models and `majority`."""
    cache = EmbeddingCache(str(tmp_path / "cache"))

    def make(name: str, seeds: dict[str, int], plan: CellPlan = plan) -> str:
        folder = str(tmp_path / name)
        scorers = [ModelScorer(model, load_model("tiny", seed=seed), cache) for model, seed in seeds.items()]
        majority = BaselineScorer("baseline:majority", cache)
        rows = [run_cell(scorer, plan, folder).result for scorer in (*scorers, majority)]
        write_leaderboard(folder, rows, [])
        return folder

    return make


def merged(folders: list[str], out: Path) -> list[CellResult]:
    return read_results(Path(merge_boards(folders, str(out)).leaderboard))


def test_a_file_that_a_killed_write_left_is_not_merged(make: MakeBoard, tmp_path: Path) -> None:
    boards = [make("a", {"one": 1}), make("b", {"two": 2})]
    for cell in Path(boards[0], "cells").iterdir():
        (cell / f"cell.json.{'0' * 32}.tmp").write_bytes(b"half")
    merge_boards(boards, str(tmp_path / "out"))
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_two_boards_make_one_that_is_verified_and_has_a_page(make: MakeBoard, tmp_path: Path) -> None:
    a, b = make("a", {"one": 1, "both": 3}), make("b", {"two": 2, "both": 3})
    out = tmp_path / "c"
    run = CliRunner().invoke(app, ["report", a, b, "--out", str(out)])
    assert run.exit_code == 0, run.output
    rows = read_results(out / "leaderboard.csv")
    assert [r.model for r in rows] == ["one", "both", "baseline:majority", "two"]
    assert (out / "report/index.html").is_file()
    found = verify_board(str(out))
    assert (list(found.mismatches), list(found.cells)) == ([], rows)
    assert merged([a, b], out) == rows, "a merged board may be merged again"
    with pytest.raises(ConfigError) as caught:
        merge_boards([a, b], a)
    assert caught.value.key == "--out"


def test_one_model_of_other_weights_or_prompts_is_refused_by_name(
    make: MakeBoard, plan: CellPlan, tmp_path: Path
) -> None:
    first = make("a", {"m": 1})
    with pytest.raises(ConfigError) as caught:
        merge_boards([first, make("b", {"m": 2})], str(tmp_path / "c"))
    assert caught.value.key == "weights_sha256"
    assert "m on toy (default)" in str(caught.value)
    prompts = PromptSet.build("other", {"negative": ["pale"], "positive": ["brown"]})
    with pytest.raises(ConfigError) as caught:
        merge_boards([first, make("d", {"m": 1}, replace(plan, prompts=prompts))], str(tmp_path / "c"))
    assert caught.value.key == "prompts_sha256"
    with pytest.raises(ConfigError) as caught:
        merge_boards([first, make("e", {"n": 1}, replace(plan, prompts=prompts))], str(tmp_path / "c"))
    assert caught.value.key == "prompts_sha256", "other models of one column have the same prompts"
    assert not (tmp_path / "c").exists()


def test_a_board_with_calibration_and_one_without_are_told_apart_by_it(
    make: MakeBoard, plan: CellPlan, tmp_path: Path
) -> None:
    fitted = make("b", {"m": 1}, replace(plan, fit="the dataset has no select split"))
    with pytest.raises(ConfigError) as caught:
        merge_boards([make("a", {"m": 1}), fitted], str(tmp_path / "c"))
    assert caught.value.key == "calibration"


def test_a_name_of_two_models_is_refused_where_they_were_scored_on_different_datasets(
    make: MakeBoard, plan: CellPlan, tmp_path: Path
) -> None:
    """Its mean over datasets would be that of no model."""
    first, elsewhere = make("a", {"m": 1}), replace(plan, dataset="other")
    with pytest.raises(ConfigError) as caught:
        merge_boards([first, make("b", {"m": 2}, elsewhere)], str(tmp_path / "c"))
    assert caught.value.key == "weights_sha256"
    assert "m on other (default)" in str(caught.value)
    rows = merged([first, make("d", {"m": 1}, elsewhere)], tmp_path / "c")
    assert [(r.model, r.dataset) for r in rows if not r.is_baseline] == [("m", "toy"), ("m", "other")]


def test_boards_of_two_splits_are_refused_by_their_names(
    make: MakeBoard, plan: CellPlan, tmp_path: Path
) -> None:
    protocol = plan.protocol.model_copy(update={"split": "select"})
    on_select = replace(plan, protocol=protocol, selection=select(open_shards(plan.uri), protocol))
    with pytest.raises(ConfigError) as caught:
        merge_boards([make("a", {"m": 1}), make("b", {"m": 1}, on_select)], str(tmp_path / "c"))
    assert caught.value.key == "split"
    assert "another split (select, not test)" in str(caught.value)


def test_other_labels_and_other_code_are_refused_by_name(
    make: MakeBoard, plan: CellPlan, tmp_path: Path
) -> None:
    first = make("a", {"m": 1})
    labels = 1 - plan.selection.labels
    selection = replace(plan.selection, labels=labels, split_sha256="of other labels")
    with pytest.raises(ConfigError) as caught:
        merge_boards([first, make("b", {"n": 1}, replace(plan, selection=selection))], str(tmp_path / "c"))
    assert caught.value.key == "split_sha256"
    other = make("d", {"m": 1})
    path = Path(cell_folder(other, read_results(Path(other, "leaderboard.csv"))[0].cell), "cell.json")
    tree = json.loads(path.read_text())
    tree["evidence"]["code_version"] = "0.0+old"
    tree["sha256"] = digest({key: value for key, value in tree.items() if key != "sha256"})
    path.write_text(json.dumps(tree))
    with pytest.raises(ConfigError) as caught:
        merge_boards([first, other], str(tmp_path / "c"))
    assert caught.value.key == "code_version"


@pytest.mark.parametrize("first", ["probe", "model"])
def test_probes_and_models_of_two_boards_share_a_column(plan: CellPlan, tmp_path: Path, first: str) -> None:
    """A probe reads no prompts, so it has no digest of prompts that could be another one."""
    shards = open_shards(plan.uri)
    plan = replace(plan, labelled=labelled(shards, plan.protocol, plan.selection, "train"))
    cache = EmbeddingCache(str(tmp_path / "cache"))
    models = [ModelScorer(f"m{seed}", load_model("tiny", seed=seed), cache) for seed in (1, 2)]
    probes = [ProbeScorer(f"probe:knn of {model.name}", model, Probe(kind="knn")) for model in models]
    folders = [str(tmp_path / name) for name in "ab"]
    for folder, model, probe in zip(folders, models, probes, strict=True):
        scorers = (probe, model) if first == "probe" else (model, probe)
        write_leaderboard(folder, [run_cell(scorer, plan, folder).result for scorer in scorers], [])
    rows = merged(folders, tmp_path / "c")
    assert {r.model for r in rows} == {"m1", "m2", "probe:knn of m1", "probe:knn of m2"}
    prompts = PromptSet.build("other", {"negative": ["pale"], "positive": ["brown"]})
    other = replace(plan, prompts=prompts)
    rows = [run_cell(scorer, other, str(tmp_path / "d")).result for scorer in (probes[1], models[1])]
    write_leaderboard(str(tmp_path / "d"), rows, [])
    with pytest.raises(ConfigError) as caught:
        merge_boards([folders[0], str(tmp_path / "d")], str(tmp_path / "e"))
    assert caught.value.key == "prompts_sha256", "models of one column still have the same prompts"


def test_a_baseline_of_other_images_is_not_put_beside_models(plan: CellPlan, tmp_path: Path) -> None:
    cache, folders = EmbeddingCache(str(tmp_path / "cache")), [str(tmp_path / name) for name in "ab"]
    other = replace(plan, selection=replace(plan.selection, images_sha256="of other images"))
    model, chance = ModelScorer("m", load_model("tiny"), cache), BaselineScorer("baseline:chance", cache)
    write_leaderboard(folders[0], [run_cell(model, plan, folders[0]).result], [])
    write_leaderboard(folders[1], [run_cell(chance, other, folders[1]).result], [])
    with pytest.raises(ConfigError) as caught:
        merge_boards(folders, str(tmp_path / "c"))
    assert caught.value.key == "images_sha256"


def test_margins_that_differ_are_named_as_references_are(make: MakeBoard, tmp_path: Path) -> None:
    folders = [make("a", {"m": 1}), make("b", {"n": 2})]
    for folder, margin in zip(folders, (0.05, 0.2), strict=True):
        rows = read_results(Path(folder, "leaderboard.csv"))
        rows = with_differences(folder, rows, reference="baseline:majority", margin=margin)
        write_leaderboard(folder, rows, [])
    (note,) = merge_boards(folders, str(tmp_path / "c")).notes
    assert "0.05" in note
    assert "0.2" in note
    assert {r.margin for r in read_results(tmp_path / "c/leaderboard.csv")} == {0.05}
    assert merge_boards([folders[0], folders[0]], str(tmp_path / "d")).notes == []


def in_another_order(selection: Selection) -> Selection:
    """The same units, last first."""
    cases = selection.case_ids[::-1]
    turned = replace(
        selection,
        unit=len(selection.unit_ids) - 1 - selection.unit,
        unit_ids=selection.unit_ids[::-1],
        case_ids=cases,
        clusters=replace(selection.clusters, ids=list(selection.clusters.ids)[::-1]),
        labels=selection.labels[::-1],
        breakdown={name: values[::-1] for name, values in selection.breakdown.items()},
    )
    return replace(turned, groups_sha256=groups_digest(turned.unit_ids, turned.clusters, turned.breakdown))


def test_a_split_that_was_prepared_in_another_order_is_the_same_split(
    real_ihc: np.ndarray, write_shards: Write, tmp_path: Path
) -> None:
    """Its grid cells are read back, boards of both merge, and units are compared by their ids."""
    plan = plan_of(write_shards("many", images=tiles(real_ihc)[:54]))
    ids = [f"case {i % 6}" for i in range(len(plan.selection.labels))]
    clusters = Clusters(ids, "case")
    groups = groups_digest(plan.selection.unit_ids, clusters, plan.selection.breakdown)
    plan = replace(plan, selection=replace(plan.selection, clusters=clusters, groups_sha256=groups))
    turned = replace(plan, selection=in_another_order(plan.selection))
    cache, folders = EmbeddingCache(str(tmp_path / "cache")), [str(tmp_path / name) for name in "abc"]
    models = [ModelScorer(f"m{seed}", load_model("tiny", seed=seed), cache) for seed in (1, 2)]
    for folder, scorers, one in (
        (folders[0], models, plan),
        (folders[1], models[:1], plan),
        (folders[2], models, turned),
    ):
        write_leaderboard(folder, [run_cell(scorer, one, folder).result for scorer in scorers], [])
    assert run_cell(models[0], turned, folders[0]).reused
    mixed = merge_boards([folders[1], folders[2]], str(tmp_path / "d"))
    assert mixed.notes == [], "every unit is predicted alike"
    whole, rows = merged([folders[0]], tmp_path / "e"), read_results(Path(mixed.leaderboard))
    assert whole[0].compared
    for one, other in zip(whole, rows, strict=True):
        for name, own in one.compared.items():
            assert other.compared[name].detectable == pytest.approx(own.detectable), name
    assert verify_board(str(tmp_path / "d")).mismatches == []


def test_several_boards_need_a_folder_of_their_own(make: MakeBoard) -> None:
    a = make("a", {"m": 1})
    assert CliRunner().invoke(app, ["report", a, a]).exit_code != 0
