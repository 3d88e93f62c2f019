"""Another image size: interpolated positions, and a checkpoint that open_clip loads at that size."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch
from model_factory import dual, native_config

from his2lip.errors import ConfigError
from his2lip.models.checkpoint import save_checkpoint
from his2lip.models.image_size import set_image_size
from his2lip.models.load import load_model


def test_positions_keep_the_class_token_and_interpolate_the_grid() -> None:
    model = dual()
    before = model.clip.visual.positional_embedding.detach().clone()
    set_image_size(model, 64)
    after = model.clip.visual.positional_embedding
    assert (before.shape[0], after.shape[0]) == (1 + 2 * 2, 1 + 4 * 4)
    assert torch.equal(after[0], before[0])
    # Bicubic interpolation keeps the mean of a symmetric grid about where it was.
    torch.testing.assert_close(after[1:].mean(0), before[1:].mean(0), atol=0.05, rtol=0)
    assert model.encode_image(torch.randn(2, 3, 64, 64)).shape == (2, model.dim)


def test_open_clip_itself_loads_the_checkpoint_at_its_size(tmp_path: Path) -> None:
    model = dual().eval()
    set_image_size(model, 48)
    folder = save_checkpoint(tmp_path / "checkpoint", model, meta={})
    tree = json.loads((folder / "open_clip_config.json").read_text())
    assert (tree["model_cfg"]["vision_cfg"]["image_size"], tree["preprocess_cfg"]["size"]) == (48, 48)
    loaded, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    assert preprocess.transforms[0].size in (48, (48, 48))
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, wanted = loaded.eval().encode_image(images), model.encode_image(images, normalize=False)
    torch.testing.assert_close(found, wanted)
    again = load_model(folder)
    assert again.tensor_digest() == model.tensor_digest()
    set_image_size(again, 48)  # as a resumed run does
    assert again.tensor_digest() == model.tensor_digest()


def test_a_convolutional_tower_reads_any_size(tmp_path: Path) -> None:
    model = load_model("tiny")
    set_image_size(model, 96)
    again = load_model(save_checkpoint(tmp_path / "checkpoint", model, meta={}))
    assert again.preprocess.size == (96, 96)
    assert again.encode_image(torch.randn(1, 3, 96, 96)).shape == (1, again.dim)


def test_a_timm_vit_takes_the_sizes_that_timm_has_a_name_for(tmp_path: Path) -> None:
    config = native_config(custom_text=True) | {
        "vision_cfg": {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "", "image_size": 224}
    }
    model = dual(config)
    set_image_size(model, 384)
    again = load_model(save_checkpoint(tmp_path / "checkpoint", model, meta={}))
    assert again.config["vision_cfg"]["timm_model_name"] == "vit_tiny_patch16_384"
    assert again.tensor_digest() == model.tensor_digest()
    with pytest.raises(ConfigError) as refused:
        set_image_size(model, 160)
    assert refused.value.key == "model.image_size"
    assert "384 px" in str(refused.value.fix)


def test_a_size_that_patches_do_not_divide_and_a_fixed_size_are_refused() -> None:
    with pytest.raises(ConfigError) as refused:
        set_image_size(dual(), 40)
    assert refused.value.key == "model.image_size"
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None, "head_width": 32}
    with pytest.raises(ConfigError) as refused:
        set_image_size(dual(native_config() | {"vision_cfg": vision}), 64)
    assert refused.value.key == "model.image_size"
