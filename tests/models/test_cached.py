"""Models in the Hugging Face cache are listed by the names that load them, without a connection."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from model_factory import hf_cache
from typer.testing import CliRunner

from his2lip.cli import app
from his2lip.models.catalogue import cached_backbones, cached_models


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    return tmp_path


def fetched(home: Path, repository: str, monkeypatch: pytest.MonkeyPatch, **files: str) -> Path:
    """A repository in the Hugging Face cache with these files; its folder there."""
    source = home / "hub" / repository.replace("/", "-")
    source.mkdir(parents=True)
    for name, text in files.items():
        (source / name).write_text(text)
    hf_cache(home / "hf", repository, source, monkeypatch)
    return next((home / "hf" / f"models--{repository.replace('/', '--')}" / "snapshots").iterdir())


def test_an_empty_cache_has_only_tiny() -> None:
    assert cached_backbones() == {"tiny"}
    assert cached_models() == []


def test_a_named_backbone_is_here_once_its_weights_are(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched(home, "vinid/plip", monkeypatch, **{"config.json": "{}"})
    fetched(home, "xiangjx/musk", monkeypatch, **{"model.safetensors": "weights"})
    assert cached_backbones() == {"tiny", "musk"}
    assert cached_models() == []


def test_other_models_are_listed_by_the_name_that_loads_them(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = {"open_clip_config.json": "{}", "open_clip_model.safetensors": "weights"}
    fetched(home, "org/quilt", monkeypatch, **layout)
    clip = {"config.json": json.dumps({"model_type": "clip"}), "pytorch_model.bin": "weights"}
    folder = fetched(home, "org/kin-of-plip", monkeypatch, **clip)
    fetched(
        home, "timm/vit_base_patch16_clip_224.openai", monkeypatch, **{"open_clip_model.safetensors": "w"}
    )
    fetched(home, "org/no-model-of-two-towers", monkeypatch, **{"model.safetensors": "weights"})
    fetched(home, "org/broken", monkeypatch, **{"config.json": "{", "model.safetensors": "weights"})
    found = {c.repository: c.name for c in cached_models()}
    assert found.pop("org/quilt") == "hf-hub:org/quilt"
    assert found.pop("org/kin-of-plip") == f"local-dir:{folder}"
    assert found.pop("timm/vit_base_patch16_clip_224.openai").endswith(":openai")
    assert found == {}


def test_models_list_shows_which_weights_are_here_and_their_licence(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/none.db")
    fetched(home, "vinid/plip", monkeypatch, **{"model.safetensors": "weights"})
    lines = CliRunner().invoke(app, ["models", "list"], catch_exceptions=False).output.splitlines()
    (plip,) = [line for line in lines if line.startswith("plip")]
    (musk,) = [line for line in lines if line.startswith("musk")]
    assert "huggingface.co/vinid/plip (here)" in plip
    assert "huggingface.co/xiangjx/musk (not here)" in musk
    assert "CC BY-NC-ND 4.0" in musk
    assert not (home / "none.db").exists()
