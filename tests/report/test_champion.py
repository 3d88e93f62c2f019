"""The champion of a board: by its mean or a column, on `select` splits, and the model that the row loads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cell_results import cell_result
from scipy.special import stdtrit

from his2lip.errors import ConfigError
from his2lip.evaluation.metrics import METRICS, Predictions
from his2lip.evaluation.results import read_results, to_csv
from his2lip.evaluation.statistics import interval
from his2lip.report.board import Board
from his2lip.report.champion import choose_champion

FIGURES = {"first": (0.5, 0.4), "second": (0.3, 0.9), "baseline:chance": (1.0, 1.0)}


def board(folder: Path, **changes: Any) -> Path:
    """The files of a benchmark of two models and a baseline on the select splits of two datasets."""
    cells = [
        cell_result(
            model=model, dataset=dataset, chance_corrected=value, weights_sha256=f"of {model}",
            **({"split": "val", "role": "select"} | changes),
        )
        for model, values in FIGURES.items()
        for dataset, value in zip(("hnscc", "mist"), values, strict=True)
    ]  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "leaderboard.csv").write_text(to_csv(cells), encoding="utf-8")
    models = [{"name": name, "path": f"runs/{name}", "blend": None} for name in ("first", "second")]
    (folder / "board.json").write_text(json.dumps({"rows": [], "failed": [], "config": {"models": models}}))
    return folder


def test_the_champion_has_the_highest_mean_of_the_models_and_is_loaded_from_its_row(tmp_path: Path) -> None:
    found = choose_champion(board(tmp_path))
    assert (found.model, found.path, found.weights) == ("second", "runs/second", "of second")
    assert found.value == pytest.approx(0.6)
    assert found.next is not None
    assert found.next[0] == "first"
    assert found.next[1] == pytest.approx(0.45)
    assert len(found.columns) == 2
    assert list(found.borda) == [], "each is better on one dataset"


def test_a_column_chooses_too_and_in_domain_datasets_are_in_no_mean(tmp_path: Path) -> None:
    found = choose_champion(board(tmp_path), by="hnscc (select)")
    assert (found.model, found.value) == ("first", 0.5)
    seen = board(tmp_path, in_domain=True)
    with pytest.raises(ConfigError) as refused:
        choose_champion(seen)
    assert (refused.value.key, refused.value.where) == ("--by", seen)
    assert choose_champion(seen, by="mist (select)").model == "second"


@pytest.mark.parametrize(
    ("value", "limits", "refused"),
    [
        (0.3, (0.1, 0.5), False),
        (0.3, (-0.1, 0.7), True),
        (0.3, (0.0, 0.6), True),
        (-0.3, (-0.5, -0.1), True),
        (0.9, None, True),  # nothing says how far it is from chance
    ],
)
def test_a_champion_that_may_be_as_good_as_chance_is_refused(
    tmp_path: Path, value: float, limits: tuple[float, float] | None, refused: bool
) -> None:
    least = None if limits is None else limits[0]
    found = replace(choose_champion(board(tmp_path)), value=value, limits=limits, least=least)
    if not refused:
        found.check_above_chance(tmp_path)
        return
    with pytest.raises(ConfigError) as error:
        found.check_above_chance(tmp_path)
    assert (error.value.key, error.value.where) == ("--best", tmp_path)


def test_one_dataset_without_an_interval_leaves_the_champion_unproven(tmp_path: Path) -> None:
    folder = board(tmp_path, chance_corrected_lo=0.2, chance_corrected_hi=0.95)
    rows = read_results(folder / "leaderboard.csv")
    none = {"chance_corrected_lo": None, "chance_corrected_hi": None, "no_interval": "the slides are unknown"}
    for name, by, refused in (("hnscc", "mean", True), ("hnscc", "mist (select)", False)):
        changed = [row.model_copy(update=none) if row.dataset == name else row for row in rows]
        (folder / "leaderboard.csv").write_text(to_csv(changed), encoding="utf-8")
        found = choose_champion(folder, by=by)
        assert found.model == "second"
        assert (found.limits is None) == refused
        if not refused:
            found.check_above_chance(folder)
            continue
        with pytest.raises(ConfigError) as error:
            found.check_above_chance(folder)
        assert error.value.key == "--best"
        assert "no interval on hnscc (select): the slides are unknown" in error.value.what


def test_a_refusal_names_another_model_that_is_above_chance(tmp_path: Path) -> None:
    folder = board(tmp_path)
    rows = read_results(folder / "leaderboard.csv")
    reach = {"first": 0.1, "second": 1.2, "baseline:chance": 0.01}
    changed = [
        row.model_copy(
            update={
                "chance_corrected_lo": max(row.chance_corrected - reach[row.model], -1.0),
                "chance_corrected_hi": min(row.chance_corrected + reach[row.model], 1.0),
                "chance_corrected_df": 4.0,
                "chance_corrected_se": reach[row.model] / float(stdtrit(4, 0.975)),
            }
        )
        for row in rows
    ]
    (folder / "leaderboard.csv").write_text(to_csv(changed), encoding="utf-8")
    found = choose_champion(folder)
    assert (found.model, found.above, found.unknown) == ("second", "first", None)
    with pytest.raises(ConfigError) as error:
        found.check_above_chance(folder)
    assert "first is above chance" in error.value.what
    assert choose_champion(folder, by="hnscc (select)").above is None


def test_the_best_of_many_models_at_chance_is_rarely_held_to_be_above_it() -> None:
    """250 benchmarks of 20 models that guess, on 15 cases of 20 units of two classes."""
    rng, names = np.random.default_rng(0), [f"m{i}" for i in range(20)]
    labels, clusters = np.tile([0, 1], 150), np.repeat(np.arange(15), 20)
    metric, alone, together = METRICS["chance_corrected"], 0, 0
    for _ in range(250):
        cells = []
        for name in names:
            found = Predictions(labels, rng.integers(2, size=300), ["a", "b"])
            value = metric.compute(found)
            assert value is not None
            low, high = interval(value, metric.replicates(found, clusters), bounds=metric.bounds) or (0, 0)
            figures = {"chance_corrected": value, "chance_corrected_lo": low, "chance_corrected_hi": high}
            cells.append(cell_result(model=name, clusters=15, **figures))
        scored = Board(cells)
        best = max(names, key=lambda name: scored.mean(name) or 0.0)
        own, of_all = scored.mean_interval(best), scored.mean_interval(best, models=len(names))
        assert own is not None
        assert of_all is not None
        alone += own[0] > 0
        together += of_all[0] > 0
    assert alone / 250 > 0.25, "its own interval is above chance far too often"
    assert together / 250 <= 0.05


def test_chance_has_a_mean_with_limits_where_all_units_are_of_one_slide() -> None:
    """Its limits are those of draws, and not of clusters."""
    limits = {"chance_corrected_lo": -0.2, "chance_corrected_hi": 0.2, "clusters": 1}
    chance = [cell_result(model="baseline:chance", dataset=d, **limits) for d in ("hnscc", "mist")]
    low, high = Board(chance).mean_interval("baseline:chance") or (0.0, 0.0)
    assert (low, high) == (pytest.approx(-0.2 / 2**0.5, abs=1e-4), pytest.approx(0.2 / 2**0.5, abs=1e-4))


@pytest.mark.parametrize(("units", "said"), [(0, "is in-domain"), (4, "is not zero-shot: 4 of 10 units")])
def test_a_champion_by_a_column_that_it_was_trained_on_says_so(tmp_path: Path, units: int, said: str) -> None:
    changes = {"in_domain": True, "overlap_units": units, "overlap_images": units, "overlap_cases": 0}
    assert f"hnscc (select) {said}" in str(choose_champion(board(tmp_path, **changes), by="hnscc (select)"))
    assert "in-domain" not in str(choose_champion(board(tmp_path / "other")))


@pytest.mark.parametrize("role", ["report", "train"])
def test_rows_of_other_splits_choose_no_model(role: str, tmp_path: Path) -> None:
    peeked = board(tmp_path, split="test", role=role)
    for by in ("mean", "hnscc"):
        with pytest.raises(ConfigError) as refused:
            choose_champion(peeked, by=by)
        assert (refused.value.key, refused.value.where) == ("--best", peeked)


def test_a_folder_without_a_benchmark_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        choose_champion(tmp_path)
    assert (refused.value.key, refused.value.where) == ("--best", tmp_path)


def test_an_unknown_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        choose_champion(board(tmp_path), by="hnscc")
    assert refused.value.key == "--by"
