"""Frozen towers do not change, lower layers have lower rates, recomputed blocks give the same gradient."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
from model_factory import CAPTIONS, dual, hf_dual, native_config
from torch import nn
from transformers import MT5Config, MT5EncoderModel

from his2lip.errors import ConfigError
from his2lip.models.adapters import add_heads, add_lora
from his2lip.models.encoder import DualEncoder
from his2lip.models.finetune import freeze, layers_below_top, parameter_groups, recompute_blocks
from his2lip.models.load import load_model

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
def test_a_frozen_towers_features_stay_while_the_others_change(tower: str) -> None:
    model = dual()
    freeze(model, tower)
    before = dict(zip(("image", "text"), features(model), strict=True))
    train_a_step(model)
    after = dict(zip(("image", "text"), features(model), strict=True))
    other = "text" if tower == "image" else "image"
    assert torch.equal(before[tower], after[tower])
    assert not torch.allclose(before[other], after[other])


def test_training_mode_leaves_the_batch_statistics_of_frozen_parts() -> None:
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None, "head_width": 32}
    model = dual(native_config() | {"vision_cfg": vision})
    model.train()
    assert model.clip.visual.training
    freeze(model, "image")
    model.train()
    before = model.clip.visual.bn1.running_mean.clone()
    model.encode_image(IMAGES)
    assert torch.equal(model.clip.visual.bn1.running_mean, before)
    assert model.clip.transformer.training


def test_a_frozen_tower_applies_no_dropout_below_a_head_that_is_trained(tmp_path: Path) -> None:
    model = hf_dual(tmp_path)
    freeze(model, "text")
    add_heads(model)
    model.train()
    first, second = (model.encode_text(CAPTIONS, normalize=False) for _ in range(2))
    assert first.requires_grad
    assert torch.equal(first, second)
    assert model.clip.visual.training


def test_layer_decay_lowers_the_rate_of_lower_layers() -> None:
    model = dual()
    groups = parameter_groups(model, weight_decay=0.1, layer_decay=0.5)
    rate = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
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


def test_patch_embeddings_of_a_biomedclip_type_are_the_lowest_layer(tmp_path: Path) -> None:
    found = layers_below_top(hf_dual(tmp_path).clip)
    last = max(int(name.split(".")[3]) for name in found if name.startswith("visual.trunk.blocks."))
    assert found["visual.trunk.patch_embed.proj.weight"] == last + 2
    assert found[f"visual.trunk.blocks.{last}.mlp.fc1.weight"] == 1
    assert found["text.transformer.embeddings.word_embeddings.weight"] == 3
    assert found["visual.head.proj.weight"] == found["text.proj.0.weight"] == 0


@pytest.mark.parametrize(
    ("architecture", "wanted"),
    [
        (
            "RN50",
            {
                "visual.attnpool.q_proj.weight": 0,
                "visual.layer4.2.bn2.weight": 1,
                "visual.layer1.0.conv1.weight": 4,
                "visual.conv1.weight": 5,
                "visual.bn2.weight": 5,
            },
        ),
        (
            "ViT-B-16-SigLIP",
            {
                "visual.trunk.attn_pool.latent": 0,
                "visual.trunk.attn_pool.mlp.fc1.weight": 0,
                "visual.trunk.blocks.11.mlp.fc1.weight": 1,
                "visual.trunk.pos_embed": 13,
            },
        ),
        (
            "MobileCLIP-S1",
            {
                "visual.trunk.final_conv.se.fc1.weight": 0,
                "visual.trunk.stages.3.blocks.0.mlp.fc1.weight": 1,
                "visual.trunk.stem.0.conv_kxk.0.conv.weight": 5,
            },
        ),
    ],
)
def test_pooling_is_above_the_last_block_and_the_stages_of_a_resnet_are_blocks(
    architecture: str, wanted: dict[str, int]
) -> None:
    config = open_clip.get_model_config(architecture)
    assert config is not None
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    with torch.device("meta"):
        found = layers_below_top(kind(**config))
    assert {name: found[name] for name in wanted} == wanted


def test_each_block_of_a_t5_text_tower_is_one_layer() -> None:
    clip, small = nn.Module(), MT5Config(d_model=8, d_kv=4, d_ff=8, num_layers=3, num_heads=2, vocab_size=9)
    clip.text = nn.Module()
    clip.text.transformer = MT5EncoderModel(small)
    found = layers_below_top(clip)
    begin = "text.transformer.encoder"
    assert found[f"{begin}.final_layer_norm.weight"] == 0
    assert [found[f"{begin}.block.{i}.layer.{j}.layer_norm.weight"] for i in range(3) for j in (0, 1)] == [
        *(3, 3),
        *(2, 2),
        *(1, 1),
    ]
    assert found["text.transformer.shared.weight"] == 4


def test_without_layer_decay_all_rates_are_equal() -> None:
    groups = parameter_groups(load_model("tiny"), weight_decay=0.1)
    assert {(g["lr_scale"], g["weight_decay"]) for g in groups} == {(1.0, 0.0), (1.0, 0.1)}


@pytest.mark.parametrize("decay", [0.0, -1.0, 1.5])
def test_a_senseless_layer_decay_is_refused(decay: float) -> None:
    with pytest.raises(ConfigError) as refused:
        parameter_groups(dual(), weight_decay=0.0, layer_decay=decay)
    assert refused.value.key == "finetune.layer_decay"


def step_with_dropout(model: DualEncoder) -> tuple[int, dict[str, torch.Tensor]]:
    """Bytes of all tensors that the forward keeps for the backward, and the gradient."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(0)
    model.train()
    images = torch.randn(6, 3, *model.preprocess.size)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        image, text = model(images, model.tokenize(CAPTIONS * 2))
        value = image.pow(2).sum() + text.pow(2).sum()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    value.backward()
    gradient = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return sum(size for place, size in kept.items() if place not in weights), gradient


@pytest.mark.parametrize("kind", ["native", "biomedclip", "tiny", "lora"])
def test_recomputed_blocks_keep_less_for_the_same_gradient(kind: str, tmp_path: Path) -> None:
    def make() -> DualEncoder:
        if kind == "tiny":
            return load_model("tiny")
        model = hf_dual(tmp_path) if kind == "biomedclip" else dual()
        if kind == "lora":
            add_lora(model, rank=2)
            for name, p in model.named_parameters():
                if name.endswith(".b"):
                    torch.nn.init.normal_(p, generator=torch.Generator().manual_seed(0))
        return model

    whole, wanted = step_with_dropout(make())
    model = make()
    recompute_blocks(model)
    saving, found = step_with_dropout(model)
    assert saving < 0.7 * whole
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert torch.equal(found[name], wanted[name]), name
