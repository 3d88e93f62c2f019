"""A store that is away while a benchmark is read is one sentence, and nothing of it counts as damaged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from broken_store import AWAY, broken_store
from buckets import s3_on_loopback
from cell_results import plan_of

from his2lip.data.shards.reader import ShardSet
from his2lip.errors import StorageError
from his2lip.evaluation.baselines import BaselineScorer
from his2lip.evaluation.cell_files import cell_folder, finished_cells
from his2lip.evaluation.embeddings import EmbeddingCache
from his2lip.evaluation.feature_store import FeatureStore
from his2lip.evaluation.grid import _board_rows
from his2lip.evaluation.grid_cell import CellPlan, run_cell
from his2lip.evaluation.known_model import read_facts
from his2lip.evaluation.leaderboard import Frame, with_differences, write_leaderboard
from his2lip.evaluation.merge import merge_boards
from his2lip.evaluation.results import CellResult, read_results
from his2lip.evaluation.stored_cell import check_stored, read_predictions
from his2lip.evaluation.task_results import read_tasks, write_tasks
from his2lip.evaluation.verify import verify_board

FEATURES = {"a": np.ones((1, 3), dtype=np.float32), "b": np.zeros((2, 3), dtype=np.float32)}


@dataclass(frozen=True)
class Board:
    """A board of one grid cell, in the storage `place` with a cache."""

    place: str
    folder: str
    plan: CellPlan
    scorer: BaselineScorer
    cell: CellResult

    @property
    def store(self) -> FeatureStore:
        return FeatureStore(f"{self.place}/cache", "images/k", width=3)


def scored(place: str, plan: CellPlan) -> Board:
    """A board in a storage that is there."""
    folder = f"{place}/benchmark/b"
    scorer = BaselineScorer("baseline:chance", EmbeddingCache(f"{place}/cache"))
    cell = run_cell(scorer, plan, folder).result
    assert isinstance(cell, CellResult)
    write_leaderboard(folder, [cell], [])
    write_tasks(folder, [])
    board = Board(place, folder, plan, scorer, cell)
    board.store.append(FEATURES)
    return board


USES: dict[str, Callable[[Board], object]] = {
    "cached features": lambda board: board.store.read(FEATURES),
    "number of cached features": lambda board: board.store.count(FEATURES.keys()),
    "features to cache": lambda board: board.store.append(FEATURES),
    "facts of a model": lambda board: read_facts(f"{board.place}/cache", "none"),
    "finished grid cells": lambda board: finished_cells(board.folder),
    "a grid cell": lambda board: run_cell(board.scorer, board.plan, board.folder),
    "a row that is kept": lambda board: check_stored(board.folder, board.cell),
    "predictions": lambda board: read_predictions(board.folder, board.cell),
    "differences": lambda board: with_differences(board.folder, [board.cell, board.cell]),
    "rows": lambda board: _board_rows(board.folder),
    "frame": lambda board: Frame.read(board.folder),
    "tasks": lambda board: read_tasks(board.folder),
    "tasks to write": lambda board: write_tasks(board.folder, []),
    "a board to write": lambda board: write_leaderboard(board.folder, [], []),
    "verification": lambda board: verify_board(board.folder),
    "merge": lambda board: merge_boards([board.folder], f"{board.place}/merged"),
}


@pytest.fixture
def plan(write_shards: Callable[..., ShardSet]) -> CellPlan:
    return plan_of(write_shards(case_id=None, slide_id=None))


def test_a_store_that_is_away_is_one_sentence_and_damages_nothing(plan: CellPlan) -> None:
    with broken_store() as store:
        board = scored("broken://bucket/runs", plan)
        for name, use in USES.items():
            store.fault = AWAY
            with pytest.raises(StorageError) as refused:
                use(board)
            assert refused.value.key == "store", name
            assert "bucket/runs" in str(refused.value.where), name
            assert "\n" not in str(refused.value), name
            store.fault = None
        features = board.store
        assert (features.read(FEATURES).keys(), features.damaged) == (FEATURES.keys(), [])
        assert run_cell(board.scorer, plan, board.folder).reused
        assert verify_board(board.folder).mismatches == []


@pytest.mark.parametrize("spared", [1, 2, 3, 4])
def test_a_store_that_goes_away_between_two_requests_sets_no_part_aside(plan: CellPlan, spared: int) -> None:
    """The parts are listed, and cannot be read then."""
    with broken_store() as store:
        board = scored("broken://bucket/runs", plan)
        for use in (USES["cached features"], USES["number of cached features"]):
            store.fault, store.spared = AWAY, spared
            with pytest.raises(StorageError):
                use(board)
        store.fault = None
        assert board.store.read(FEATURES).keys() == FEATURES.keys()


@pytest.mark.slow  # Arrow itself asks each time for six seconds
def test_a_server_of_s3_that_has_gone_is_one_sentence(
    plan: CellPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_on_loopback("ihc") as bucket:
        board = scored(f"{bucket}/runs", plan)
        assert run_cell(board.scorer, plan, board.folder).reused
        assert read_predictions(board.folder, board.cell).num_rows == board.cell.n
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        for name in ("cached features", "a grid cell", "frame"):
            with pytest.raises(StorageError) as refused:
                USES[name](board)
            assert (refused.value.key, "ihc/runs" in str(refused.value.where)) == ("store", True), name


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="a file that gives input/output errors")
def test_a_disk_that_fails_is_one_sentence_and_damages_nothing(plan: CellPlan, tmp_path: Path) -> None:
    board = scored(str(tmp_path / "runs"), plan)
    (part,) = Path(board.place, "cache/images/k").iterdir()
    place = Path(cell_folder(board.folder, board.cell.cell))
    table = Path(board.folder, "leaderboard.csv")
    failing: list[tuple[Path, Callable[[], object]]] = [
        (part, lambda: USES["cached features"](board)),
        (place / "cell.json", lambda: USES["a grid cell"](board)),
        (place / "predictions.parquet", lambda: USES["predictions"](board)),
        (table, lambda: read_results(table)),
    ]
    for path, use in failing:
        kept = path.rename(path.with_name("kept"))
        path.symlink_to("/proc/self/mem")
        with pytest.raises(StorageError) as refused:
            use()
        assert refused.value.key == "store"
        assert str(refused.value.where) == str(path)
        assert path.is_symlink(), "it was not set aside"
        kept.replace(path)
