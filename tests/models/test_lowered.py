"""Models in bf16 for inference: the features of fp32 but for rounding, and no slow products."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from model_factory import CAPTIONS, dual, hf_dual, native_config
from torch.profiler import ProfilerActivity, profile

from his2lip.evaluation.encoders import ModelEncoder, SentenceEncoder
from his2lip.models import load_model
from his2lip.models.adapters import add_lora
from his2lip.models.encoder import DualEncoder


def images(model: DualEncoder, n: int = 5) -> torch.Tensor:
    return torch.randn(n, 3, *model.preprocess.size, generator=torch.Generator().manual_seed(0))


def with_lora() -> DualEncoder:
    model = dual()
    add_lora(model, rank=2)
    return model.eval()


@pytest.mark.parametrize("kind", ["clip", "custom text", "biomedclip", "lora", "tiny"])
def test_features_are_those_of_fp32_but_for_rounding(kind: str, tmp_path: Path) -> None:
    model = {
        "clip": lambda: dual().eval(),
        "custom text": lambda: dual(native_config(custom_text=True)).eval(),
        "biomedclip": lambda: hf_dual(tmp_path).eval(),
        "lora": with_lora,
        "tiny": lambda: load_model("tiny").eval(),
    }[kind]()
    model.precision = "bf16"
    weights = model.tensor_digest()
    lowered = model.lowered()
    assert lowered is not model
    assert lowered.lowered() is lowered
    assert {p.dtype for p in lowered.parameters()} == {torch.bfloat16}
    assert lowered.tensor_digest() == model.tensor_digest() == weights
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    model.precision = "fp32"
    assert model.lowered() is model
    with torch.inference_mode():
        pairs = [
            (lowered.encode_image(images(model)), model.encode_image(images(model))),
            (lowered.encode_text(CAPTIONS), model.encode_text(CAPTIONS)),
        ]
    for found, exact in pairs:
        assert found.dtype == torch.float32
        distance = (found - exact).norm(dim=1)
        assert 0 < distance.max() < 3e-2  # the tolerance of `report --verify images` in bf16


def test_features_of_another_arithmetic_are_never_mixed() -> None:
    model = load_model("tiny", precision="bf16").eval()
    forms = [load_model("tiny").eval(), model, model.lowered()]
    assert len({ModelEncoder(form).key for form in forms}) == 3
    assert len({SentenceEncoder(form).key for form in forms}) == 3


@pytest.mark.parametrize("frozen", [False, True])
def test_weights_are_not_copied_for_each_image(frozen: bool) -> None:
    """torch does that (in `bmm`) where weights do not ask for gradients."""
    model = dual()
    model.precision = "bf16"
    if frozen:
        model.requires_grad_(False)
    with torch.inference_mode():  # a caller may already be in it
        lowered = model.lowered()
        shown, tokens = images(model), model.tokenize(CAPTIONS)
        for own, call in (
            (2 * 2, lambda: lowered.encode_image(shown)),
            (0, lambda: lowered.encode_text(tokens)),
        ):
            with profile(activities=[ProfilerActivity.CPU]) as profiled:
                call()
            calls = Counter({event.key: event.count for event in profiled.key_averages()})
            assert calls["aten::addmm"] > 0
            assert calls["aten::bmm"] == own  # those of attention: two in each of two layers
