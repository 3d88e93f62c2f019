"""The memory-linear form equals the reference in values and gradients, and makes no N x N matrix."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from his2lip.loss.linear import unit_rows
from his2lip.loss.targets import SimilarityWeights
from his2lip.loss.wise import LossWeights, WISELoss

TOLERANCE = 1e-6  # relative, in float64


@st.composite
def batches(draw: st.DrawFn) -> tuple[torch.Tensor, ...]:
    """Features, labels and logit scale; includes batches of one class, missing labels, N = 1 and odd N."""
    n = draw(st.integers(1, 30))
    tissues = draw(st.sampled_from([[0], [-1], [0, 1, 2], [-1, 0, 1, 2, 3, 4, 5, 6]]))
    biomarkers = draw(st.sampled_from([[5], [-1], [0, 1], [-1, *range(12)]]))
    tissue = draw(st.lists(st.sampled_from(tissues), min_size=n, max_size=n))
    biomarker = draw(st.lists(st.sampled_from(biomarkers), min_size=n, max_size=n))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    spread = draw(st.sampled_from([0.01, 1.0, 8.0]))
    features = [spread * torch.randn(n, 5, generator=generator, dtype=torch.float64) for _ in range(2)]
    log_scale = draw(st.floats(-2, 6))
    return *features, torch.tensor(tissue), torch.tensor(biomarker), torch.tensor(log_scale).double()


weights = st.floats(0, 2)
losses = st.fixed_dictionaries(
    {
        "weights": st.builds(LossWeights, image_text=weights, image_image=weights, text_text=weights),
        "similarity": st.none()
        | st.just(SimilarityWeights())
        | st.builds(SimilarityWeights, tissue=weights, pair=weights, biomarker=weights)
        | st.builds(SimilarityWeights, biomarker=weights, finding=weights),
        "tau": st.sampled_from([0.01, 0.3, 1.0, 5.0]),
        "kappa": st.sampled_from([1.0, 7.0, "scale"]),
        "normalize": st.booleans(),
        "clamp": st.booleans(),
    }
)


def run(batch: tuple[torch.Tensor, ...], **options: Any) -> tuple[dict[str, float], list[torch.Tensor]]:
    image, text, tissue, biomarker, scale = (t.clone() for t in batch)
    leaves = [image.requires_grad_(), text.requires_grad_(), scale.requires_grad_()]
    finding = torch.arange(len(tissue)) % 3 - 1
    out = WISELoss(**options)(image, text, tissue, biomarker, scale, finding=finding)
    gradients = (
        torch.autograd.grad(out.total, leaves, allow_unused=True, retain_graph=True)
        if out.total.requires_grad
        else [None] * 3
    )
    filled = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradients, strict=True)]
    return out.metrics(), filled


@settings(max_examples=80, deadline=None)
@given(batch=batches(), options=losses, tile=st.integers(1, 50))
def test_linear_equals_reference_in_every_value_and_gradient(batch, options, tile):
    fast, fast_gradients = run(batch, **options, tile=tile)
    plain, plain_gradients = run(batch, **options, method="reference")
    # An excess is a small difference of large terms, so its absolute tolerance is relative to the terms.
    size = max(1.0, *(abs(v) for v in plain.values()))
    for name, value in plain.items():
        assert fast[name] == pytest.approx(value, rel=TOLERANCE, abs=1e-11 * size), name
    for name, got, want in zip(("image", "text", "scale"), fast_gradients, plain_gradients, strict=True):
        error, norm = float((got - want).norm()), float(want.norm())
        assert error <= TOLERANCE * norm + 1e-11 * size, (name, error, norm)


@pytest.mark.parametrize("term", ["image_text", "image_image", "text_text"])
def test_each_single_term_has_the_gradient_of_the_reference(term):
    generator = torch.Generator().manual_seed(1)
    image, text = (torch.randn(23, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = [torch.randint(-1, k, (23,), generator=generator) for k in (4, 5)]
    gradients = []
    for method in ("linear", "reference"):
        leaves = [image.clone().requires_grad_(), text.clone().requires_grad_()]
        out = WISELoss(method=method, tile=7)(*leaves, *labels, torch.tensor(1.5).double())
        found = torch.autograd.grad(getattr(out, term), leaves, allow_unused=True)
        gradients.append([torch.zeros_like(image) if g is None else g for g in found])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kappa", [1.0, "scale"])
@pytest.mark.parametrize("normalize", [True, False])
def test_gradients_equal_finite_differences(kappa, normalize):
    generator = torch.Generator().manual_seed(2)
    image, text = (torch.randn(7, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    tissue, biomarker = torch.tensor([0, 0, 1, 1, 1, -1, 2]), torch.tensor([0, 1, 2, 2, -1, 0, 0])
    loss = WISELoss(tile=3, kappa=kappa, normalize=normalize)
    leaves = (image.requires_grad_(), text.requires_grad_(), torch.tensor(0.5).double().requires_grad_())
    assert torch.autograd.gradcheck(lambda x, c, s: loss(x, c, tissue, biomarker, s).total, leaves)


def test_unit_rows_and_their_gradient_equal_torchs_normalize_also_for_a_row_of_zeros():
    rows = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows[2] = 0
    rows.requires_grad_()
    pull = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    outputs = [f(rows) for f in (unit_rows, functional.normalize)]
    ours, torchs = (torch.autograd.grad((out * pull).sum(), rows)[0] for out in outputs)
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(ours, torchs)


class _LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, tuple | list) else [out]
        self.elements = max([self.elements, *(t.numel() for t in made if isinstance(t, torch.Tensor))])
        return out


@pytest.mark.parametrize("missing", [False, True], ids=["labelled", "all labels missing"])
def test_linear_form_never_makes_an_n_by_n_tensor(missing):
    n, d, tile = 400, 8, 16
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(n, d, generator=generator).requires_grad_() for _ in range(2))
    labels = [torch.randint(0, k, (n,), generator=generator) for k in (7, 12)]
    if missing:
        labels = [torch.full_like(label, -1) for label in labels]
    with _LargestTensor() as largest:
        WISELoss(tile=tile)(image, text, *labels, torch.tensor(1.0)).total.backward()
    assert largest.elements <= 2 * tile * n


def test_entropy_of_8192_pairs_of_84_equally_frequent_classes_is_8_86_nats():
    # log N is 9.01, so a perfect model can reduce the loss by only 0.15 nats.
    generator = torch.Generator().manual_seed(0)
    labels = [torch.randint(0, k, (8192,), generator=generator) for k in (7, 12)]
    features = torch.randn(8192, 2, generator=generator)
    with torch.no_grad():
        out = WISELoss()(features, features, *labels, torch.tensor(0.0))
    assert out.entropy.item() == pytest.approx(8.86, abs=0.01)
    assert out.entropy.item() < math.log(8192)
