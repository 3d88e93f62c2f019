"""The configuration of a sweep: points, files, roles of splits, and identity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from training_data import write_small_shards

from his2lip.config import dump_yaml, load, set_values, validate
from his2lip.errors import ConfigError, DatasetError
from his2lip.training.config import TrainConfig
from his2lip.tuning.config import SweepConfig
from his2lip.tuning.objective import training_objective
from his2lip.tuning.space import corners, dotted_keys

TREE: dict[str, Any] = {
    "name": "s",
    "train": {"data": {"shards": "x"}},
    "space": {
        "loss.tau": {"kind": "log", "low": 0.1, "high": 10.0},
        "loss.weights.image_image": {"kind": "uniform", "low": 0.0, "high": 2.0},
    },
}


def sweep(**changes: Any) -> SweepConfig:
    return validate(SweepConfig, {**TREE, **changes})


def test_the_sweep_over_loss_weights_is_valid_and_starts_with_the_four_ablations(repo: Path) -> None:
    config = load(SweepConfig, repo / "tune" / "loss_weights.yaml")
    config.check_keys(dotted_keys(TrainConfig))
    weights = [(p["loss.weights.image_image"], p["loss.weights.text_text"]) for p in config.points]
    assert sorted(weights) == [(0.0, 0.0), (0.0, 0.5), (0.5, 0.0), (0.5, 0.5)]
    assert {p["loss.kappa"] for p in config.points} == {1.0}
    assert "loss.weights.image_text" not in config.space  # alpha is the unit
    assert config.split == "select"


@pytest.mark.parametrize("name", ["loss_and_optimizer", "backbones", "ablations"])
def test_the_other_sweeps_are_valid_and_their_points_are_training_runs(repo: Path, name: str) -> None:
    config = load(SweepConfig, repo / "tune" / f"{name}.yaml")
    config.check_keys(dotted_keys(TrainConfig))
    for params in (*config.all_points, *corners(config.dimensions)):
        validate(TrainConfig, set_values(config.train, params))


def test_the_ablations_are_those_of_the_paper_on_each_backbone_with_five_seeds(repo: Path) -> None:
    points = load(SweepConfig, repo / "tune" / "ablations.yaml").all_points
    assert len(points) == 11 * 3 * 5
    assert len({(p["model.backbone"], p["seed"]) for p in points}) == 15
    terms = {p.get("loss.terms", "full") for p in points}
    assert terms == {"full", "hard", "image_text", "image_only", "text_only"}
    released = {p.get("loss.terms") for p in points if p.get("loss.variant") == "released"}
    assert released == {"hard", "full"}
    assert any(p.get("loss.normalize") is False for p in points)
    of_s = {
        (p["loss.similarity.tissue"], p["loss.similarity.pair"])
        for p in points
        if "loss.similarity.pair" in p
    }
    assert of_s == {(1.0, 0.0), (0.0, 1.0)}
    assert any(p.get("loss.similarity.biomarker") for p in points)


def test_the_resolved_configuration_is_a_valid_configuration(tmp_path: Path) -> None:
    config = sweep(points=[{"loss.tau": 1.0}], gpus=0.5)
    file = tmp_path / "sweep.yaml"
    file.write_text(dump_yaml(config), encoding="utf-8")
    assert load(SweepConfig, file) == config


def test_the_training_configuration_may_be_a_file(tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text("data: {shards: y}\noptim: {epochs: 3}\n", encoding="utf-8")
    assert sweep(train=str(file)).train == {"data": {"shards": "y"}, "optim": {"epochs": 3}}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"points": [{"loss.tau": 0.0}]}, "points.loss.tau"),
        ({"points": [{"loss.kappa": 1.0}]}, "points.loss.kappa"),
        ({"points": [{"loss.tau": 1.0}, {"loss.tau": 1.0}]}, "points"),
        ({"points": [{"loss.tau": 1.0}, {"loss.tau": 2.0}], "trials": 1}, "trials"),
        ({"space": {}}, "space"),
        ({"space": {"loss.tau": {"kind": "lin"}}}, "space.loss.tau"),
        ({"trails": 3}, "trails"),
        ({"space": {"a": {"kind": "int", "low": 0, "high": 1, "when": {"b": 1}}}}, "a.when"),
        ({"points": [{"loss.tau": 1.0}], "cross": {"loss.tau": [1.0]}}, "cross"),
        ({"cross": {"seed": [0, 1]}}, "cross"),
        ({"points": [{"loss.tau": 1.0}], "cross": {"seed": [0, 1]}}, "trials"),
        ({"metric": ["a", "a"]}, "metric"),
        ({"trial_timeout": 0}, "trial_timeout"),
        ({"worst": float("nan")}, "worst"),
        ({"name": "../elsewhere"}, "name"),
    ],
)
def test_an_option_that_cannot_be_used_is_refused_by_its_key(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as refused:
        sweep(**changes)
    assert refused.value.key == key
    assert "\n" not in str(refused.value)


def test_a_training_file_that_does_not_exist_is_refused_by_its_path() -> None:
    with pytest.raises(ConfigError) as refused:
        sweep(train="no/such.yaml")
    assert refused.value.where == "no/such.yaml"


def test_a_sweep_only_validates_on_a_select_split(tmp_path: Path) -> None:
    shards = write_small_shards(tmp_path / "shards", train=16, select=16)
    for split in ("val", "select"):  # by its name, and by its role
        config = sweep(train={"data": {"shards": shards}}, split=split)
        assert training_objective(config).base.data.select == "val"
    for split in ("train", "vla"):
        with pytest.raises(DatasetError) as refused:
            training_objective(sweep(train={"data": {"shards": shards}}, split=split))
        assert (refused.value.key, refused.value.where) == ("split", shards)


def test_more_trials_or_points_keep_the_identity_of_a_sweep_and_another_space_changes_it() -> None:
    known = sweep().identity()
    assert sweep(trials=99, points=[{"loss.tau": 1.0}], max_concurrent=7, storage="x").identity() == known
    assert sweep(seed=1).identity() != known
    assert sweep(metric="select/loss", mode="min").identity() != known


def test_the_worst_value_is_finite_and_the_stated_one() -> None:
    assert sweep(worst=0.0).worst_value == 0.0
    assert sweep().worst_value < -1e5
    assert sweep(mode="min").worst_value > 1e5
