"""Blending interpolates weights; exports give the same features in the tools that they are for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_factory import CAPTIONS, hf_dual, native_config, wordpiece_folder
from model_factory import dual as from_factory
from PIL import Image

from his2lip.errors import ModelError
from his2lip.models.architecture import build_clip
from his2lip.models.checkpoint import save_checkpoint
from his2lip.models.encoder import DualEncoder
from his2lip.models.exchange import export
from his2lip.models.interpolation import blend
from his2lip.models.load import load_model
from his2lip.models.preprocess import Preprocess
from his2lip.models.tokenizer import build_tokenizer
from his2lip.models.transformers_folder import from_transformers, to_transformers_folder


def dual(
    seed: int = 1, *, squash: bool = False, tokenizer: Path | None = None, **text: object
) -> DualEncoder:
    config = native_config(**text)  # type: ignore[arg-type]
    mode, interpolation = ("squash", "bilinear") if squash else ("shortest", "bicubic")
    return DualEncoder(
        build_clip(config, seed=seed),
        name=f"small-{seed}",
        config=config,
        preprocess=Preprocess(
            size=(32, 32),
            mean=(0.5, 0.4, 0.3),
            std=(0.2, 0.3, 0.4),
            resize_mode=mode,
            interpolation=interpolation,
        ),
        tokenizer=build_tokenizer(config, tokenizer),
    ).eval()


BASE, TUNED = dual(1), dual(2)


def test_the_ends_of_a_blend_are_exactly_the_two_models() -> None:
    assert blend(BASE, TUNED, alpha=0).tensor_digest() == BASE.tensor_digest()
    assert blend(BASE, TUNED, alpha=1).tensor_digest() == TUNED.tensor_digest()


@given(alpha=st.floats(0, 1))
@settings(deadline=None, max_examples=10)
def test_a_blend_is_linear_in_every_tensor_and_changes_neither_model(alpha: float) -> None:
    before = BASE.tensor_digest(), TUNED.tensor_digest()
    mixed, first, second = (m.clip.state_dict() for m in (blend(BASE, TUNED, alpha=alpha), BASE, TUNED))
    for name, tensor in mixed.items():
        torch.testing.assert_close(
            tensor, (1 - alpha) * first[name] + alpha * second[name], atol=1e-6, rtol=1e-5
        )
    assert (BASE.tensor_digest(), TUNED.tensor_digest()) == before


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_an_alpha_outside_0_to_1_is_refused(alpha: float) -> None:
    with pytest.raises(ModelError) as refused:
        blend(BASE, TUNED, alpha=alpha)
    assert refused.value.key == "alpha"


def test_models_of_two_architectures_do_not_blend() -> None:
    with pytest.raises(ModelError) as refused:
        blend(load_model("tiny"), TUNED, alpha=0.5)
    assert refused.value.key == "tiny"


def test_settings_that_are_written_out_and_left_out_are_one_architecture() -> None:
    written = dual(2)
    written.config["vision_cfg"] |= {"mlp_ratio": 4.0}
    written.config["text_cfg"] |= {"mlp_ratio": 4.0, "pool_type": "argmax"}
    del written.config["custom_text"]
    assert blend(BASE, written, alpha=0).tensor_digest() == BASE.tensor_digest()


@pytest.mark.parametrize(
    "change",
    [
        {"vocab": "reversed"},
        {"do_lower_case": False},
        {"hidden_act": "relu"},
        {"intermediate_size": 48},
    ],
    ids=str,
)
def test_text_towers_of_one_name_whose_files_differ_do_not_blend(change: dict, tmp_path: Path) -> None:
    from transformers import BertTokenizerFast

    folder = tmp_path / "bert"
    base = hf_dual(tmp_path)
    copy = load_model(save_checkpoint(tmp_path / "copy", base, meta={}))
    assert blend(base, copy, alpha=1).tensor_digest() == copy.tensor_digest()
    settings = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(settings))
    words = (folder / "vocab.txt").read_text().split("\n")
    ids = {word: i for i, word in enumerate(words[:7] + words[:6:-1] if "vocab" in change else words)}
    lower = change.get("do_lower_case", True)
    BertTokenizerFast(vocab=ids, do_lower_case=lower).save_pretrained(folder)
    with pytest.raises(ModelError) as refused:
        blend(base, from_factory(base.config), alpha=0.5)
    assert refused.value.key == "small"


@pytest.mark.parametrize("differs", ["similarity", "preprocess"])
def test_a_blend_warns_where_its_base_is_used_in_another_way(
    differs: str, caplog: pytest.LogCaptureFixture
) -> None:
    tuned = dual(2, squash=differs == "preprocess")
    tuned.similarity = "dot" if differs == "similarity" else "cosine"
    mixed = blend(BASE, tuned, alpha=0.5)
    assert (mixed.similarity, mixed.preprocess) == (tuned.similarity, tuned.preprocess)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    caplog.clear()
    blend(BASE, TUNED, alpha=0.5)
    assert not caplog.records


@pytest.mark.parametrize("squash", [False, True])
def test_an_exported_clip_model_gives_the_same_features_in_transformers(
    squash: bool, tmp_path: Path, real_ihc: np.ndarray
) -> None:
    from transformers import CLIPImageProcessorPil, CLIPModel

    model = dual(3, squash=squash)
    folder = to_transformers_folder(model, tmp_path)
    theirs = CLIPModel.from_pretrained(folder).eval()
    image = real_ihc[:200]
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(Image.fromarray(image), return_tensors="pt")[
        "pixel_values"
    ]
    ours = model.preprocess(image)[None]
    torch.testing.assert_close(ours, pixels, atol=1e-5, rtol=0)
    tokens = model.tokenizer.tokenizer(CAPTIONS, context_length=24)
    with torch.no_grad():
        features = theirs.get_image_features(pixel_values=ours).pooler_output
        torch.testing.assert_close(model.encode_image(ours, normalize=False), features, atol=1e-5, rtol=0)
        text = theirs.get_text_features(input_ids=tokens).pooler_output
        torch.testing.assert_close(model.encode_text(CAPTIONS, normalize=False), text, atol=1e-5, rtol=0)


@pytest.mark.parametrize("squash", [False, True])
def test_an_export_to_transformers_comes_back_the_same(squash: bool, tmp_path: Path) -> None:
    model = dual(2, squash=squash)
    again = from_transformers(to_transformers_folder(model, tmp_path), name="again")
    assert again.tensor_digest() == model.tensor_digest()
    assert again.preprocess == model.preprocess


def test_an_export_to_open_clip_is_what_open_clip_loads(tmp_path: Path) -> None:
    folder = export(TUNED, tmp_path / "out", format="open_clip", meta={})
    theirs = open_clip.create_model(f"local-dir:{folder}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(CAPTIONS)
    with torch.no_grad():
        torch.testing.assert_close(TUNED.encode_text(CAPTIONS, normalize=False), theirs.encode_text(tokens))


def test_an_export_names_the_setting_that_clip_model_cannot_represent(tmp_path: Path) -> None:
    source = wordpiece_folder(tmp_path / "bert")
    bert = dual(1, tokenizer=source, hf_tokenizer_name="bert-base-uncased")
    for model, key in (
        (load_model("tiny"), "timm_model_name"),
        (dual(1, proj_bias=True), "proj_bias"),
        (bert, "hf_tokenizer_name"),
    ):
        with pytest.raises(ModelError) as refused:
            to_transformers_folder(model, tmp_path / "out")
        assert refused.value.key == key
    assert not (tmp_path / "out").exists()
