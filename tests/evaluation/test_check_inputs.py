"""What a benchmark refuses before it starts Ray, MLflow or any other work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
from typer.testing import CliRunner

from his2lip.cli.app import app
from his2lip.cli.benchmark import run_benchmark
from his2lip.config import unsealed, validate
from his2lip.data.shards.reader import ShardSet
from his2lip.errors import CheckpointError, ConfigError, DatasetError, ModelError, RunError
from his2lip.evaluation.config import BenchmarkConfig
from his2lip.evaluation.grid_plans import check_inputs, plan_cells
from his2lip.files import locked
from his2lip.models.load import check_model_name

Write = Callable[..., ShardSet]


def config_of(folder: Path, **changes: object) -> BenchmarkConfig:
    tree = {"models": [], "datasets": ["mist", "bci"], "shards": str(folder), "storage": str(folder / "runs")}
    return validate(BenchmarkConfig, tree | changes)


def test_a_benchmark_without_any_prepared_dataset_ends_before_any_work(tmp_path: Path) -> None:
    config = tmp_path / "benchmark.yaml"
    config.write_text(
        f"models: [tiny]\ndatasets: [mist, bci]\nshards: {tmp_path}\nstorage: {tmp_path}/runs\n"
    )
    was_started = ray.is_initialized()  # by another test of this process
    error = CliRunner().invoke(app, ["benchmark", str(config)]).exception
    assert isinstance(error, DatasetError)
    assert (error.where, error.key) == (f"{tmp_path}/mist", "datasets")
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert ray.is_initialized() == was_started


def test_a_second_benchmark_of_the_same_folder_is_refused_while_the_first_one_runs(
    write_shards: Write, tmp_path: Path
) -> None:
    config = config_of(tmp_path, models=["tiny"], datasets={"toy": write_shards().uri})
    with locked(Path(config.folder, ".lock")), pytest.raises(RunError) as refused:
        run_benchmark(config)
    assert (refused.value.where, refused.value.key) == (config.folder, "name")


def test_a_part_of_the_datasets_is_enough(write_shards: Write, tmp_path: Path) -> None:
    prepared, gone = write_shards().uri, str(tmp_path / "gone")
    check_inputs(config_of(tmp_path, datasets={"gone": gone, "toy": prepared}))
    with pytest.raises(DatasetError) as refused:
        check_inputs(config_of(tmp_path, datasets={"gone": gone, "toy": prepared}), datasets=["gone"])
    assert (refused.value.where, refused.value.key) == (gone, "datasets")


def test_a_model_whose_folder_does_not_exist_is_named_with_the_nearest_one(
    write_shards: Write, tmp_path: Path
) -> None:
    datasets = {"toy": write_shards().uri}
    (tmp_path / "train/first/best").mkdir(parents=True)
    for name in ("train/frist/best", "train/first/bset"):
        missing = str(tmp_path / name)
        blend = {"blend": ["tiny", missing], "alphas": [0, 1], "name": "b"}
        for models in ([missing], [f"local-dir:{missing}"], [blend]):
            with pytest.raises(CheckpointError) as refused:
                check_inputs(config_of(tmp_path, datasets=datasets, models=models))
            assert refused.value.where == Path(missing)
            assert name.split("/")[1 if "frist" in name else 2] in str(refused.value.fix)
            assert ("'first'" if "frist" in name else "'best'") in str(refused.value.fix)


def test_a_folder_without_a_model_is_refused_and_that_of_a_run_names_its_checkpoint(
    write_shards: Write, tmp_path: Path
) -> None:
    datasets, best = {"toy": write_shards().uri}, tmp_path / "first/best"
    contents = {
        "empty": {},
        "ours": {"his2lip.json": "{}", "open_clip_config.json": "{}"},
        "open_clip": {"open_clip_config.json": "{}"},
        "transformers": {"config.json": "{}", "open_clip_model.safetensors": ""},
        "first/best": {"his2lip.json": "{}", "open_clip_config.json": "{}", "model.safetensors": ""},
    }
    for name, files in contents.items():
        (tmp_path / name).mkdir(parents=True)
        for file, text in files.items():
            (tmp_path / name / file).write_text(text)
    for name in ("empty", "ours", "open_clip", "transformers", "first"):
        for model in (str(tmp_path / name), f"local-dir:{tmp_path / name}"):
            with pytest.raises(CheckpointError) as refused:
                check_inputs(config_of(tmp_path, datasets=datasets, models=[model]))
            assert refused.value.where == tmp_path / name
            assert (str(best) in str(refused.value.fix)) == (name == "first")
    check_inputs(config_of(tmp_path, datasets=datasets, models=[str(best)]))


def test_a_name_of_the_hub_without_its_prefix_is_told_from_a_folder() -> None:
    with pytest.raises(CheckpointError) as refused:
        check_model_name("vinid/plip")
    assert refused.value.where == Path("vinid/plip")
    assert "hf-hub:vinid/plip" in str(refused.value.fix)


def test_a_misspelt_backbone_is_refused_and_names_of_models_pass(write_shards: Write, tmp_path: Path) -> None:
    datasets = {"toy": write_shards().uri}
    names = ["tiny", "clip", "ViT-B-16:laion2b_s34b_b88k", "hf-hub:org/name", "models:/lung@champion"]
    check_inputs(config_of(tmp_path, datasets=datasets, models=names))
    with pytest.raises(ModelError) as refused:
        check_inputs(config_of(tmp_path, datasets=datasets, models=["clipp"]))
    assert refused.value.key == "clipp"


@pytest.mark.parametrize("name", ["her2_ihc_40x", "her2_ihc_40x/default"])
@pytest.mark.parametrize("pool", [None, "released"])
def test_prompts_of_a_dataset_that_the_benchmark_does_not_have_are_refused_with_the_nearest_name(
    tmp_path: Path, name: str, pool: str | None
) -> None:
    prompts = {name: "mine.yaml"}
    given = {"prompts": prompts} if pool is None else {"pools": {pool: prompts}}
    with pytest.raises(ConfigError) as refused:
        config_of(tmp_path, datasets=["her2-ihc-40x", "bcdata"], **given)
    assert refused.value.key == (f"prompts.{name}" if pool is None else f"pools.{pool}.{name}")
    assert "'her2-ihc-40x'" in str(refused.value)


@pytest.mark.parametrize("pool", [None, "released"])
def test_prompts_of_a_protocol_that_the_dataset_does_not_have_are_refused_with_the_nearest_name(
    write_shards: Write, tmp_path: Path, pool: str | None
) -> None:
    datasets = {"toy": _with_protocols(write_shards(), ["default", "paper"])}
    (tmp_path / "mine.yaml").write_text("classes: {Stroma: [fibrous tissue], Tumor: [malignant glands]}")

    def config(name: str) -> BenchmarkConfig:
        prompts = {name: str(tmp_path / "mine.yaml")}
        given = {"prompts": prompts} if pool is None else {"pools": {pool: prompts}}
        return config_of(tmp_path, datasets=datasets, models=["tiny"], **given)

    with pytest.raises(ConfigError) as refused:
        plan_cells(config("toy/defualt"))
    assert refused.value.key == ("prompts.toy/defualt" if pool is None else "pools.released.toy/defualt")
    assert "'default'" in str(refused.value.fix)
    for name, applies in (("toy/default", True), ("toy", True), ("toy/paper", False)):
        (plan,), failed = plan_cells(config(name))
        assert not failed
        own = plan.prompts if pool is None else plan.pools.get(pool)
        assert (own is not None and own.of("Stroma") == ("fibrous tissue",)) == applies


def _with_protocols(shards: ShardSet, names: list[str]) -> str:
    """The URI of the shards, whose card has a protocol of tissue types by each of the names."""
    path = Path(shards.uri) / "dataset.json"
    tree = unsealed(json.loads(path.read_text()))
    classes = {"Stroma": ["Stroma"], "Tumor": ["Tumor"]}
    protocol = {"split": "test", "label": "tissue", "classes": classes, "prompts": "tissue", "basis": "ours"}
    tree["card"]["protocols"] = dict.fromkeys(names, protocol)
    path.write_text(json.dumps(tree))
    return shards.uri
