"""Stored grid cells: equal when they are read again, and scored again if their files are damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cell_results import plan_of

from his2lip.config import digest
from his2lip.data.shards.reader import ShardSet
from his2lip.evaluation.baselines import BaselineScorer
from his2lip.evaluation.cell_files import DamagedCellError, cell_folder
from his2lip.evaluation.embeddings import Counts, EmbeddingCache
from his2lip.evaluation.grid_cell import CellRun, run_cell
from his2lip.evaluation.leaderboard import write_leaderboard
from his2lip.evaluation.protocols import groups_digest
from his2lip.evaluation.statistics import Clusters
from his2lip.evaluation.stored_cell import check_stored, read_predictions, stored_predictions
from his2lip.evaluation.verify import verify_board

Write = Callable[..., ShardSet]


@pytest.fixture
def grid(tmp_path: Path) -> str:
    return str(tmp_path / "grid")


@pytest.fixture
def run(write_shards: Write, tmp_path: Path, grid: str) -> Callable[[], CellRun]:
    """run() scores one grid cell by the baseline `chance`."""
    plan, scorer = plan_of(write_shards()), BaselineScorer("baseline:chance", EmbeddingCache(str(tmp_path)))
    return lambda: run_cell(scorer, plan, grid)


def test_a_finished_result_is_equal_when_it_is_read_again(run: Callable[[], CellRun], grid: str) -> None:
    first = run()
    assert (first.reused, first.damaged) == (False, None)
    assert run() == CellRun(first.result, reused=True)
    assert len(read_predictions(grid, first.result)) == first.result.n


@pytest.mark.parametrize("name", ["cell.json", "predictions.parquet"])
@pytest.mark.parametrize("how", ["cut", "empty", "gone"])
def test_a_damaged_file_is_reported_and_its_grid_cell_scored_again(
    run: Callable[[], CellRun], grid: str, name: str, how: str
) -> None:
    result = run().result
    place = Path(cell_folder(grid, result.cell))
    path = place / name
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 40 if how == "cut" else 0])
    again = run()
    assert (again.result, again.reused) == (result, False)
    assert again.damaged is not None or (name, how) == ("cell.json", "gone")
    assert again.damaged is None or str(place) in again.damaged
    assert run() == CellRun(result, reused=True)


def test_a_changed_digit_of_a_figure_is_noticed_and_scored_again(
    run: Callable[[], CellRun], grid: str
) -> None:
    result = run().result
    place = Path(cell_folder(grid, result.cell))
    tree = json.loads((place / "cell.json").read_text())
    tree["macro_f1"] += 0.1
    (place / "cell.json").write_text(json.dumps(tree))
    again = run()
    assert again.result == result
    assert again.damaged is not None


def test_every_flipped_bit_of_a_result_is_noticed(run: Callable[[], CellRun], grid: str) -> None:
    result = run().result
    place = Path(cell_folder(grid, result.cell))
    for name in ("cell.json", "predictions.parquet"):
        whole = (place / name).read_bytes()
        for position in range(0, len(whole), max(1, len(whole) // 23)):
            harmed = bytearray(whole)
            harmed[position] ^= 1 << position % 8
            (place / name).write_bytes(harmed)
            again = run()
            assert again.result == result, (name, position)
            (place / name).write_bytes(whole)


@pytest.mark.parametrize("gone", ["balanced_accuracy", "sha256"])
def test_a_result_of_an_earlier_version_is_scored_again_without_a_report(
    run: Callable[[], CellRun], grid: str, gone: str
) -> None:
    """Without a field that was added later, or without digests, which the first version did not write."""
    result = run().result
    path = Path(cell_folder(grid, result.cell)) / "cell.json"
    tree = json.loads(path.read_text())
    del tree[gone]
    if gone != "sha256":
        tree["sha256"] = digest({key: value for key, value in tree.items() if key != "sha256"})
    path.write_text(json.dumps(tree))
    assert run() == CellRun(result)


def test_datasets_that_differ_only_in_their_cases_have_grid_cells_of_their_own(
    write_shards: Write, tmp_path: Path
) -> None:
    """The predictions are the same, but the intervals are not."""
    folder = str(tmp_path / "grid")
    scorer = BaselineScorer("baseline:majority", EmbeddingCache(str(tmp_path)))
    plan = plan_of(write_shards())
    ids = [f"case {i % 2}" for i in range(len(plan.selection.labels))]
    clusters = Clusters(ids, "case")
    groups = groups_digest(plan.selection.unit_ids, clusters, plan.selection.breakdown)
    selection = replace(plan.selection, clusters=clusters, groups_sha256=groups)
    other = replace(plan, dataset="other cases", selection=selection)
    cells = [run_cell(scorer, one, folder).result for one in (plan, other)]
    assert cells[0].cell != cells[1].cell
    assert [run_cell(scorer, one, folder) for one in (plan, other)] == [
        CellRun(cell, reused=True) for cell in cells
    ]
    assert [set(stored_predictions(folder, cell)[1].tolist()) for cell in cells][1] == {0, 1}
    write_leaderboard(folder, cells, [])
    assert verify_board(folder).mismatches == []


def test_a_baseline_that_is_fitted_on_another_split_is_another_grid_cell(
    write_shards: Write, tmp_path: Path, grid: str
) -> None:
    plan, cache = plan_of(write_shards()), EmbeddingCache(str(tmp_path))
    roles = {"train": "select", "select": "train", "test": "report"}
    scorer = BaselineScorer("baseline:mean-colour", cache)
    runs = [run_cell(scorer, one, grid) for one in (plan, replace(plan, roles=roles), plan)]
    assert [run.reused for run in runs] == [False, False, True]


def test_a_finished_result_has_the_role_that_its_split_has_now(write_shards: Write, tmp_path: Path) -> None:
    """A split that was for choosing models, and is reported now, must not choose a champion any more."""
    plan, scorer = plan_of(write_shards()), BaselineScorer("baseline:majority", EmbeddingCache(str(tmp_path)))
    folder = str(tmp_path / "grid")
    before = run_cell(scorer, replace(plan, roles=plan.roles | {"test": "select"}), folder)
    now = run_cell(scorer, plan, folder)
    assert (before.result.role, now.result.role, now.reused) == ("select", "report", True)
    write_leaderboard(folder, [now.result], [])
    assert verify_board(folder).mismatches == []
    (row,) = verify_board(folder).cells
    assert row.role == "report"


def test_a_row_of_the_leaderboard_that_is_kept_is_compared_with_its_grid_cell(
    run: Callable[[], CellRun], grid: str
) -> None:
    result = run().result
    check_stored(grid, result)
    with pytest.raises(DamagedCellError):
        check_stored(grid, result.model_copy(update={"macro_f1": result.macro_f1 + 0.1}))
    with pytest.raises(DamagedCellError):
        check_stored(grid, result.model_copy(update={"cell": "0" * 64}))
    path = Path(cell_folder(grid, result.cell), "predictions.parquet")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedCellError):
        check_stored(grid, result)


def test_a_new_version_of_a_protocol_is_scored_again_from_the_cache_and_a_remark_is_not(
    write_shards: Write, tmp_path: Path, grid: str
) -> None:
    plan, cache = plan_of(write_shards()), EmbeddingCache(str(tmp_path / "cache"))
    scorer = BaselineScorer("baseline:stained-area", cache)

    def run(**changes: object) -> CellRun:
        return run_cell(scorer, replace(plan, protocol=plan.protocol.model_copy(update=changes)), grid)

    first = run()
    assert cache.counts.images > 0
    cache.counts = Counts()
    assert run(note="other words", basis="inferred", changelog={}, pool_reason="because").reused
    second = run(version=2, changelog={2: "what changed"})
    assert (second.reused, cache.counts.images) == (False, 0)
    assert second.result.cell != first.result.cell
    assert (first.result.protocol_version, second.result.protocol_version) == (1, 2)
