"""What `models promote --best` rests on where no case changes a figure, and where there are too few cases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cell_results import plan_of
from real_tiles import tiles

from his2lip.cli.app import main
from his2lip.data.cards.card import Card
from his2lip.data.images.codec import encode_png
from his2lip.data.shards.reader import ShardSet, open_shards
from his2lip.data.shards.schema import Patch
from his2lip.data.shards.writer import ShardWriter
from his2lip.errors import ConfigError
from his2lip.evaluation.embeddings import EmbeddingCache
from his2lip.evaluation.grid_cell import run_cell
from his2lip.evaluation.leaderboard import with_differences, write_leaderboard
from his2lip.evaluation.results import CellResult
from his2lip.evaluation.scorers import ModelScorer
from his2lip.evaluation.stored_cell import read_predictions
from his2lip.models.load import load_model
from his2lip.report.champion import choose_champion


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


@pytest.mark.parametrize("patients", [24, 6])
def test_a_model_that_is_right_on_every_case_is_promoted_where_there_are_enough_cases(
    patients: int,
    real_ihc: np.ndarray,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    mlflow_store: str,
) -> None:
    """The labels are the model's own answers: real pixels, and a figure that no case changes."""
    folder, model = tmp_path / "runs/benchmark/choose", load_model("tiny", seed=3)
    scorer = ModelScorer("tiny", model, EmbeddingCache(str(tmp_path / "cache")))
    images = tiles(real_ihc)[:64]
    first = plan_of(_shards(tmp_path / "first", images, ["Stroma", "Tumor"] * 32), split="select")
    answers = run_cell(scorer, first, str(tmp_path / "first-board")).result
    assert isinstance(answers, CellResult)
    said = read_predictions(str(tmp_path / "first-board"), answers)["predicted"].to_pylist()
    kept = sorted(range(64), key=lambda i: said[:i].count(said[i]))[:patients]  # as many of each class
    tissue = {"negative": "Stroma", "positive": "Tumor"}
    shards = _shards(tmp_path / "own", [images[i] for i in kept], [tissue[said[i]] for i in kept])
    cell = run_cell(scorer, plan_of(shards, split="select"), str(folder)).result
    assert isinstance(cell, CellResult)
    assert (cell.accuracy, cell.clusters, cell.interval("chance_corrected")) == (1.0, patients, None)
    write_leaderboard(str(folder), with_differences(str(folder), [cell]), [])

    found = choose_champion(folder)
    counts = [int(f.support) for f in cell.per_class.values()]
    assert min(counts) >= 2
    limit = sum(0.025 ** (1 / n) for n in counts) / 2  # each case has one unit
    assert found.limits == (pytest.approx(2 * limit - 1), 1.0)
    assert found.least == found.limits[0], "one model"
    assert found.is_above_chance == (patients == 24)
    if patients == 24:
        found.check_above_chance(folder)
        assert "24 cases" in str(found)
        return
    with pytest.raises(ConfigError) as refused:
        found.check_above_chance(folder)
    assert refused.value.key == "--best"
    assert "no case changes" not in str(refused.value)


def _shards(place: Path, images: list[np.ndarray], tissues: list[str]) -> ShardSet:
    """Shards of a `select` split, one case for each image."""
    card = Card.model_validate({"name": "toy", "reader": "none", "splits": {"select": {"role": "select"}}})
    with ShardWriter(place, card=card) as writer:
        for number, (image, tissue) in enumerate(zip(images, tissues, strict=True)):
            height, width = image.shape[:2]
            writer.add(
                Patch(
                    patch_id=f"toy/{number}.png", image=encode_png(image), dataset="toy", split="select",
                    tissue=tissue, case_id=f"case-{number}", width=width, height=height,
                )
            )  # fmt: skip
    return open_shards(place)
