"""open_clip's hub layout as a local directory, such as BiomedCLIP's with a Hugging Face text tower."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from model_factory import (
    BIOMEDCLIP,
    CAPTIONS,
    hf_config,
    native_config,
    published_open_clip,
    wordpiece_folder,
)
from PIL import Image

from his2lip.config import sealed, unsealed
from his2lip.errors import CheckpointError, ModelError
from his2lip.models.architecture import build_clip
from his2lip.models.checkpoint import save_checkpoint
from his2lip.models.load import _hub_layout, load_model


def assert_as_open_clip_loads_it(folder: Path, image: np.ndarray) -> None:
    theirs, _, preprocess = open_clip.create_model_and_transforms(
        f"local-dir:{folder}", pretrained_text=False
    )
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(CAPTIONS)
    ours = load_model(f"local-dir:{folder}")
    pixels = preprocess(Image.fromarray(image))[None]
    assert torch.equal(ours.preprocess(image)[None], pixels)
    theirs.eval()
    with torch.no_grad():
        torch.testing.assert_close(ours.encode_image(pixels), theirs.encode_image(pixels, normalize=True))
        text = theirs.encode_text(tokens, normalize=True)
        torch.testing.assert_close(ours.encode_text(CAPTIONS), text, atol=1e-6, rtol=0)


def test_biomedclips_layout_small_is_as_open_clip_loads_it(tmp_path: Path, real_ihc: np.ndarray) -> None:
    folder = wordpiece_folder(tmp_path / "hub")
    assert_as_open_clip_loads_it(published_open_clip(folder, hf_config(folder)), real_ihc)


def test_a_native_layout_is_as_open_clip_loads_it(tmp_path: Path, real_ihc: np.ndarray) -> None:
    assert_as_open_clip_loads_it(published_open_clip(tmp_path / "hub", native_config()), real_ihc)


def test_biomedclips_text_tower_is_built_offline_from_the_packaged_configuration() -> None:
    with torch.device("meta"):
        towers = [
            build_clip(BIOMEDCLIP | {"text_cfg": BIOMEDCLIP["text_cfg"] | {"hf_model_name": name}}).text
            for name in (
                "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
                "microsoft/BiomedNLP-PubMedBERT-base-uncased-abstract",
            )
        ]
    for tower in towers:
        assert sum(p.numel() for p in tower.transformer.parameters()) == 108_891_648  # BERT base, no pooler
        assert tower.config.max_position_embeddings == 512


@pytest.mark.slow
def test_biomedclip_at_full_size_loads_offline_and_from_its_checkpoint(
    tmp_path: Path, real_ihc: np.ndarray
) -> None:
    folder = published_open_clip(wordpiece_folder(tmp_path / "hub"), BIOMEDCLIP)
    (folder / "config.json").unlink()
    model = load_model(f"local-dir:{folder}")
    pixels = model.preprocess(real_ihc)[None]
    state = torch.load(folder / "open_clip_pytorch_model.bin", weights_only=True)
    with torch.no_grad():
        reference = build_clip(BIOMEDCLIP, seed=0).eval()
        reference.load_state_dict(state)
        tokens = model.tokenizer.tokenizer(CAPTIONS, context_length=256)
        assert tokens.shape[1] == 256
        text = reference.encode_text(tokens, normalize=True)
        torch.testing.assert_close(model.encode_image(pixels), reference.encode_image(pixels, normalize=True))
        torch.testing.assert_close(model.encode_text(CAPTIONS), text, atol=1e-6, rtol=0)
    again = load_model(save_checkpoint(tmp_path / "checkpoint", model, meta={}))
    assert again.tensor_digest() == model.tensor_digest()
    with torch.no_grad():
        assert torch.equal(again.encode_text(CAPTIONS), model.encode_text(CAPTIONS))


def test_a_layout_with_wrong_or_missing_weights_is_refused(tmp_path: Path) -> None:
    folder = published_open_clip(tmp_path / "hub", native_config())
    weights = folder / "open_clip_pytorch_model.bin"
    state = torch.load(weights, weights_only=True)
    torch.save({k: v for k, v in state.items() if k != "visual.proj"}, weights)
    with pytest.raises(CheckpointError) as refused:
        load_model(f"local-dir:{folder}")
    assert refused.value.where == weights
    weights.unlink()
    with pytest.raises(CheckpointError) as refused:
        load_model(f"local-dir:{folder}")
    assert (refused.value.where, refused.value.key) == (folder, "open_clip_model.safetensors")


def test_a_layout_whose_weights_are_a_program_is_refused_and_does_not_run(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "ran"),)

    folder = published_open_clip(tmp_path / "hub", native_config())
    torch.save({"visual.proj": Malicious()}, folder / "open_clip_pytorch_model.bin")
    with pytest.raises(CheckpointError) as refused:
        load_model(f"local-dir:{folder}")
    assert refused.value.where == folder / "open_clip_pytorch_model.bin"
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "ran").exists()


def test_a_layout_without_a_model_configuration_is_refused(tmp_path: Path) -> None:
    folder = published_open_clip(tmp_path / "hub", native_config())
    (folder / "open_clip_config.json").write_text('{"preprocess_cfg": {}}')
    with pytest.raises(CheckpointError) as refused:
        load_model(f"local-dir:{folder}")
    assert refused.value.key == "open_clip_config.json"


@pytest.mark.parametrize(
    "change",
    [
        *(None, [], {"crop": 1}, {"mean": [0.5]}, {"mean": "x"}, {"std": [0, 0, 0]}, {"std": [1, 1, -1]}),
        *({"interpolation": "nearest"}, {"resize_mode": "odd"}),
    ],
    ids=str,
)
def test_a_layout_whose_preprocessing_cannot_be_used_is_refused(tmp_path: Path, change: object) -> None:
    file = published_open_clip(tmp_path / "hub", native_config()) / "open_clip_config.json"
    tree = json.loads(file.read_text())
    tree["preprocess_cfg"] = tree["preprocess_cfg"] | change if isinstance(change, dict) else change
    file.write_text(json.dumps(tree))
    with pytest.raises(CheckpointError) as refused:
        load_model(f"local-dir:{file.parent}")
    assert (refused.value.where, refused.value.key) == (file, file.name)


@pytest.mark.parametrize("similarity", ["euclidean", "", None, 1, ["dot"]])
def test_an_unknown_similarity_is_refused(tmp_path: Path, similarity: object) -> None:
    save_checkpoint(tmp_path / "saved", load_model("tiny"), meta={})
    folder = tmp_path / "saved"
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["his2lip"]["similarity"] = similarity
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as refused:  # as a repository of the hub is read
        _hub_layout(
            folder / "open_clip_config.json",
            folder / "model.safetensors",
            name="hf-hub:org/name",
            tokenizer=None,
            precision="fp32",
        )
    assert refused.value.key == "similarity"
    meta = unsealed(json.loads((folder / "his2lip.json").read_text())) | {"similarity": similarity}
    (folder / "his2lip.json").write_text(json.dumps(sealed(meta)))
    with pytest.raises(CheckpointError) as refused:
        load_model(folder)
    assert refused.value.key == "similarity"


def test_a_tokenizer_that_is_a_program_is_not_run(tmp_path: Path) -> None:
    folder = wordpiece_folder(tmp_path / "hub")
    mark = tmp_path / "ran"
    (folder / "evil.py").write_text(
        f"open({str(mark)!r}, 'w')\nfrom transformers import BertTokenizerFast as Evil\n"
    )
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"auto_map": {"AutoTokenizer": [None, "evil.Evil"]}, "tokenizer_class": "Evil"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = hf_config(folder)
    config["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    with pytest.raises(ModelError) as refused:
        load_model(f"local-dir:{published_open_clip(folder, config)}")
    assert refused.value.key == "auto_map"
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError) as refused:
        load_model(f"local-dir:{published_open_clip(folder, config)}")
    assert refused.value.key == "trust_remote_code"
    assert not mark.exists()
