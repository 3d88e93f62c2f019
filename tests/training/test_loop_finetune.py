"""Each way of fine-tuning in the loop: what is trained, and that a resumed run gives the same weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from model_factory import dual
from training_data import write_small_shards

from his2lip.config import validate
from his2lip.errors import CheckpointError
from his2lip.loss import WISELoss
from his2lip.models.adapters import merge, unmerged_state
from his2lip.models.checkpoint import save_checkpoint
from his2lip.models.encoder import DualEncoder
from his2lip.models.load import load_model
from his2lip.models.provenance import read_meta, terms_of_use
from his2lip.models.resume import ResumeState, load_resume
from his2lip.training.build import best_writer, build_model, checkpoint_writer, prepare_process
from his2lip.training.config import TrainConfig
from his2lip.training.loop import fit
from his2lip.training.run_directory import RunDir
from his2lip.training.run_inputs import open_data
from his2lip.training.source import StreamSource

CPU = torch.device("cpu")
STEPS = 7  # an epoch of the small shards has 4


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_small_shards(tmp_path_factory.mktemp("small") / "shards", train=64, select=16, size=32)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small CLIP, as a checkpoint."""
    return str(save_checkpoint(tmp_path_factory.mktemp("backbone") / "clip", dual(), meta={}))


@pytest.fixture(autouse=True)
def deterministic() -> Any:
    prepare_process(TrainConfig.model_validate({"data": {"shards": "-"}, "workers": {"threads": 1}}), CPU)
    yield
    torch.use_deterministic_algorithms(False)


def make(shards: str, backbone: str, finetune: dict[str, Any], **model: Any) -> TrainConfig:
    own = {key: value for key, value in finetune.items() if key != "augment"}
    data = {"augment": finetune["augment"]} if "augment" in finetune else {}
    tree = {
        "data": {"shards": shards, "batch_size": 16, "lanes": 4, "loader": "local", **data},
        "model": {"backbone": backbone, **model},
        "finetune": own,
        "optim": {"lr": 1e-3, "steps": STEPS, "warmup": 0.1},
        "checkpoint": {"every_steps": 3},
    }
    return open_data(validate(TrainConfig, tree))[0]


def run(
    config: TrainConfig, folder: Path, *, source: Path | None = None, resume: ResumeState | None = None
) -> DualEncoder:
    """Trains from the start, or from the checkpoint `source` and its state or `resume`.

    Each checkpoint is written to folder/at-STEP.
    """
    _, opened, bank = open_data(config)
    write = checkpoint_writer(RunDir(folder), config, opened, bank)

    def save(model: DualEncoder, *rest: Any) -> None:
        write(model, *rest)
        (folder / "last").rename(folder / f"at-{rest[0].step}")

    model = build_model(config, CPU, source=source)
    resume = resume or (None if source is None else load_resume(source))
    batches = StreamSource(config, bank, preprocess=model.preprocess)
    fit(
        config,
        model,
        WISELoss.from_config(config.loss),
        batches,
        report=lambda progress: None,
        save=None if source else save,
        resume=resume,
    )
    return model


WAYS: dict[str, dict[str, Any]] = {
    "lora": {"lora": {"rank": 2}},
    "lora under a frozen tower": {"freeze": "text", "lora": {"rank": 2, "alpha": 4}},
    "frozen": {"freeze": "image"},
    "frozen, one view": {"freeze": "image", "augment": False},
    "frozen text": {"freeze": "text"},
    "decay": {"layer_decay": 0.5},
    "heads": {"projection": "released", "layer_decay": 0.7, "gradient_checkpointing": True},
    "heads and lora": {"projection": "released", "lora": {"rank": 2}},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_run_resumed_in_the_middle_of_an_epoch_ends_with_the_uninterrupted_weights(
    way: str, shards: str, backbone: str, tmp_path: Path
) -> None:
    config = make(shards, backbone, WAYS[way])
    wanted = run(config, tmp_path)
    for step in (3, 4, 6):
        again = run(config, tmp_path / "again", source=tmp_path / f"at-{step}")
        assert again.tensor_digest() == wanted.tensor_digest(), step
        for (name, a), b in zip(wanted.named_parameters(), again.parameters(), strict=True):
            assert torch.equal(a, b), name
    folder = tmp_path / f"at-{STEPS}"
    saved = load_model(folder)
    assert set(saved.clip.state_dict()) == set(load_model(backbone).clip.state_dict())
    assert saved.tensor_digest() == wanted.tensor_digest()
    assert read_meta(folder)["config"]["finetune"] == config.finetune.model_dump(mode="json")


def test_resuming_with_new_adapters_on_the_merged_weights_gives_other_weights(
    shards: str, backbone: str, tmp_path: Path
) -> None:
    """Shows that the test above can fail: the merged weights of a checkpoint are not enough to resume."""
    config = make(shards, backbone, WAYS["lora"])
    wanted, source = run(config, tmp_path), tmp_path / "at-3"
    saved = load_resume(source)
    assert saved is not None
    assert any(name.endswith("parametrizations.weight.0.a") for name in saved.model)
    model = build_model(config, CPU, source=source)
    merge(model)
    assert model.tensor_digest() == read_meta(source)["tensor_digest"]
    renewed = unmerged_state(build_model(config, CPU, source=source))
    assert renewed.keys() == saved.model.keys()
    again = run(config, tmp_path / "again", source=source, resume=replace(saved, model=renewed))
    assert again.tensor_digest() != wanted.tensor_digest()
    with pytest.raises(CheckpointError) as refused:
        run(config, tmp_path / "again", source=source, resume=replace(saved, model={}))
    assert refused.value.key in saved.model


@pytest.mark.parametrize("way", ["lora", "frozen", "decay", "heads"])
def test_each_way_of_fine_tuning_changes_the_tensors_that_it_trains(
    way: str, shards: str, backbone: str, tmp_path: Path
) -> None:
    before = load_model(backbone).clip.state_dict()
    after = {k: v.detach() for k, v in load_of(run(make(shards, backbone, WAYS[way]), tmp_path)).items()}
    moved = {name: (after[name] - before[name]).abs().mean().item() for name in before}
    top = moved["visual.transformer.resblocks.1.mlp.c_fc.weight"]
    if way == "frozen":
        assert all((change == 0) == name.startswith("visual.") for name, change in moved.items())
    elif way == "lora":
        assert moved["visual.conv1.weight"] == moved["visual.proj"] == moved["ln_final.bias"] == 0 < top
    elif way == "decay":
        assert moved["visual.transformer.resblocks.0.mlp.c_fc.weight"] < 0.7 * top
    else:
        assert moved["visual.proj"] > 10 * top  # a randomly initialised head is merged into it


def load_of(model: DualEncoder) -> dict[str, torch.Tensor]:
    merge(model)
    return model.clip.state_dict()


def test_recomputed_blocks_train_to_the_same_weights_and_count_as_the_same_run(
    shards: str, backbone: str, tmp_path: Path
) -> None:
    plain = make(shards, backbone, {})
    saving = make(shards, backbone, {"gradient_checkpointing": True})
    assert plain.identity() == saving.identity()
    digests = [run(c, tmp_path / str(i)).tensor_digest() for i, c in enumerate((plain, saving))]
    assert digests[0] == digests[1]


def test_another_image_size_and_the_released_preprocessing_go_into_the_checkpoint(
    shards: str, backbone: str, tmp_path: Path
) -> None:
    config = make(shards, backbone, {}, image_size=48, preprocessing="released")
    wanted = run(config, tmp_path)
    saved = load_model(tmp_path / f"at-{STEPS}")
    assert saved.preprocess == wanted.preprocess
    assert (saved.preprocess.size, saved.preprocess.resize_mode) == ((48, 48), "squash")
    assert saved.preprocess.mean[0] == 0.7424657
    again = run(config, tmp_path / "again", source=tmp_path / "at-3")
    assert again.tensor_digest() == wanted.tensor_digest()


def test_the_licence_of_the_first_weights_is_kept_in_a_checkpoint(shards: str, tmp_path: Path) -> None:
    start = save_checkpoint(tmp_path / "converted", dual(), meta={"began_as": ["plip"]})
    config = make(shards, str(start), {})
    save = best_writer(RunDir(tmp_path / "run"), config, *open_data(config)[1:])
    save(dual(), ResumeState(step=1, optimizer={}), {}, True)
    said = terms_of_use("tuned", read_meta(tmp_path / "run" / "best"))
    assert "its weights started from 'plip', licence not stated by its authors" in said
