"""A model of the hub is identified by the content of its files, wherever a machine has them in its cache."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import open_clip
import pytest
from model_factory import (
    SMALL_CLIP,
    hf_cache,
    hf_model,
    native_config,
    published_open_clip,
    published_plip,
    wordpiece_folder,
)

from his2lip.errors import ModelError
from his2lip.evaluation.encoders import ModelEncoder, SentenceEncoder
from his2lip.files import file_digest
from his2lip.models.identity import weights_identity
from his2lip.models.load import load_model

# A name that loads from the hub -> its repository there.
NAMES = {
    "hf-hub:org/small": "org/small",
    "small:ours": "org/small",
    "plip": "vinid/plip",
    "conch": "MahmoodLab/conch",
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an empty Hugging Face cache. open_clip knows an architecture `small` with tag `ours`."""
    tag = open_clip.pretrained._pcfg(hf_hub="org/small/", quick_gelu=True)
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "small", native_config())
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "small", {"ours": tag})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def published(name: str, folder: Path, *, seed: int) -> Path:
    """What the authors of the model `name` publish, with random weights by `seed`."""
    shutil.rmtree(folder, ignore_errors=True)
    if name == "plip":
        return published_plip(folder, hf_model(seed, **SMALL_CLIP))
    folder = published_open_clip(folder, native_config(), seed=seed)
    shutil.copy(folder / "open_clip_pytorch_model.bin", folder / "pytorch_model.bin")  # CONCH's own name
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_model_replaced_in_the_cache_has_another_identity_and_the_same_one_the_same(
    name: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(seed: int, commit: str) -> str:
        files = published(name, tmp_path / "hub", seed=seed)
        hf_cache(cache, NAMES[name], files, monkeypatch, commit=commit * 40)
        return weights_identity(name)

    first = download(1, "1")
    assert first.startswith(f"{name}@")
    assert weights_identity(name) == first
    assert download(1, "2") == first  # a commit that changed none of the files that are loaded
    assert download(2, "2") != first  # in place
    assert download(1, "3") == first


def test_features_of_a_replaced_model_are_cached_under_another_key(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = set()
    for seed in (1, 2, 1):
        files = published("hf-hub:org/small", tmp_path / "hub", seed=seed)
        hf_cache(cache, "org/small", files, monkeypatch, commit=str(seed) * 40)
        model = load_model("hf-hub:org/small")
        keys.add((ModelEncoder(model).key, SentenceEncoder(model).key))
    assert len(keys) == 2


def test_a_large_file_of_the_cache_is_identified_by_its_name_and_not_read(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hf_cache(cache, "org/small", published("small:ours", tmp_path / "hub", seed=1), monkeypatch)
    copied = weights_identity("hf-hub:org/small")
    file = next(cache.rglob("open_clip_pytorch_model.bin"))
    blob = cache / "models--org--small" / "blobs" / file_digest(file)
    blob.parent.mkdir()
    file.rename(blob)
    file.symlink_to(os.path.relpath(blob, file.parent))
    assert weights_identity("hf-hub:org/small") == copied  # as on a machine whose cache has no links
    assert weights_identity(str(file.parent)) == weights_identity(str(tmp_path / "hub"))
    os.truncate(blob, 0)
    assert weights_identity("hf-hub:org/small") == copied


def test_the_tokenizer_of_a_text_tower_is_part_of_the_identity(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = native_config(hf_model_name="org/bert", hf_tokenizer_name="org/bert")
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    (tmp_path / "hub" / "open_clip_model.safetensors").write_bytes(b"not read for its identity")
    hf_cache(cache, "org/small", tmp_path / "hub", monkeypatch)
    with pytest.raises(ModelError) as refused:
        weights_identity("hf-hub:org/small")
    assert refused.value.key == "org/bert"
    text = wordpiece_folder(tmp_path / "bert")
    hf_cache(cache, "org/bert", text, monkeypatch)
    first = weights_identity("hf-hub:org/small")
    (text / "README.md").write_text("Other words.")
    hf_cache(cache, "org/bert", text, monkeypatch)
    assert weights_identity("hf-hub:org/small") == first
    vocabulary = text / "tokenizer.json"
    vocabulary.write_text(vocabulary.read_text().replace("brown", "blue"))
    hf_cache(cache, "org/bert", text, monkeypatch)
    assert weights_identity("hf-hub:org/small") != first


@pytest.mark.parametrize("name", ["clip", "plip", "musk", "hf-hub:org/absent"])
def test_a_model_that_is_neither_here_nor_reachable_is_the_error_of_loading_it(
    name: str, cache: Path
) -> None:
    with pytest.raises(ModelError) as refused:
        weights_identity(name)
    assert refused.value.key == name


def test_names_without_files_of_a_hub_stand_for_themselves(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    published("small:ours", tmp_path / "tiny", seed=1)  # the backbone of this name is meant, as in load_model
    for name in ("tiny", "small", "no-such-model", "no:such", "models:/ihc@champion", "local-dir:nowhere"):
        assert weights_identity(name) == name
