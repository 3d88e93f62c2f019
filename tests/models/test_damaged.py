"""Damaged checkpoints are refused by `models show`; impossible sizes, before memory is allocated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_factory import SMALL_CLIP, dual, hf_model, native_config, published_open_clip, published_plip
from safetensors.torch import save_file
from typer.testing import CliRunner

from his2lip.cli import app
from his2lip.errors import CheckpointError, His2lipError, ModelError
from his2lip.models.checkpoint import save_checkpoint
from his2lip.models.identity import weights_identity
from his2lip.models.load import load_model
from his2lip.models.transformers_folder import from_transformers
from his2lip.models.weights import read_tensors


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "checkpoint", dual(), meta={"metrics": {"select/macro_f1": 0.5}})


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tree = json.loads(file.read_text())
    change(tree)
    file.write_text(json.dumps(tree))


def flip(file: Path, place: float) -> None:
    """Flips one bit of a file, at a fraction of its length."""
    data = bytearray(file.read_bytes())
    data[int(place * (len(data) - 1))] ^= 4
    file.write_bytes(bytes(data))


def vision(**settings: object) -> Callable[[dict[str, Any]], object]:
    return lambda tree: tree["model_cfg"]["vision_cfg"].update(settings)


def text(**settings: object) -> Callable[[dict[str, Any]], object]:
    return lambda tree: tree["model_cfg"]["text_cfg"].update(settings)


def show(folder: Path) -> None:
    CliRunner().invoke(app, ["models", "show", str(folder)], catch_exceptions=False)


@pytest.mark.parametrize("place", [0.0, 0.001, 0.01, 0.2, 0.5, 0.9, 1.0])
def test_a_flipped_bit_in_the_weights_is_refused(saved: Path, place: float) -> None:
    show(saved)
    flip(saved / "model.safetensors", place)
    with pytest.raises(CheckpointError):
        show(saved)


@pytest.mark.parametrize(
    ("name", "change", "key"),
    [
        ("open_clip_config.json", vision(width=128), None),
        ("open_clip_config.json", lambda t: t["model_cfg"].update(quick_gelu=False), "config_digest"),
        ("open_clip_config.json", lambda t: t["preprocess_cfg"].update(mean=[0, 0, 0]), "preprocess_digest"),
        ("his2lip.json", lambda t: t.pop("tensor_digest"), "sha256"),
        ("his2lip.json", lambda t: t.update(data_digest="of other data"), "sha256"),
        ("his2lip.json", lambda t: t.update(tensor_digest=7), "tensor_digest"),
        ("his2lip.json", lambda t: t.update(metrics=[1]), "metrics"),
        ("his2lip.json", lambda t: t.update(config="x"), "config"),
        ("his2lip.json", lambda t: t.update(terms=3), "terms"),
        ("his2lip.json", lambda t: t.update(format=None), "format"),
    ],
)
def test_an_edited_configuration_or_provenance_is_refused(
    saved: Path, name: str, change: Callable[[dict[str, Any]], object], key: str | None
) -> None:
    edit(saved / name, change)
    with pytest.raises(His2lipError) as refused:
        show(saved)
    assert key is None or refused.value.key == key


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (vision(image_size=100_000), "image_size"),
        (vision(layers=1_000_000), "layers"),
        (text(context_length=200_000), "context_length"),
        (text(vocab_size=10**10), "vocab_size"),
        (vision(width=20_000, layers=500), "model_cfg"),  # 2.4e12 parameters, of legal sizes
    ],
)
@pytest.mark.parametrize("kind", ["checkpoint", "hub layout"])
def test_an_architecture_that_no_memory_can_contain_is_refused_by_its_setting(
    kind: str, change: Callable[[dict[str, Any]], object], key: str, saved: Path, tmp_path: Path
) -> None:
    folder = saved if kind == "checkpoint" else published_open_clip(tmp_path / "hub", native_config())
    edit(folder / "open_clip_config.json", change)
    with pytest.raises(ModelError) as refused:
        load_model(f"local-dir:{folder}")
    assert refused.value.key == key


def test_a_transformers_model_of_impossible_size_is_refused(tmp_path: Path) -> None:
    folder = published_plip(tmp_path, hf_model(**SMALL_CLIP))
    edit(folder / "config.json", lambda t: t["vision_config"].update(num_hidden_layers=10**6))
    with pytest.raises(ModelError) as refused:
        from_transformers(folder, name="x")
    assert refused.value.key == "layers"


def test_a_git_lfs_pointer_is_called_by_its_name(tmp_path: Path) -> None:
    for name in ("model.safetensors", "best.pt"):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
        with pytest.raises(CheckpointError) as refused:
            read_tensors(tmp_path / name)
        assert (refused.value.key, refused.value.where) == ("git-lfs", tmp_path / name)


def test_safetensors_under_another_suffix_are_read(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "best.pt")
    assert torch.equal(read_tensors(tmp_path / "best.pt")["a"], torch.ones(2))


@pytest.mark.parametrize("kind", ["checkpoint", "hub layout", "transformers"])
def test_a_folder_counts_by_its_contents(kind: str, saved: Path, tmp_path: Path) -> None:
    folder = saved
    if kind == "hub layout":
        folder = published_open_clip(tmp_path / "hub", native_config())
    if kind == "transformers":
        folder = published_plip(tmp_path / "hub", hf_model(**SMALL_CLIP))
    before = weights_identity(str(folder))
    moved = folder.rename(tmp_path / "moved")
    assert weights_identity(str(moved)) == weights_identity(f"local-dir:{moved}") == before
    if kind == "checkpoint":
        save_checkpoint(moved, dual(native_config() | {"quick_gelu": False}), meta={})
    else:
        flip(next(file for file in moved.iterdir() if file.suffix in (".bin", ".safetensors")), 0.9)
    assert weights_identity(str(moved)) != before
    assert weights_identity("tiny") == "tiny"
