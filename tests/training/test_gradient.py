"""Gradient accumulation, seeds, and the mean of gradients over ranks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from his2lip.loss.wise import WISELoss
from his2lip.training import gradient
from his2lip.training.gradient import accumulate, average_gradients, seed_everything


class TwoTowers(nn.Module):
    """A small dual encoder in float64, with optional dropout, which counts what it embeds."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image = nn.Sequential(
            nn.Flatten(), nn.Linear(48, 32), nn.GELU(), nn.Dropout(dropout), nn.Linear(32, 8)
        )
        self.text = nn.Sequential(
            nn.Embedding(50, 16), nn.Flatten(), nn.Dropout(dropout), nn.Linear(16 * 5, 8)
        )
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
        self.double()

    def forward(self, images: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.image(images), self.text(tokens)


def batch(n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    images = torch.randn(n, 3, 4, 4, dtype=torch.float64, generator=generator)
    tokens = torch.randint(0, 50, (n, 5), generator=generator)
    tissue = torch.randint(0, 3, (n,), generator=generator)
    return images, tokens, tissue, torch.randint(0, 3, (n,), generator=generator)


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], *, atol: float) -> None:
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-9, atol=atol, msg=name)


def run(model: TwoTowers, n: int, piece: int | None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    images, tokens, tissue, biomarker = batch(n)
    loss = WISELoss()
    model.zero_grad()
    value = accumulate(
        model,
        lambda i, t: loss(i, t, tissue, biomarker, model.logit_scale).total,
        images,
        tokens,
        piece=piece,
        seed=(0, 1, 2),
    )
    return value, gradients(model)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 20), piece=st.integers(1, 20))
def test_pieces_of_any_size_give_the_gradient_of_the_whole_batch(n: int, piece: int) -> None:
    model = TwoTowers()
    whole, wanted = run(model, n, None)
    value, found = run(model, n, piece)
    torch.testing.assert_close(value, whole, rtol=1e-12, atol=0)
    assert "logit_scale" in wanted
    assert_same(found, wanted, atol=1e-12)


def test_the_mean_of_the_losses_of_the_pieces_has_another_gradient() -> None:
    """Shows that the test above can fail: the simple way of accumulation gives another gradient."""
    model = TwoTowers()
    _, wanted = run(model, 8, None)
    images, tokens, tissue, biomarker = batch(8)
    loss = WISELoss()
    model.zero_grad()
    for half in (slice(0, 4), slice(4, 8)):
        image, text = model(images[half], tokens[half])
        (loss(image, text, tissue[half], biomarker[half], model.logit_scale).total / 2).backward()
    assert (gradients(model)["image.1.weight"] - wanted["image.1.weight"]).abs().max() > 1e-4


def test_pieces_with_dropout_give_the_gradient_of_one_graph_with_the_same_masks() -> None:
    model = TwoTowers(dropout=0.3).train()
    _, found = run(model, 12, 5)
    images, tokens, tissue, biomarker = batch(12)
    model.zero_grad()
    pieces = []
    for i, start in enumerate(range(0, 12, 5)):  # all pieces in one graph, without cached gradients
        seed_everything(0, 1, 2, i)
        pieces.append(model(images[start : start + 5], tokens[start : start + 5]))
    image, text = (torch.cat(side) for side in zip(*pieces, strict=True))
    WISELoss()(image, text, tissue, biomarker, model.logit_scale).total.backward()
    assert_same(found, gradients(model), atol=1e-12)


def test_a_frozen_image_tower_gets_no_gradient_and_the_text_tower_gets_the_whole_batchs() -> None:
    model = TwoTowers()
    model.image.requires_grad_(False)
    _, wanted = run(model, 9, None)
    _, found = run(model, 9, 4)
    assert not any(name.startswith("image") for name in found)
    assert_same(found, wanted, atol=1e-12)


def test_every_part_of_the_key_changes_the_seed() -> None:
    draws = []
    for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 10, 0), (0, 1, 0, 0)]:
        seed_everything(*key)
        draws.append(torch.rand(1).item())
    assert len(set(draws)) == len(draws)
    seed_everything(0, 1, 0)
    assert torch.rand(1).item() == draws[2]


def test_one_rank_averages_nothing() -> None:
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    average_gradients([parameter], world=1)
    assert parameter.grad.tolist() == [1.0, 1.0]


def test_buckets_keep_the_order_have_one_dtype_and_a_limited_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient, "_BUCKET", 10)
    sizes = [4, 4, 4, 30, 2, 2]
    tensors = [torch.zeros(n) for n in sizes] + [torch.zeros(2, dtype=torch.float64)]
    buckets = list(gradient._buckets(tensors))
    assert [[t.numel() for t in bucket] for bucket in buckets] == [[4, 4], [4], [30], [2, 2], [2]]
    assert [t.data_ptr() for bucket in buckets for t in bucket] == [t.data_ptr() for t in tensors]
