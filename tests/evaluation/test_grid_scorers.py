"""What scores the rows of a grid: each model is loaded once, and tried once where it cannot be loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cell_results import plan_of

import his2lip.models
from his2lip.config import validate
from his2lip.data.shards.reader import ShardSet, open_shards
from his2lip.evaluation.config import BenchmarkConfig
from his2lip.evaluation.embeddings import EmbeddingCache
from his2lip.evaluation.grid_cell import Plan
from his2lip.evaluation.grid_scorers import identities, scorers
from his2lip.evaluation.grid_task import Work, score_models
from his2lip.evaluation.once import Once
from his2lip.evaluation.probes import labelled
from his2lip.evaluation.results import CellFailure
from his2lip.models.checkpoint import save_checkpoint
from his2lip.models.load import load_model


@pytest.fixture
def plans(write_shards: Callable[..., ShardSet]) -> list[Plan]:
    """Five, on which probes can be fitted."""
    plan = plan_of(write_shards())
    found = labelled(open_shards(plan.uri), plan.protocol, plan.selection, "train")
    assert found.refusal is None
    return [replace(plan, protocol_name=f"p{i}", labelled=found) for i in range(5)]


@pytest.fixture
def config(tmp_path: Path) -> BenchmarkConfig:
    """Two checkpoints with two controls and two probes each."""
    for seed in (1, 2):
        save_checkpoint(tmp_path / f"m{seed}", load_model("tiny", seed=seed), meta={})
    tree = {
        "name": "t",
        "models": [{"name": f"m{seed}", "path": str(tmp_path / f"m{seed}")} for seed in (1, 2)],
        "datasets": {"toy": str(tmp_path / "toy")},
        "controls": ["shuffled-labels", "empty-prompts"],
        "probes": {"kinds": ["knn"], "shots": [1], "draws": 2},
        "cache": str(tmp_path / "cache"),
        "storage": str(tmp_path / "runs"),
    }
    return validate(BenchmarkConfig, tree)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the folders that are loaded from here on, by the real loader."""
    names: list[str] = []

    def load(path: str, **options: Any) -> object:
        names.append(Path(path).name)
        return load_model(path, **options)

    monkeypatch.setattr(his2lip.models, "load_model", load)
    return names


def test_each_model_is_loaded_once_for_all_its_rows_and_plans(
    config: BenchmarkConfig, plans: list[Plan], loads: list[str]
) -> None:
    found = list(scorers(config, plans, EmbeddingCache(config.cache)))
    of_models = [(entry.name, scorer) for entry, _, scorer in found if "m" in entry.name.split()[-1]]
    assert not any(isinstance(scorer, Exception) for _, scorer in of_models)
    assert loads == ["m1", "m2"]


def break_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not weights")


def test_a_model_that_cannot_be_loaded_is_tried_once(
    config: BenchmarkConfig, plans: list[Plan], loads: list[str], tmp_path: Path
) -> None:
    break_weights(tmp_path / "m1")
    found = list(scorers(config, plans, EmbeddingCache(config.cache)))
    rows = config.rows_of(config.models[0])
    refused = [scorer for entry, _, scorer in found if entry in rows]
    assert len(refused) == 5 * len(rows) == 25
    assert len(set(map(str, refused))) == 1, "each has the reason"
    assert loads == ["m1", "m2"]
    loads.clear()
    outcomes = list(score_models(rows, Work(plans, config)))
    assert [type(outcome.cell) for outcome in outcomes] == [CellFailure] * 25
    assert loads == ["m1"]


def test_a_known_model_that_cannot_be_loaded_any_more_is_tried_once(
    config: BenchmarkConfig, plans: list[Plan], loads: list[str], tmp_path: Path
) -> None:
    """The cache has facts of it, so that it is loaded where something is to be encoded."""
    rows = config.rows_of(config.models[0])
    weights = identities([config.models[0].path])
    assert len(list(score_models(rows[:1], Work([], config, weights)))) == 0
    assert loads == ["m1"]
    break_weights(tmp_path / "m1")
    loads.clear()
    work = Work(plans, config, weights)
    with pytest.MonkeyPatch.context() as patch:  # the weights are damaged after they are compared
        patch.setattr(his2lip.models, "weights_identity", weights.__getitem__)
        outcomes = list(score_models(rows, work))
    assert [type(outcome.cell) for outcome in outcomes] == [CellFailure] * 25
    assert loads == ["m1"]


def test_what_is_raised_again_has_the_frames_of_the_first_call_only() -> None:
    def fails() -> None:
        raise ZeroDivisionError

    once, depths = Once(fails), []
    for _ in range(3):
        with pytest.raises(ZeroDivisionError) as caught:
            once()
        depths.append(len(caught.traceback))
    assert len(set(depths)) == 1
