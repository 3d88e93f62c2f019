"""Adapters and heads: what they train, and that they fold into the tensors that open_clip knows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from model_factory import CAPTIONS, dual, hf_dual, native_config

from his2lip.errors import CheckpointError, ConfigError
from his2lip.models.adapters import add_heads, add_lora, merge, unmerged_state
from his2lip.models.checkpoint import save_checkpoint
from his2lip.models.encoder import DualEncoder
from his2lip.models.finetune import freeze
from his2lip.models.load import load_model
from his2lip.models.resume import restore_unmerged


def features(model: DualEncoder) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        return model(images(model), model.tokenize(CAPTIONS))


def images(model: DualEncoder) -> torch.Tensor:
    return torch.randn(3, 3, *model.preprocess.size, generator=torch.Generator().manual_seed(0))


def train_a_step(model: DualEncoder) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    image, text = model(images(model), model.tokenize(CAPTIONS))
    (model.logit_scale * (image * text).sum()).backward()
    optimizer.step()


def test_adapters_start_neutral_train_few_parameters_and_merge_into_open_clips_tensors(
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
    merge(model)
    assert model.tensor_digest() == saved.tensor_digest() == digest
    assert set(model.clip.state_dict()) == names
    for merged, before in zip(features(model), adapted, strict=True):
        torch.testing.assert_close(merged, before)


@pytest.mark.parametrize("kind", ["native", "biomedclip"])
def test_every_adapter_of_both_towers_trains(kind: str, tmp_path: Path) -> None:
    model = dual() if kind == "native" else hf_dual(tmp_path)
    add_lora(model, rank=2)
    image, text = model(images(model), model.tokenize(CAPTIONS))
    (image.pow(2).sum() + text.pow(2).sum()).backward()
    adapters = [(n, p) for n, p in model.clip.named_parameters() if n.endswith(".b")]
    blocks = len({n.split(".parametrizations")[0].rsplit(".", 2)[0] for n, _ in adapters})
    assert len(adapters) == (16 if kind == "native" else 4 * len(model.clip.visual.trunk.blocks) + 6 * 2)
    assert blocks > 2
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for _, p in adapters)


def test_the_change_by_adapters_is_proportional_to_alpha_over_rank() -> None:
    changes = []
    for alpha in (None, 2.0, 8.0):
        model = dual()
        add_lora(model, rank=4, alpha=alpha)
        before = model.clip.transformer.resblocks[0].mlp.c_fc.weight.detach().clone()
        for name, p in model.named_parameters():
            if name.endswith(".b"):
                torch.nn.init.ones_(p)
        changes.append((model.clip.transformer.resblocks[0].mlp.c_fc.weight - before).norm().item())
    assert changes[1] == pytest.approx(changes[0] / 2, rel=1e-4)
    assert changes[2] == pytest.approx(changes[0] * 2, rel=1e-4)


def test_a_frozen_tower_takes_no_adapters() -> None:
    model = dual()
    freeze(model, "text")
    add_lora(model, rank=2)
    learning = [n for n, p in model.clip.named_parameters() if p.requires_grad and n != "logit_scale"]
    assert learning
    assert all(n.startswith("visual.") for n in learning)


@pytest.mark.parametrize(
    ("name", "rank", "alpha", "key"),
    [
        ("ViT", 0, None, "finetune.lora.rank"),
        ("ViT", 2, 0, "finetune.lora.alpha"),
        ("tiny", 2, None, "finetune.lora"),  # its image tower has no transformer block
    ],
)
def test_adapters_of_senseless_size_or_without_a_block_are_refused(
    name: str, rank: int, alpha: float | None, key: str
) -> None:
    model = load_model("tiny") if name == "tiny" else dual()
    with pytest.raises(ConfigError) as refused:
        add_lora(model, rank=rank, alpha=alpha)
    assert refused.value.key == key


@pytest.mark.parametrize("kind", ["native", "custom", "biomedclip", "tiny"])
def test_heads_are_a_linear_map_of_the_features_and_fold_into_open_clips_tensors(
    kind: str, tmp_path: Path
) -> None:
    def make() -> DualEncoder:
        kinds = {"native": dual, "tiny": lambda: load_model("tiny"), "biomedclip": lambda: hf_dual(tmp_path)}
        return kinds.get(kind, lambda: dual(native_config(custom_text=True)))().eval()

    model, plain = make(), make()
    add_heads(model, seed=3)
    heads = [p for n, p in model.named_parameters() if n.endswith("head") and p.shape == (model.dim,) * 2]
    assert len(heads) == 2
    for headed, before, head in zip(features(model), features(plain), heads, strict=True):
        torch.testing.assert_close(headed, before @ head.detach().t(), atol=1e-5, rtol=1e-4)
        assert head.abs().max() <= model.dim**-0.5
    train_a_step(model.train())
    saved = load_model(save_checkpoint(tmp_path / "checkpoint", model, meta={}))
    assert set(saved.clip.state_dict()) == set(plain.clip.state_dict())
    for again, before in zip(features(saved), features(model.eval()), strict=True):
        torch.testing.assert_close(again, before)


def test_heads_after_a_frozen_tower_are_trained() -> None:
    model = dual()
    freeze(model, "image")
    add_heads(model)
    learning = [n for n, p in model.clip.named_parameters() if p.requires_grad and n.startswith("visual.")]
    assert learning == ["visual.parametrizations.proj.0.head"]


def test_adapters_and_heads_are_restored_exactly_over_merged_weights() -> None:
    model = dual()
    add_lora(model, rank=2)
    add_heads(model)
    train_a_step(model)
    state = {name: tensor.clone() for name, tensor in unmerged_state(model).items()}
    again = dual()
    again.clip.load_state_dict({**again.clip.state_dict(), **plain_of(model)})
    add_lora(again, rank=2, seed=9)
    add_heads(again, seed=9)
    restore_unmerged(again, state)
    for name, tensor in model.clip.state_dict().items():
        assert torch.equal(again.clip.state_dict()[name], tensor), name


def plain_of(model: DualEncoder) -> dict[str, torch.Tensor]:
    from his2lip.models.encoder import plain_state

    return plain_state(model.clip)


def test_the_state_of_another_finetune_section_is_refused() -> None:
    model, adapted = dual(), dual()
    add_lora(adapted, rank=2)
    with pytest.raises(CheckpointError) as refused:
        restore_unmerged(model, unmerged_state(adapted))
    assert refused.value.key in unmerged_state(adapted)
