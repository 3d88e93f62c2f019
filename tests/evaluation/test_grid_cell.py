"""Stored grid cells: equal when they are read again, and scored again if their files are damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cell_results import plan_of

from his2lip.data.shards.reader import ShardSet
from his2lip.evaluation.baselines import BaselineScorer
from his2lip.evaluation.embeddings import EmbeddingCache
from his2lip.evaluation.grid_cell import CellRun, cell_folder, read_predictions, run_cell

Write = Callable[..., ShardSet]


@pytest.fixture
def grid(tmp_path: Path) -> str:
    return str(tmp_path / "grid")


@pytest.fixture
def run(write_shards: Write, tmp_path: Path, grid: str) -> Callable[[], CellRun]:
    """run() scores one grid cell by the baseline `chance`."""
    plan, scorer = plan_of(write_shards()), BaselineScorer("baseline:chance", EmbeddingCache(str(tmp_path)))
    return lambda: run_cell(scorer, plan, grid)


def earlier_version(place: Path) -> None:
    """Rewrites cell.json as earlier versions wrote it, without digests."""
    tree = json.loads((place / "cell.json").read_text())
    del tree["sha256"], tree["predictions_sha256"]
    (place / "cell.json").write_text(json.dumps(tree | {"folder": str(place), "reused": False}))


def test_a_finished_result_is_equal_when_it_is_read_again(run: Callable[[], CellRun], grid: str) -> None:
    first = run()
    assert (first.reused, first.damaged) == (False, None)
    assert run() == CellRun(first.result, reused=True)
    assert len(read_predictions(grid, first.result)) == first.result.n
    earlier_version(Path(cell_folder(grid, first.result.cell)))
    assert run() == CellRun(first.result, reused=True)


@pytest.mark.parametrize("digests", [True, False], ids=["with digests", "of an earlier version"])
@pytest.mark.parametrize("name", ["cell.json", "predictions.parquet"])
@pytest.mark.parametrize("how", ["cut", "empty", "gone"])
def test_a_damaged_file_is_reported_and_its_grid_cell_scored_again(
    run: Callable[[], CellRun], grid: str, digests: bool, name: str, how: str
) -> None:
    result = run().result
    place = Path(cell_folder(grid, result.cell))
    if not digests:
        earlier_version(place)
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


@pytest.mark.parametrize("digests", [True, False], ids=["with digests", "of an earlier version"])
def test_a_changed_digit_of_a_figure_is_noticed_and_scored_again(
    run: Callable[[], CellRun], grid: str, digests: bool
) -> None:
    result = run().result
    place = Path(cell_folder(grid, result.cell))
    if not digests:
        earlier_version(place)
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


def test_a_result_without_a_field_that_was_added_later_is_scored_again_without_a_report(
    run: Callable[[], CellRun], grid: str
) -> None:
    result = run().result
    path = Path(cell_folder(grid, result.cell)) / "cell.json"
    tree = json.loads(path.read_text())
    del tree["balanced_accuracy"], tree["sha256"]
    path.write_text(json.dumps(tree))
    assert run() == CellRun(result)
