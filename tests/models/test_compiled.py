"""Compiled blocks: which they are, and that weights, features and gradients stay what they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from model_factory import CAPTIONS, dual, hf_dual, native_config

from his2lip.models import DualEncoder, load_model
from his2lip.models.compiled import compile_blocks


def compiled(model: DualEncoder) -> set[str]:
    return {name for name, module in model.named_modules() if module._compiled_call_impl is not None}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("clip", {"visual.transformer.resblocks", "transformer.resblocks"}),
        ("custom text", {"visual.transformer.resblocks", "text.transformer.resblocks"}),
        ("biomedclip", {"visual.trunk.blocks", "text.transformer.encoder.layer"}),
    ],
)
def test_the_blocks_of_both_towers_are_compiled_and_weights_keep_their_names(
    kind: str, expected: set[str], tmp_path: Path
) -> None:
    model = {
        "clip": dual,
        "custom text": lambda: dual(native_config(custom_text=True)),
        "biomedclip": lambda: hf_dual(tmp_path),
    }[kind]()
    names, digest = list(model.state_dict()), model.tensor_digest()
    count = compile_blocks(model)
    found = compiled(model)
    assert len(found) == count
    assert {name.removeprefix("clip.").rpartition(".")[0] for name in found} == expected
    assert list(model.state_dict()) == names
    assert model.tensor_digest() == digest


def test_stages_of_other_shapes_are_not_compiled() -> None:
    """The tiny image tower is a convolutional network; its text tower has two equal blocks."""
    model = load_model("tiny")
    assert compile_blocks(model) == 2
    assert all("resblocks" in name for name in compiled(model))


@pytest.mark.slow
def test_features_and_gradients_are_those_of_the_model_but_for_rounding() -> None:
    """At two lengths of captions, in training and in inference."""
    found = []
    for use in (False, True):
        model = dual().train()
        if use:
            compile_blocks(model)
        images = torch.randn(3, 3, *model.preprocess.size, generator=torch.Generator().manual_seed(0))
        outputs = []
        for captions in (CAPTIONS, [c[:12] for c in CAPTIONS]):
            features = model(images, model.tokenize(captions))
            (features[0] * features[1]).sum().backward()
            outputs += features
        outputs += [p.grad for p in model.parameters() if p.grad is not None]
        with torch.inference_mode():
            outputs.append(model.eval().encode_image(images))
        found.append(outputs)
    assert len(found[0]) == len(found[1]) > 20
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
