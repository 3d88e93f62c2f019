"""Preprocessing equals open_clip's own, and its two halves agree."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from his2lip.models.preprocess import Preprocess

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
CONFIGS = [
    PreprocessCfg(),
    PreprocessCfg(size=64, mean=MEAN, std=STD, interpolation="bilinear", resize_mode="squash"),
    PreprocessCfg(size=(96, 64), mean=MEAN, std=STD, resize_mode="shortest"),
    PreprocessCfg(size=80, mean=MEAN, std=STD, resize_mode="longest", fill_color=255),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.resize_mode}-{c.size}")
def test_equals_open_clips_own_transform_on_the_real_image(
    config: PreprocessCfg, real_ihc: np.ndarray
) -> None:
    image = Image.fromarray(real_ihc[:400, :300])
    theirs = image_transform_v2(config, is_train=False)(image)
    ours = Preprocess.from_open_clip(vars(config))
    assert torch.equal(ours(image), theirs)
    assert torch.equal(ours(np.asarray(image)), theirs)


def test_equals_the_transform_that_open_clip_makes_for_a_model(real_ihc: np.ndarray) -> None:
    model, _, theirs = open_clip.create_model_and_transforms("ViT-S-32-alt")
    ours = Preprocess.from_open_clip(model.visual.preprocess_cfg)
    assert torch.equal(ours(real_ihc), theirs(Image.fromarray(real_ihc)))


def test_a_batch_at_the_models_size_needs_only_normalize(real_ihc: np.ndarray) -> None:
    preprocess = Preprocess(size=(64, 64), mean=MEAN, std=STD)
    patches = [real_ihc[y : y + 64, y : y + 64] for y in (0, 100, 300)]
    batch = torch.from_numpy(np.stack(patches)).permute(0, 3, 1, 2)
    assert torch.equal(preprocess.normalize(batch), torch.stack([preprocess(p) for p in patches]))


def test_resize_then_normalize_is_the_whole_transform(real_ihc: np.ndarray) -> None:
    preprocess = Preprocess(size=(64, 64), mean=MEAN, std=STD, resize_mode="squash")
    small = preprocess.resize(real_ihc)
    assert small.shape == (64, 64, 3)
    assert small.dtype == np.uint8
    batch = torch.from_numpy(small.copy()).permute(2, 0, 1)[None]
    assert torch.equal(preprocess.normalize(batch)[0], preprocess(real_ihc))


@given(
    size=st.integers(8, 512) | st.tuples(st.integers(8, 512), st.integers(8, 512)),
    mode=st.sampled_from(["squash", "shortest", "longest"]),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
)
@settings(deadline=None)
def test_settings_survive_open_clips_config_file(size: object, mode: str, interpolation: str) -> None:
    first = Preprocess.from_open_clip({"size": size, "resize_mode": mode, "interpolation": interpolation})
    again = Preprocess.from_open_clip(first.to_open_clip())
    assert again == first
    assert again.digest == first.digest


def test_every_setting_changes_the_digest() -> None:
    plain = Preprocess(size=(64, 64), mean=MEAN, std=STD)
    others = [
        Preprocess(size=(64, 32), mean=MEAN, std=STD),
        Preprocess(size=(64, 64), mean=STD, std=STD),
        Preprocess(size=(64, 64), mean=MEAN, std=MEAN),
        Preprocess(size=(64, 64), mean=MEAN, std=STD, interpolation="bilinear"),
        Preprocess(size=(64, 64), mean=MEAN, std=STD, resize_mode="squash"),
    ]
    assert len({p.digest for p in [plain, *others]}) == len(others) + 1
