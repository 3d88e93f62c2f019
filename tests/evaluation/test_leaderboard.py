"""The files of a finished grid: published figures, failures and predictions."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from cell_results import cell_result

from his2lip import resources
from his2lip.config import load, validate
from his2lip.errors import ConfigError
from his2lip.evaluation.config import BenchmarkConfig
from his2lip.evaluation.leaderboard import with_published, write_leaderboard
from his2lip.evaluation.results import CellFailure, fields


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A published table of two rows, in the format of the project's table."""
    folder = tmp_path / "benchmarks/published"
    folder.mkdir(parents=True)
    rows = "CLIP,frozen,HNSCC-mIF-mIHC,26.42,21.19\nCLIP,frozen,MIST,24.52,11.85\n"
    table = f"model,trained,dataset,accuracy,f1\n{rows}"
    (folder / "table2_zero_shot.csv").write_text(table, encoding="utf-8")
    monkeypatch.setattr(resources, "root", lambda: tmp_path)


def test_published_numbers_are_added_to_the_paper_protocol_on_real_data_only(published: None) -> None:
    cells = [
        cell_result(protocol="paper"),
        cell_result(protocol="paper", dataset="mist"),
        cell_result(protocol="default"),
        cell_result(protocol="paper", generated=True),
        cell_result(protocol="paper", model="another"),
        cell_result(protocol="paper", dataset="bci"),
    ]
    cards = {name: name for name in ("hnscc", "mist", "bci")}
    found = [(c.published_accuracy, c.published_f1) for c in with_published(cells, cards)]
    assert found[0] == pytest.approx((0.2642, 0.2119))
    assert found[1] == pytest.approx((0.2452, 0.1185))
    assert found[2:] == [(None, None)] * 4


def test_published_numbers_follow_the_card_and_not_the_name_in_the_benchmark(published: None) -> None:
    own = cell_result(protocol="paper", dataset="mist")
    renamed = cell_result(protocol="paper", dataset="mist, second copy")
    found = with_published([own, renamed], {"mist, second copy": "mist"})
    assert [c.published_accuracy for c in found] == [None, pytest.approx(0.2452)]


def test_a_grid_without_any_finished_grid_cell_still_writes_its_files(tmp_path: Path) -> None:
    failure = CellFailure(model="m", dataset="d", protocol="default", reason="no shards", trace="…")
    path = write_leaderboard(str(tmp_path / "out"), [], [failure])
    with open(path, encoding="utf-8", newline="") as source:
        assert next(csv.reader(source)) == list(fields())
    assert json.loads((tmp_path / "out/failures.json").read_text())[0]["reason"] == "no shards"
    assert len(pq.read_table(tmp_path / "out/predictions.parquet")) == 0


def test_the_benchmark_of_the_project_has_all_ten_datasets() -> None:
    config = load(BenchmarkConfig, resources.find("benchmarks/zero_shot.yaml"))
    assert len(config.uris()) == 10
    assert config.folder == "runs/benchmark/zero-shot"


@pytest.mark.parametrize(
    ("change", "key", "named"),
    [
        ({"models": ["tiny", "tiny"]}, "models", "'tiny'"),
        ({"models": [{"name": "baseline:chance", "path": "tiny"}]}, "models", "'baseline:chance'"),
        ({"datasets": []}, "datasets", ""),
        ({"protocol": ["paper"]}, "protocol", "'protocols'"),
        ({"baselines": ["mean_colour"]}, "baselines.0", "'mean-colour'"),
    ],
    ids=["two models", "model and baseline", "no dataset", "unknown key", "unknown baseline"],
)
def test_a_mistake_in_a_configuration_is_refused_by_its_key(change: dict, key: str, named: str) -> None:
    with pytest.raises(ConfigError) as refused:
        validate(BenchmarkConfig, {"models": ["tiny"], "datasets": ["mihic"]} | change)
    assert refused.value.key == key
    assert named in str(refused.value), "the name that is in use twice, or the known names"


@pytest.mark.parametrize(
    ("models", "names"),
    [
        (["runs/train/mine/best", "tiny"], ["mine", "tiny"]),
        (["runs/demo/tune/demo-sweep/trials/7/best"], ["demo-sweep"]),
        (["runs/train/mine/7"], ["mine"]),
        (["runs/train/mine/7", "runs/train/mine/best", "other/best"], ["mine@7", "mine@best", "other"]),
        (["tune/s/trials/7/best", "tune/s/trials/12/best"], ["s@7", "s@12"]),
        (
            ["models:/lung/3", "hf-hub:a/b", "ViT-B-16:best"],
            ["models:/lung/3", "hf-hub:a/b", "ViT-B-16:best"],
        ),
        (["models/plip", "local-dir:runs/train/mine/last"], ["models/plip", "mine"]),
    ],
)
def test_a_checkpoint_without_a_name_has_that_of_its_run_and_never_a_number(
    models: list[str], names: list[str]
) -> None:
    config = validate(BenchmarkConfig, {"models": models, "datasets": {"a": "x"}})
    assert [m.name for m in config.models] == names
    assert [m.path for m in config.models] == models


def test_a_number_in_the_folder_of_the_run_is_named_by_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sweep").mkdir()
    monkeypatch.chdir(tmp_path / "sweep")
    assert validate(BenchmarkConfig, {"models": ["7"], "datasets": {"a": "x"}}).models[0].name == "sweep"


def test_checkpoints_whose_names_cannot_be_told_apart_are_refused() -> None:
    models = ["a/train/mine/best", "b/train/mine/best"]
    with pytest.raises(ConfigError) as refused:
        validate(BenchmarkConfig, {"models": models, "datasets": {"a": "x"}})
    assert refused.value.key == "models"
    assert "'mine@best'" in str(refused.value)
