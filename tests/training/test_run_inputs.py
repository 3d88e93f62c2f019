"""The inputs of a run: named for processes in other folders, compared there, and identified by content."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from model_factory import hf_cache, native_config, published_open_clip
from training_data import write_small_shards

from his2lip.config import validate
from his2lip.data.captions import CaptionBank
from his2lip.errors import ConfigError, RunError
from his2lip.models.checkpoint import save_checkpoint
from his2lip.models.load import load_model
from his2lip.training.config import TrainConfig
from his2lip.training.local import run_in_process
from his2lip.training.run_inputs import (
    contents,
    drawn_captions,
    identity,
    open_data,
    select_captions,
    with_absolute_paths,
)
from his2lip.tuning.config import SweepConfig
from his2lip.tuning.objective import training_objective


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with shards, a caption bank and a checkpoint."""
    monkeypatch.chdir(tmp_path)
    write_small_shards(tmp_path / "shards", train=8, select=8)
    CaptionBank.templates().save("bank.json")
    save_checkpoint("best", load_model("tiny", seed=1), meta={})
    return tmp_path


def config(**changes: Any) -> TrainConfig:
    tree = {
        "data": {"shards": "shards", "captions": "bank.json", "batch_size": 4, "lanes": 2, "select": None},
        "model": {"backbone": "local-dir:best"},
        "optim": {"epochs": 1},
    }
    return validate(TrainConfig, tree | changes)


def test_relative_names_become_absolute_and_names_of_models_stay(here: Path) -> None:
    found = with_absolute_paths(config())
    assert found.data.shards == str(here / "shards")
    assert found.data.captions == str(here / "bank.json")
    assert found.model.backbone == f"local-dir:{here}/best"
    assert found.storage == str(here / "runs")
    (here / "tiny").mkdir()  # the backbone of this name is meant
    named = with_absolute_paths(config(data={"shards": "s3://b/x"}, model={"backbone": "tiny"}))
    assert (named.data.shards, named.data.captions) == ("s3://b/x", "templates")
    assert named.model.backbone == "tiny"


def test_captions_of_which_none_can_be_left_out_are_refused(here: Path) -> None:
    def left_out(*lines: str, share: float = 0.2) -> list[tuple[str, str, str]]:
        CaptionBank({("Tumor", "CD3"): lines}).save("bank.json")
        data = config().data.model_dump() | {"select": "select", "select_captions": share}
        return select_captions(config(data=data))

    two = ("Brown T cells.", "No lymphocyte is stained here.")
    (only,) = left_out(*two)
    assert only[0] in two
    assert only[1:] == ("Tumor", "CD3")
    assert left_out(two[0], share=0.0) == []
    with pytest.raises(ConfigError) as refused:
        left_out(two[0])
    assert (refused.value.where, refused.value.key) == ("bank.json", "data.select_captions")


@pytest.mark.usefixtures("here")
def test_the_captions_that_a_run_can_draw_are_those_of_its_pairs() -> None:
    """The note on captions that are cut counted the whole bank, and no template of a missing pair."""
    _, shards, _ = open_data(config())
    pairs = {("Tumor", "Ki67"): ("of a pair without patches",)}
    rows = shards.table("train", ["tissue", "biomarker"]).to_pylist()
    own = (rows[0]["tissue"], rows[0]["biomarker"])
    assert own not in pairs
    bank = CaptionBank(pairs | {own: ("plain",)}, stained={(*own, "strong"): ("strong",)})
    assert drawn_captions(config(), shards, bank) == ["plain", "strong"]
    templates = CaptionBank(pairs | {own: ("plain",)}, "template")
    drawn = drawn_captions(config(), shards, templates)
    other = next(
        (row["tissue"], row["biomarker"]) for row in rows if (row["tissue"], row["biomarker"]) != own
    )
    assert {"plain", *templates.lines(*other, "weak")} <= set(drawn)
    assert not set(drawn) & set(pairs["Tumor", "Ki67"])


@pytest.mark.parametrize("key", ["data.shards", "data.captions", "model.backbone"])
def test_a_worker_that_finds_other_content_than_the_driver_is_refused_by_its_key(
    here: Path, key: str
) -> None:
    made = with_absolute_paths(config())
    expected = contents(*open_data(made))
    run_in_process(made, report=lambda metrics: None, contents=expected)
    if key == "data.shards":
        shutil.rmtree("shards")
        write_small_shards(here / "shards", train=12, select=8)
    elif key == "data.captions":
        CaptionBank({("Tumor", "CD3"): ("Brown T cells.",)}).save("bank.json")
    else:
        save_checkpoint("best", load_model("tiny", seed=2), meta={})
    with pytest.raises(RunError) as refused:
        run_in_process(made, report=lambda metrics: None, contents=expected)
    assert refused.value.key == key
    assert str(here) in str(refused.value.where)


def test_a_run_is_identified_by_the_captions_of_a_bank_and_not_by_its_place(here: Path) -> None:
    def run_id(bank: str) -> str:
        return str(identity(*open_data(config(data=config().data.model_dump() | {"captions": bank})))["id"])

    before = run_id("bank.json")
    (here / "other").mkdir()
    shutil.copy("bank.json", "other/bank.json")
    assert run_id("other/bank.json") == before
    CaptionBank({("Tumor", "CD3"): ("Brown T cells.",)}, "template").save("bank.json")
    assert run_id("bank.json") != before


def test_a_sweep_over_folders_trains_from_those_of_the_driver_and_is_identified_by_their_content(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def objective() -> Any:
        train = {"data": {"shards": "shards", "batch_size": 4, "lanes": 2}}
        tree = {
            "name": "folders",
            "train": train,
            "space": {"model.backbone": {"kind": "choice", "values": ["best", "tiny"]}},
            "split": "val",
        }
        return training_objective(validate(SweepConfig, tree))

    first = objective()
    again = objective()
    assert again.inputs == first.inputs
    save_checkpoint("best", load_model("tiny", seed=2), meta={})
    assert objective().inputs != first.inputs
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")  # as a worker's process
    assert first.config({"model.backbone": "best"}).model.backbone == str(here / "best")
    assert first.config({"model.backbone": "tiny"}).model.backbone == "tiny"
    assert first.contents["model.backbone", str(here / "best")]
    assert str(here / "best") in first.places


def test_a_model_replaced_in_the_hub_s_cache_is_noticed_by_runs_sweeps_and_workers(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(seed: int) -> None:
        files = published_open_clip(here / "hub", native_config(), seed=seed)
        hf_cache(here / "cache", "org/small", files, monkeypatch, commit=str(seed) * 40)

    def sweep_inputs() -> Any:
        train = {"data": {"shards": "shards"}, "model": {"backbone": name}}
        tree = {"name": "s", "train": train, "space": {"seed": {"kind": "choice", "values": [1, 2]}}}
        return training_objective(validate(SweepConfig, tree | {"split": "val"})).inputs

    name = "hf-hub:org/small"
    made = with_absolute_paths(config(model={"backbone": name}))
    download(1)
    run, sweep, found = identity(*open_data(made))["id"], sweep_inputs(), contents(*open_data(made))
    download(1)
    assert identity(*open_data(made))["id"] == run
    assert sweep_inputs() == sweep
    run_in_process(made, report=lambda metrics: None, contents=found)
    download(2)
    assert identity(*open_data(made))["id"] != run
    assert sweep_inputs() != sweep
    with pytest.raises(RunError) as refused:
        run_in_process(made, report=lambda metrics: None, contents=found)
    assert (refused.value.key, refused.value.where) == ("model.backbone", name)
