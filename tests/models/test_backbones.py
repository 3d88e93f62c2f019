"""Models by name, offline: what loads, what is refused, and what identifies a model."""

from __future__ import annotations

import open_clip
import pytest
import torch
from model_factory import native_config

from his2lip.errors import CheckpointError, ModelError
from his2lip.models.catalogue import BACKBONES
from his2lip.models.encoder import DualEncoder
from his2lip.models.load import load_model


@pytest.fixture(scope="module")
def tiny() -> DualEncoder:
    return load_model("tiny")


def test_tiny_needs_no_download_and_is_drawn_from_its_seed(tiny: DualEncoder) -> None:
    before = torch.get_rng_state()
    assert load_model("tiny", seed=0).tensor_digest() == tiny.tensor_digest()
    assert load_model("tiny", seed=1).tensor_digest() != tiny.tensor_digest()
    assert torch.equal(torch.get_rng_state(), before)


def test_tiny_has_a_few_million_parameters_at_64_px(tiny: DualEncoder) -> None:
    assert tiny.preprocess.size == (64, 64)
    assert 1e6 < sum(p.numel() for p in tiny.parameters()) < 6e6


def test_a_patchs_features_do_not_depend_on_its_batch(tiny: DualEncoder) -> None:
    """One worker and two must agree: there are no batch statistics, not even in training mode."""
    images = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    model = load_model("tiny").train()
    with torch.no_grad():
        whole = model.encode_image(images)
        parts = torch.cat([model.encode_image(images[:2]), model.encode_image(images[2:])])
    torch.testing.assert_close(whole, parts, atol=1e-6, rtol=1e-5)


def test_an_open_clip_architecture_without_a_tag_is_random_by_seed() -> None:
    model = load_model("ViT-S-32-alt", seed=3)
    assert model.preprocess.size == (224, 224)
    assert model.dim == 256
    assert load_model("ViT-S-32-alt", seed=3).tensor_digest() == model.tensor_digest()


def test_quick_gelu_is_another_model_with_the_same_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, quick_gelu in (("small", False), ("small-quickgelu", True)):
        config = native_config() | {"quick_gelu": quick_gelu}
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, config)
    assert not open_clip.get_model_config("ViT-B-32").get("quick_gelu", False)
    assert open_clip.get_model_config("ViT-B-32-quickgelu")["quick_gelu"]
    plain, quick = load_model("small"), load_model("small-quickgelu")
    assert plain.tensor_digest() == quick.tensor_digest()
    assert plain.config_digest() != quick.config_digest()


def test_the_tensor_digest_sees_values_names_dtypes_and_shapes(tiny: DualEncoder) -> None:
    from his2lip.models.encoder import tensor_digest

    one = {"a": torch.zeros(4), "b": torch.ones(())}
    others = [
        {"a": torch.tensor([0.0, 0.0, 0.0, -0.0]), "b": torch.ones(())},
        {"c": torch.zeros(4), "b": torch.ones(())},
        {"a": torch.zeros(2, 2), "b": torch.ones(())},
        {"a": torch.zeros(4, dtype=torch.int32), "b": torch.ones(())},
    ]
    assert len({tensor_digest(state) for state in [one, *others]}) == 5
    assert tensor_digest({"b": torch.ones(()), "a": torch.zeros(8)[::2]}) == tensor_digest(one)


@pytest.mark.parametrize(
    ("name", "key", "hint"),
    [
        ("tinny", "tinny", "tiny"),
        ("ViT-B-33", "ViT-B-33", "ViT-B-32"),
        ("ViT-B-32:opnai", "opnai", "openai"),
        ("RN50:nothing", "nothing", "yfcc15m"),
        ("clip", "clip", "local-dir:"),
        ("biomedclip", "biomedclip", "local-dir:"),
        ("plip", "plip", "PATH"),
        ("ViT-B-32:laion2b_e16", "ViT-B-32:laion2b_e16", "hf auth login"),
        ("hf-hub:nobody/nothing", "hf-hub:nobody/nothing", "hf auth login"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_named_with_a_way_out(name: str, key: str, hint: str) -> None:
    with pytest.raises(ModelError) as refused:
        load_model(name)
    assert refused.value.key == key
    assert hint in str(refused.value.fix)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["clip", "plip", "biomedclip"])
def test_absent_weights_are_named_with_their_source_and_licence(name: str) -> None:
    with pytest.raises(ModelError) as refused:
        load_model(name)
    assert BACKBONES[name].weights in str(refused.value)
    assert BACKBONES[name].licence in str(refused.value)


def test_a_folder_that_does_not_exist_is_named() -> None:
    with pytest.raises(CheckpointError) as refused:
        load_model("local-dir:/nowhere")
    assert str(refused.value.where) == "/nowhere"


def test_every_backbone_has_a_description_a_source_and_a_licence() -> None:
    for backbone in BACKBONES.values():
        assert all((backbone.what, backbone.weights, backbone.licence, backbone.fix)), backbone.name
