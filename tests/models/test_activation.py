"""GELU or QuickGELU: the activation of a pretrained tag is used, and what does not record one is refused."""

from __future__ import annotations

import warnings
from pathlib import Path

import open_clip
import pytest
import torch
from model_factory import hf_cache, native_config
from safetensors.torch import save_file

from his2lip.errors import ModelError
from his2lip.models.architecture import build_clip
from his2lip.models.exchange import from_open_clip
from his2lip.models.load import config_of_tag, load_model


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights of small architectures with GELU and QuickGELU, which open_clip knows under the tag `quick`."""
    plain = native_config() | {"quick_gelu": False}
    configs = {"small": plain, "small-quickgelu": plain | {"quick_gelu": True}}
    for name, config in configs.items():
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, config)
        tags = {
            "quick": open_clip.pretrained._pcfg(hf_hub="org/small/", quick_gelu=True),
            "plain": open_clip.pretrained._pcfg(hf_hub="org/small/"),
        }
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, name, tags)
    (tmp_path / "hub").mkdir()
    file = tmp_path / "hub" / "open_clip_model.safetensors"
    save_file(build_clip(configs["small-quickgelu"], seed=4).state_dict(), file)
    hf_cache(tmp_path / "cache", "org/small", tmp_path / "hub", monkeypatch)
    return file


def test_a_tag_is_loaded_with_the_activation_that_it_was_trained_with(weights: Path) -> None:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = build_clip(native_config() | {"quick_gelu": True}, seed=4).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = load_model("small:quick")
    with torch.no_grad():
        torch.testing.assert_close(model.encode_image(images, normalize=False), expected.encode_image(images))
    assert model.config["quick_gelu"] is True
    assert model.config_digest() == load_model("small-quickgelu:quick").config_digest()
    assert load_model("small:plain").config_digest() != model.config_digest()


def test_a_tag_of_gelu_for_an_architecture_with_quick_gelu_is_refused(weights: Path) -> None:
    with pytest.raises(ModelError) as refused:
        load_model("small-quickgelu:plain")
    assert refused.value.key == "quick_gelu"


def test_a_state_dict_needs_a_tag_where_its_activation_is_not_recorded(weights: Path) -> None:
    with pytest.raises(ModelError) as refused:
        from_open_clip(weights, architecture="small")
    assert (refused.value.key, refused.value.where) == ("quick_gelu", weights)
    quick = [from_open_clip(weights, architecture=name) for name in ("small:quick", "small-quickgelu")]
    assert [model.config["quick_gelu"] for model in quick] == [True, True]
    assert not from_open_clip(weights, architecture="small:plain").config["quick_gelu"]


def test_every_tag_of_open_clip_has_the_activation_of_its_table() -> None:
    refused = []
    for architecture, tag in open_clip.list_pretrained():
        quick = bool(open_clip.pretrained.get_pretrained_cfg(architecture, tag).get("quick_gelu"))
        try:
            assert bool(config_of_tag(architecture, tag).get("quick_gelu")) == quick
        except ModelError:
            refused.append(f"{architecture}:{tag}")
    assert refused == ["roberta-ViT-B-32:laion2b_s12b_b32k"]
    assert config_of_tag("ViT-B-32", "openai")["quick_gelu"]
