"""`his2lip models convert, blend, export, show` on the command line: what they write, print and refuse."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from huggingface_hub import ModelCard
from model_factory import CAPTIONS, hf_cache, native_config, wordpiece_folder
from small_disk import needs_mount, small_disk
from typer.testing import CliRunner

from his2lip.cli import app
from his2lip.data.cards.terms import Terms
from his2lip.errors import CheckpointError, ConfigError, His2lipError, ModelError, StorageError
from his2lip.models.architecture import build_clip
from his2lip.models.checkpoint import save_checkpoint
from his2lip.models.encoder import DualEncoder
from his2lip.models.load import load_model
from his2lip.models.preprocess import Preprocess
from his2lip.models.provenance import read_meta
from his2lip.models.tokenizer import build_tokenizer
from his2lip.serving.calibration import Calibration, similarity_digest
from his2lip.serving.familiarity import Base, Familiarity, Region
from his2lip.serving.hub_card import CARD, CardContent, CardFigures, model_card
from his2lip.serving.loading import load_for_inference

TERMS = Terms(datasets={"bci": "CC BY-NC 4.0"}, commercial=False, attribution=("Liu et al. 2022",))
TRAINED = {
    "config": {"model": {"backbone": "plip"}},
    "data_digest": "d" * 64,
    "terms": TERMS.to_json(),
    "step": 9,
}


def his2lip(*arguments: object) -> str:
    """What `his2lip ARGUMENTS` prints; raises what it raises."""
    done = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def small(seed: int) -> DualEncoder:
    config = native_config()
    return DualEncoder(
        build_clip(config, seed=seed),
        name=f"small-{seed}",
        config=config,
        preprocess=Preprocess(size=(32, 32), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)),
        tokenizer=build_tokenizer(config),
    ).eval()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "base", small(1), meta={})


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "tuned", small(2), meta=TRAINED)


def published_plip(folder: Path) -> Path:
    """A small CLIPModel of transformers, with its image processor, as PLIP is published."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    tower = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 1}
    vision = tower | {"image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    config = CLIPConfig(projection_dim=32, text_config=tower | {"eos_token_id": 2}, vision_config=vision)
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    return folder


def released_b32(path: Path, *, without: str | None = None) -> Path:
    """A released state dict of full-size tensors, each one value spread out: a file of some kilobytes."""
    from transformers import CLIPConfig, CLIPModel

    with torch.device("meta"):
        whole = CLIPModel(CLIPConfig()).state_dict()
    shapes = {"logit_scale": torch.Size([])}
    for side in ("text_encoder", "vision_encoder"):
        shapes |= {f"{side}.model.{name}": tensor.shape for name, tensor in whole.items()}
        shapes[f"{side}.projection_head.weight"] = torch.Size([512, 512])
    state = {k: torch.tensor(0.001 * (i % 7)).expand(shape) for i, (k, shape) in enumerate(shapes.items())}
    state.pop(without or "", None)
    torch.save(state, path)
    return path


def test_plips_files_become_a_checkpoint_that_says_what_it_is(tmp_path: Path) -> None:
    said = his2lip(
        "models", "convert", published_plip(tmp_path / "hub"), "--from", "plip", "--out", tmp_path / "c"
    )
    meta = read_meta(tmp_path / "c")
    assert meta["tensor_digest"] in said
    assert str(tmp_path / "c") in said
    assert "licence not stated by its authors" in said
    assert meta["converted"]["from"] == "plip"
    assert load_model(tmp_path / "c").name == "plip"


def test_a_state_dict_of_open_clips_training_becomes_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "small", native_config())
    original = load_model("small", seed=3)
    state = {f"module.{k}": v for k, v in original.clip.state_dict().items()}
    torch.save({"epoch": 3, "name": "x", "state_dict": state, "optimizer": {}}, tmp_path / "epoch_3.pt")
    arguments = ("models", "convert", tmp_path / "epoch_3.pt", "--from", "open_clip", "--out", tmp_path / "c")
    his2lip(*arguments, "--backbone", "small")
    assert load_model(tmp_path / "c").tensor_digest() == original.tensor_digest()


def test_a_released_model_is_converted_with_berts_ids_its_terms_and_its_scoring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hf_cache(tmp_path / "cache", "bert-base-uncased", wordpiece_folder(tmp_path / "bert"), monkeypatch)
    file, out = released_b32(tmp_path / "best.pt"), tmp_path / "c"
    options = ("--from", "released", "--backbone", "plip", "--tokenizer", "bert")
    said = his2lip("models", "convert", file, *options, "--out", out)
    (tmp_path / "cache").rename(tmp_path / "gone")
    meta, model = read_meta(out), load_model(out)
    assert "by dot" in said
    assert "mihic" in said
    assert (model.name, model.similarity) == ("his2plip", "dot")
    assert meta["tokenizer"]["kind"] == "huggingface"
    assert model.tokenize(CAPTIONS)[0, 0] == 2, "[CLS] of BERT's vocabulary, from the checkpoint itself"
    assert meta["terms"]["datasets"].keys() == {"mihic"}


class Malicious:
    """Unpickling it would create a folder."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.path,)


def malicious(folder: Path) -> Path:
    torch.save({"logit_scale": torch.zeros(()), "x": Malicious(str(folder / "ran"))}, folder / "best.pt")
    return folder / "best.pt"


def test_the_architecture_that_a_refusal_suggests_is_one_that_convert_takes(tmp_path: Path) -> None:
    arguments = ("models", "convert", malicious(tmp_path), "--from", "open_clip", "--out", tmp_path / "out")
    with pytest.raises(ConfigError) as refused:
        his2lip(*arguments)
    assert refused.value.key == "--backbone"
    suggested = str(refused.value.fix).rpartition(" ")[2]
    with pytest.raises(CheckpointError) as read:
        his2lip(*arguments, "--backbone", suggested)
    assert read.value.key == "pickle", "the file is read, so the architecture was taken"


@pytest.mark.parametrize(
    ("file", "options", "key"),
    [
        (malicious, ["--from", "released", "--backbone", "clip"], "pickle"),
        (malicious, ["--from", "open_clip", "--backbone", "ViT-B-32-quickgelu"], "pickle"),
        (malicious, ["--from", "open_clip", "--backbone", "ViT-B-32"], "quick_gelu"),
        (
            lambda f: released_b32(f / "a.pt", without="text_encoder.projection_head.weight"),
            ["--from", "released", "--backbone", "clip"],
            "text_encoder.projection_head.weight",
        ),
        (lambda f: released_b32(f / "a.pt"), ["--from", "released"], "--backbone"),
        (lambda f: released_b32(f / "a.pt"), ["--from", "released", "--backbone", "RN50"], "--backbone"),
        (lambda f: released_b32(f / "a.pt"), ["--from", "open_clip"], "--backbone"),
        (
            lambda f: released_b32(f / "a.pt"),
            ["--from", "open_clip", "--backbone", "ViT-B-23"],
            "--backbone",
        ),
        (lambda f: released_b32(f / "a.pt"), ["--from", "plip"], "FILE"),
        (published_plip, ["--from", "plip", "--backbone", "clip"], "--backbone"),
        (published_plip, ["--from", "transformers", "--tokenizer", "bert"], "--tokenizer"),
        (published_plip, ["--from", "open_clip"], "open_clip_config.json"),
        (lambda f: f / "absent.pt", ["--from", "released", "--backbone", "clip"], "absent.pt"),
    ],
)
def test_what_cannot_be_converted_is_refused_and_leaves_no_files(
    file: Callable[[Path], Path], options: list[str], key: str, tmp_path: Path
) -> None:
    with pytest.raises(His2lipError) as refused:
        his2lip("models", "convert", file(tmp_path), *options, "--out", tmp_path / "out")
    assert refused.value.key == key
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


def test_a_blend_is_a_checkpoint_under_the_strictest_terms_of_both(
    base: Path, tuned: Path, tmp_path: Path
) -> None:
    said = his2lip("models", "blend", base, tuned, "--alpha", "0.25", "--out", tmp_path / "blend")
    mixed, first, second = (load_model(f).clip.state_dict() for f in (tmp_path / "blend", base, tuned))
    for name, tensor in mixed.items():
        torch.testing.assert_close(tensor, 0.75 * first[name] + 0.25 * second[name], atol=1e-6, rtol=1e-5)
    meta = read_meta(tmp_path / "blend")
    assert meta["blend"] == {
        "alpha": 0.25,
        "base": read_meta(base)["tensor_digest"],
        "tuned": read_meta(tuned)["tensor_digest"],
    }
    assert meta["tensor_digest"] not in meta["blend"].values()
    assert (meta["terms"], meta["data_digest"]) == (TRAINED["terms"], TRAINED["data_digest"])
    assert "step" not in meta
    assert "forbids commercial use" in said


def test_a_blend_names_the_licences_of_both_models(base: Path, tuned: Path, tmp_path: Path) -> None:
    other = save_checkpoint(tmp_path / "other", small(1), meta={"began_as": ["clip"]})
    said = his2lip("models", "blend", other, tuned, "--alpha", "0.25", "--out", tmp_path / "blend")
    assert "its weights started from 'clip', licence MIT" in said
    assert "its weights started from 'plip', licence not stated by its authors" in said
    again = his2lip(
        "models", "blend", tmp_path / "blend", base, "--alpha", "0.5", "--out", tmp_path / "again"
    )
    assert "licence not stated by its authors" in again


def test_a_blend_of_two_architectures_or_outside_0_to_1_is_refused(
    base: Path, tuned: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError) as refused:
        his2lip("models", "blend", "tiny", tuned, "--alpha", "0.5", "--out", tmp_path / "out")
    assert refused.value.key == "tiny"
    with pytest.raises(ModelError) as refused:
        his2lip("models", "blend", base, tuned, "--alpha", "1.5", "--out", tmp_path / "out")
    assert refused.value.key == "alpha"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", ["open_clip", "transformers"])
def test_an_export_says_and_carries_the_terms_that_the_model_inherited(
    format: str, tuned: Path, tmp_path: Path
) -> None:
    said = his2lip("models", "export", tuned, "--format", format, "--out", tmp_path / "out")
    beside = "his2lip.json" if format == "open_clip" else "README.md"
    written = (tmp_path / "out" / beside).read_text()
    for where in (said, written):
        assert "CC BY-NC 4.0" in where
        assert "Liu et al. 2022" in where
    assert "forbids commercial use" in said
    assert "licence not stated by its authors" in said, "of PLIP, which it was tuned from"
    assert load_model(tmp_path / "out").tensor_digest() == read_meta(tuned)["tensor_digest"]


def test_an_exported_checkpoint_keeps_its_provenance(tuned: Path, tmp_path: Path) -> None:
    his2lip("models", "export", tuned, "--out", tmp_path / "out")
    meta = read_meta(tmp_path / "out")
    assert meta.pop("trained_on")["complete"] is False, "it has no training record"
    assert meta == read_meta(tuned) | {"exported": "open_clip"}


@pytest.mark.parametrize("format", ["open_clip", "transformers"])
def test_an_export_that_is_converted_back_keeps_its_terms_and_how_it_compares(
    format: str, tmp_path: Path
) -> None:
    model = small(2)
    model.similarity = "dot"
    tuned = save_checkpoint(tmp_path / "tuned", model, meta=TRAINED)
    his2lip("models", "export", tuned, "--format", format, "--out", tmp_path / "out")
    said = his2lip("models", "convert", tmp_path / "out", "--from", format, "--out", tmp_path / "back")
    assert "forbids commercial use" in said
    assert "licence not stated by its authors" in said, "of PLIP, which it was tuned from"
    meta = read_meta(tmp_path / "back")
    assert all(meta[key] == TRAINED[key] for key in ("config", "data_digest", "terms"))
    assert load_model(tmp_path / "back").similarity == load_model(tmp_path / "out").similarity == "dot"


@pytest.mark.parametrize("format", ["open_clip", "transformers"])
def test_an_export_carries_what_its_card_says_of_it(format: str, tuned: Path, tmp_path: Path) -> None:
    model = load_model(tuned)
    Calibration(
        temperature=0.07, model=similarity_digest(model), prompts="p", question="tissue type",
        data_digest="d", dataset="mihic", split="val", n=84,
        nll_before=0.0, nll_after=0.0, ece_before=0.0, ece_after=0.0,
    ).save(tuned / "calibrations/p.json")  # fmt: skip
    base = Base(weights=model.tensor_digest(), dataset="mihic", split="val", patches=84, reference=99)
    region = Region(np.zeros((1, 2)), np.eye(2))
    Familiarity(base, region, region, (1.0, 1.0), 1.0).save(tuned)
    stored = load_for_inference(str(tuned))
    content = CardContent(
        name="lung",
        source=str(tuned),
        meta=read_meta(tuned),
        figures=CardFigures(cells=[], means=[]),
        calibrations=stored.calibrations,
        familiarity=stored.history.familiarity,
    )
    (tuned / CARD).write_text(model_card(content), encoding="utf-8")
    his2lip("models", "export", tuned, "--format", format, "--out", tmp_path / "out")
    loaded = load_for_inference(str(tmp_path / "out"))
    card = ModelCard.load(tmp_path / "out" / CARD)
    if format == "open_clip":
        assert loaded.calibrations == stored.calibrations
        assert str(loaded.history.familiarity) == str(stored.history.familiarity)
        assert card.content == model_card(content)
        return
    assert (loaded.calibrations, loaded.history.familiarity) == ((), None)
    assert card.data.library_name == "transformers"
    sections = dict(part.split("\n", 1) for part in card.text.split("\n## ")[1:])
    for title in ("Calibration", "What it does not answer"):
        assert "not in this folder" in sections[title]
    assert "open_clip" not in sections["How to load it"]
    assert "forbids commercial use" in sections["Licence and terms"]


def test_an_existing_file_or_folder_at_out_is_never_overwritten(
    base: Path, tuned: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    before = json.dumps(read_meta(base))
    for out in (base, tmp_path / "file"):
        for command in (
            ("export", tuned),
            ("blend", base, tuned, "--alpha", 1),
            ("convert", tuned, "--from", "open_clip"),
        ):
            with pytest.raises(ConfigError) as refused:
                his2lip("models", *command, "--out", out)
            assert (refused.value.where, refused.value.key) == (out, "--out")
    assert json.dumps(read_meta(base)) == before


@needs_mount
@pytest.mark.parametrize("format", ["open_clip", "transformers"])
def test_an_export_for_which_the_disk_is_too_small_leaves_nothing(
    format: str, base: Path, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        with pytest.raises(ConfigError, match="mounted disk"):
            his2lip("models", "export", base, "--out", disk.path)
        disk.resize(1 << 20)
        with pytest.raises(StorageError):
            his2lip("models", "export", base, "--format", format, "--out", disk.path / "out")
        assert not list(disk.path.iterdir())


@needs_mount
def test_a_full_disk_and_files_that_are_gone_are_not_a_model_that_mlflow_has_not(
    base: Path, tmp_path: Path, mlflow_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    his2lip("models", "promote", base, "--alias", "a", "--as", "mine", "--storage", tmp_path)
    with small_disk(tmp_path / "disk", size=1 << 20) as disk:
        monkeypatch.setattr("tempfile.tempdir", str(disk.path))
        with pytest.raises(StorageError):
            load_model("models:/mine@a")
    monkeypatch.setattr("tempfile.tempdir", None)
    (gone,) = tmp_path.rglob("artifacts/checkpoint")
    gone.rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError) as refused:
        load_model("models:/mine@a")
    assert refused.value.key == "checkpoint"


def test_a_store_that_is_no_database_is_refused_by_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mlflow.db").write_bytes(bytes(range(256)) * 20)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(ModelError) as refused:
        load_model("models:/mine@a")
    assert str(refused.value.where).endswith("mlflow.db")


def test_a_folder_that_commands_would_not_load_or_that_cannot_be_replaced_is_refused(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    for out in ("clip", "fifo", "/proc/x"):
        with pytest.raises(ConfigError) as refused:
            his2lip("models", "export", base, "--out", out)
        assert refused.value.key == "--out"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "fifo"]


def test_a_model_that_transformers_cannot_represent_is_not_exported_to_it(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as refused:
        his2lip("models", "export", "tiny", "--format", "transformers", "--out", tmp_path / "out")
    assert refused.value.key == "timm_model_name"
    assert not (tmp_path / "out").exists()


def test_show_says_what_a_checkpoint_was_made_from_and_its_terms(tuned: Path, tmp_path: Path) -> None:
    said = his2lip("models", "show", tuned)
    assert read_meta(tuned)["tensor_digest"] in said
    assert "forbids commercial use" in said
    with pytest.raises(CheckpointError) as refused:
        his2lip("models", "show", "tiny")
    assert refused.value.where == "tiny"
