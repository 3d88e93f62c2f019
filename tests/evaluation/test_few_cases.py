"""A benchmark on a split of too few cases: `models promote --best` says so in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cell_results import plan_of

from his2lip.cli.app import main
from his2lip.data.shards.reader import ShardSet
from his2lip.evaluation.embeddings import EmbeddingCache
from his2lip.evaluation.grid_cell import run_cell
from his2lip.evaluation.leaderboard import with_differences, write_leaderboard
from his2lip.evaluation.results import CellResult
from his2lip.evaluation.scorers import ModelScorer
from his2lip.models.load import load_model


def test_promote_names_the_dataset_whose_select_split_has_too_few_cases(
    write_shards: Callable[..., ShardSet],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, plan = tmp_path / "runs/benchmark/choose", plan_of(write_shards(), split="select")
    scorer = ModelScorer("tiny", load_model("tiny"), EmbeddingCache(str(tmp_path / "cache")))
    cell = run_cell(scorer, plan, str(folder)).result
    assert isinstance(cell, CellResult)
    assert (cell.role, cell.clusters, cell.interval("chance_corrected")) == ("select", 2, None)
    write_leaderboard(str(folder), with_differences(str(folder), [cell]), [])

    line = ["his2lip", "models", "promote", "--best", str(folder), "--alias", "champion"]
    monkeypatch.setattr("sys.argv", line)
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert len(said.strip().splitlines()) == 1
    assert "no interval on toy (select): an interval needs 5 cases, and there are only 2" in said
