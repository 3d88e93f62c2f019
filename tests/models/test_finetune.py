"""Frozen towers stay, adapters train little and merge back, deeper layers learn faster."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from model_factory import CAPTIONS, native_config

from his2lip.errors import ConfigError
from his2lip.models import load_model, save_checkpoint
from his2lip.models.build import build_clip, build_tokenizer
from his2lip.models.encoder import DualEncoder
from his2lip.models.finetune import add_lora, freeze, merge_lora, parameter_groups
from his2lip.models.preprocess import Preprocess


def dual() -> DualEncoder:
    config = native_config()
    preprocess = Preprocess(size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    clip = build_clip(config, seed=1)
    return DualEncoder(
        clip, name="small", config=config, preprocess=preprocess, tokenizer=build_tokenizer(config)
    )


IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def features(model: DualEncoder) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        return model(IMAGES, model.tokenize(CAPTIONS))


def train_a_step(model: DualEncoder) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    image, text = model(IMAGES, model.tokenize(CAPTIONS))
    (model.logit_scale * (image * text).sum()).backward()
    optimizer.step()


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_frozen_towers_features_stay_while_the_other_learns(tower: str) -> None:
    model = dual()
    freeze(model, **{tower: True})
    before = dict(zip(("image", "text"), features(model), strict=True))
    train_a_step(model)
    after = dict(zip(("image", "text"), features(model), strict=True))
    other = "text" if tower == "image" else "image"
    assert torch.equal(before[tower], after[tower])
    assert not torch.allclose(before[other], after[other])


def test_layer_decay_slows_what_is_deep_below() -> None:
    model = dual()
    groups = parameter_groups(model, lr=1.0, weight_decay=0.1, layer_decay=0.5)
    rate = {id(p): g["lr"] for g in groups for p in g["params"]}
    rates = {name: rate[id(p)] for name, p in model.clip.named_parameters()}
    assert len(rate) == len(rates)
    wanted = {
        "visual.proj": 1.0,
        "visual.ln_post.weight": 1.0,
        "visual.transformer.resblocks.1.mlp.c_fc.weight": 0.5,
        "visual.transformer.resblocks.0.mlp.c_fc.weight": 0.25,
        "visual.conv1.weight": 0.125,
        "visual.positional_embedding": 0.125,
        "text_projection": 1.0,
        "ln_final.bias": 1.0,
        "transformer.resblocks.1.ln_1.weight": 0.5,
        "token_embedding.weight": 0.125,
        "logit_scale": 1.0,
    }
    assert {name: rates[name] for name in wanted} == wanted
    assert all(g["weight_decay"] == (0.1 if g["params"][0].ndim >= 2 else 0) for g in groups)


def test_without_layer_decay_all_learn_alike() -> None:
    groups = parameter_groups(load_model("tiny"), lr=2.0, weight_decay=0.1)
    assert {g["lr"] for g in groups} == {2.0}


@pytest.mark.parametrize("decay", [0.0, -1.0, 1.5])
def test_a_senseless_layer_decay_is_refused(decay: float) -> None:
    with pytest.raises(ConfigError, match="layer_decay"):
        parameter_groups(dual(), lr=1.0, weight_decay=0.0, layer_decay=decay)


def test_adapters_change_nothing_at_first_train_little_and_merge_into_open_clips_names(
    tmp_path: Path,
) -> None:
    model, plain = dual().eval(), dual().eval()
    names = set(plain.clip.state_dict())
    add_lora(model, rank=2)
    for adapted, before in zip(features(model), features(plain), strict=True):
        torch.testing.assert_close(adapted, before)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained < 0.02 * sum(p.numel() for p in plain.parameters())

    train_a_step(model.train())
    adapted = features(model.eval())
    assert not torch.allclose(adapted[0], features(plain)[0])
    saved = load_model(save_checkpoint(tmp_path / "checkpoint", model, meta={}))
    digest = model.tensor_digest()
    merge_lora(model)
    assert model.tensor_digest() == saved.tensor_digest() == digest
    assert set(model.clip.state_dict()) == names
    for merged, before in zip(features(model), adapted, strict=True):
        torch.testing.assert_close(merged, before)


def test_every_adapter_trains_the_output_projection_too() -> None:
    model = dual()
    add_lora(model, rank=2)
    image, text = model(IMAGES, model.tokenize(CAPTIONS))
    (image.pow(2).sum() + text.pow(2).sum()).backward()
    adapters = [(n, p) for n, p in model.clip.named_parameters() if n.endswith(".b")]
    assert len(adapters) == 4 * (2 + 2)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for _, p in adapters)


def test_a_model_without_transformers_takes_no_adapters_and_a_rank_is_positive() -> None:
    with pytest.raises(ConfigError, match="rank"):
        add_lora(dual(), rank=0)
    convolutional = dual()
    convolutional.clip = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
    with pytest.raises(ConfigError, match="no open_clip transformer"):
        add_lora(convolutional, rank=2)
