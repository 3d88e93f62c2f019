"""The loss against an independent numpy implementation, its variants, and the arguments that it refuses."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pydantic
import pytest
import torch
from torch.nn import functional

from his2lip.config import OptionError
from his2lip.loss.targets import SimilarityWeights
from his2lip.loss.wise import LossOutput, LossWeights, WISELoss

TERMS = ("image_text", "image_image", "text_text")


def formula(x, c, tissue, biomarker, log_scale, *, released=False, tau=1.0, weights=(1.0, 0.5, 0.5)):
    """The formula of the loss in numpy, entry by entry."""
    n = len(x)
    s = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            if i == j:
                s[i, j] = 2
            elif tissue[i] >= 0 and tissue[i] == tissue[j]:
                s[i, j] = 2 if biomarker[i] >= 0 and biomarker[i] == biomarker[j] else 1
    p = np.exp(s / tau) / np.exp(s / tau).sum(1, keepdims=True)

    def ce(logits):
        shifted = logits - logits.max(1, keepdims=True)
        return -(p * (shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))).sum() / n

    xh, ch = (f / np.linalg.norm(f, axis=1, keepdims=True) for f in (x, c))
    scale = np.exp(log_scale) if released else min(np.exp(log_scale), 100.0)
    a, b = (x, c) if released else (xh, ch)
    it = (ce(scale * a @ b.T) + ce(scale * b @ a.T)) / 2
    ii, tt = ce(xh @ xh.T), ce(ch @ ch.T)
    alpha, beta, gamma = weights
    return {
        "total": alpha * it + beta * ii + gamma * tt,
        "image_text": it,
        "image_image": ii,
        "text_text": tt,
        "entropy": -(p * np.log(p)).sum() / n,
    }


def draw(n: int, d: int = 6, seed: int = 0, *, spread: float = 1.0):
    rng = np.random.default_rng(seed)
    return (
        spread * rng.normal(size=(n, d)),
        spread * rng.normal(size=(n, d)),
        rng.integers(-1, 3, n),
        rng.integers(-1, 4, n),
    )


def evaluate(loss: WISELoss, x, c, tissue, biomarker, log_scale: float) -> LossOutput:
    return loss(
        *(torch.as_tensor(v) for v in (x, c, tissue, biomarker)), torch.tensor(log_scale, dtype=torch.float64)
    )


@pytest.mark.parametrize(
    ("loss", "released"),
    [
        (WISELoss(tile=4), False),
        (WISELoss(method="reference"), False),
        (WISELoss.released(), True),
        (WISELoss(method="reference", normalize=False, clamp=False), True),
    ],
    ids=["default linear", "default reference", "released linear", "released reference"],
)
@pytest.mark.parametrize("log_scale", [math.log(1 / 0.07), 5.5])
def test_both_methods_equal_the_formula_written_in_numpy(loss, released, log_scale):
    batch = draw(9, spread=2.0)
    found = evaluate(loss, *batch, log_scale).metrics()
    for name, value in formula(*batch, log_scale, released=released).items():
        assert found[name] == pytest.approx(value, rel=1e-10), name


def test_two_pairs_of_one_tissue_give_the_value_computed_by_hand():
    # S = [[2, 1], [1, 2]], so a row of P has p = e / (1 + e) on the diagonal and 1 - p beside it. Images and
    # captions are unit axes, so logits are [[s, 0], [0, s]], and the cross-entropy of a row is
    # log(1 + e^-s) + (1 - p) s. The intramodal logits have s = 1.
    axes, s = torch.eye(2, dtype=torch.float64), 3.0
    p = math.e / (1 + math.e)
    between = math.log(1 + math.exp(-s)) + (1 - p) * s
    within = math.log(1 + math.exp(-1)) + (1 - p)
    out = WISELoss()(
        axes, axes, torch.tensor([4, 4]), torch.tensor([0, 1]), torch.tensor(math.log(s), dtype=torch.float64)
    )
    assert out.image_text.item() == pytest.approx(between, rel=1e-12)
    assert out.image_image.item() == out.text_text.item() == pytest.approx(within, rel=1e-12)
    assert out.total.item() == pytest.approx(between + within, rel=1e-12)
    # With kappa = 1 the intramodal logits equal S minus 1, so their softmax is P and the excess is 0.
    assert out.excess_image_image.item() == pytest.approx(0.0, abs=1e-12)


def test_excess_is_the_term_minus_the_entropy_and_never_negative():
    out = evaluate(WISELoss(), *draw(30, seed=3), 2.0).metrics()
    for term in TERMS:
        assert out[f"excess_{term}"] == pytest.approx(out[term] - out["entropy"], abs=1e-12)
        assert out[f"excess_{term}"] >= 0


def test_hard_targets_are_the_plain_clip_loss():
    x, c, tissue, biomarker = draw(11)
    weights = LossWeights(image_image=0, text_text=0)
    out = evaluate(WISELoss(similarity=None, weights=weights), x, c, tissue, biomarker, 2.0)
    logits = math.exp(2.0) * functional.normalize(torch.tensor(x)) @ functional.normalize(torch.tensor(c)).T
    partner = torch.arange(11)
    plain = (functional.cross_entropy(logits, partner) + functional.cross_entropy(logits.T, partner)) / 2
    torch.testing.assert_close(out.total, plain, rtol=1e-10, atol=0)
    assert out.entropy.item() == 0


def test_released_hard_variant_learns_its_own_scale_which_starts_at_e():
    x, c, tissue, biomarker = draw(7)
    loss = WISELoss.released(terms="hard")
    assert [p.exp().item() for p in loss.parameters()] == pytest.approx([math.e])
    out = evaluate(loss, x, c, tissue, biomarker, -50.0)  # the model's scale, which is not used
    logits = math.e * torch.tensor(x) @ torch.tensor(c).T
    partner = torch.arange(7)
    plain = (functional.cross_entropy(logits, partner) + functional.cross_entropy(logits.T, partner)) / 2
    torch.testing.assert_close(out.total, plain, rtol=1e-6, atol=0)
    out.total.backward()
    assert loss.own_scale is not None
    assert loss.own_scale.grad is not None


@pytest.mark.parametrize(
    ("terms", "weights"),
    [
        ("full", (1, 0.5, 0.25)),
        ("image_text", (1, 0, 0)),
        ("image_only", (1, 0.5, 0)),
        ("text_only", (1, 0, 0.25)),
    ],
)
def test_released_variants_sum_the_terms_that_their_name_keeps(terms, weights):
    batch = draw(8)
    given = LossWeights(image_text=1, image_image=0.5, text_text=0.25)
    found = evaluate(WISELoss.released(terms=terms, weights=given), *batch, 1.0).total.item()
    assert found == pytest.approx(formula(*batch, 1.0, released=True, weights=weights)["total"], rel=1e-10)


def test_released_loss_starts_far_above_log_n_and_the_default_starts_near_it():
    # At random initialisation the towers of ViT-B/32 give raw features with norms near 10.
    x, c, tissue, biomarker = draw(32, d=512, spread=10 / math.sqrt(512))
    scale = math.log(1 / 0.07)
    default = evaluate(WISELoss(), x, c, tissue, biomarker, scale).image_text.item()
    released = evaluate(WISELoss.released(), x, c, tissue, biomarker, scale).image_text.item()
    assert default < math.log(32) + 1
    assert released > 30


def test_a_term_of_weight_zero_is_reported_and_has_no_gradient():
    x, c, tissue, biomarker = (torch.as_tensor(v) for v in draw(5))
    c.requires_grad_()
    weights = LossWeights(image_text=0, image_image=1, text_text=0)
    out = WISELoss(weights=weights)(x.requires_grad_(), c, tissue, biomarker, torch.tensor(1.0))
    out.total.backward()
    assert out.image_text.item() > 0
    assert not out.image_text.requires_grad
    assert c.grad is None or not c.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["linear", "reference"])
def test_half_precision_features_are_computed_in_float32(dtype, method):
    x, c, tissue, biomarker = draw(20, d=32)
    x, c = (torch.tensor(f).to(dtype) for f in (x, c))
    labels = torch.tensor(tissue), torch.tensor(biomarker)
    loss, scale = WISELoss(method=method), torch.tensor(2.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = loss(x.requires_grad_(), c, *labels, scale)
    assert out.total.dtype == torch.float32
    exact = loss(x.detach().float(), c.float(), *labels, scale)
    torch.testing.assert_close(out.total, exact.total, rtol=1e-6, atol=0)
    out.total.backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype


def test_scale_equal_to_the_clamp_has_a_gradient_and_a_larger_scale_has_none():
    x, c, tissue, biomarker = (torch.as_tensor(v) for v in draw(6))
    gradients = []
    for value in (math.log(100.0), 4.7):
        scale = torch.tensor(value, requires_grad=True)
        WISELoss()(x, c, tissue, biomarker, scale).total.backward()
        assert scale.grad is not None
        gradients.append(scale.grad.item())
    assert gradients[0] != 0
    assert gradients[1] == 0


def test_targets_depend_only_on_which_labels_are_equal():
    x, c, tissue, biomarker = draw(12)
    renamed = (
        np.where(tissue < 0, tissue, 1000 - tissue),
        np.where(biomarker < 0, biomarker, biomarker * 7 + 3),
    )
    one = evaluate(WISELoss(), x, c, tissue, biomarker, 1.0).metrics()
    other = evaluate(WISELoss(), x, c, *renamed, 1.0).metrics()
    assert other == pytest.approx(one, rel=1e-12)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"tau": 0.0}, "tau"),
        ({"tau": math.nan}, "tau"),
        ({"kappa": -1.0}, "kappa"),
        ({"method": "fast"}, "method"),
        ({"tile": 0}, "tile"),
    ],
)
def test_an_option_outside_its_range_is_refused_by_its_name(options, name):
    with pytest.raises(OptionError) as refused:
        WISELoss(**options)
    assert refused.value.key == name


@pytest.mark.parametrize(
    ("weights", "name", "value"), [(LossWeights, "text_text", -0.1), (SimilarityWeights, "pair", math.inf)]
)
def test_weights_below_zero_or_infinite_are_refused_by_their_name(weights, name, value):
    with pytest.raises(pydantic.ValidationError) as refused:
        weights(**{name: value})
    assert [error["loc"] for error in refused.value.errors()] == [(name,)]


def test_unknown_terms_are_refused_with_the_known_ones():
    with pytest.raises(OptionError) as refused:
        WISELoss.released(terms="images")  # type: ignore[arg-type]
    assert refused.value.key == "terms"
    assert "image_only" in str(refused.value)


def test_the_name_of_a_refused_argument_survives_pickling():
    with pytest.raises(OptionError) as refused:
        WISELoss(tau=0.0)
    copy = pickle.loads(pickle.dumps(refused.value))
    assert (type(copy), copy.key, str(copy)) == (OptionError, "tau", str(refused.value))


IDS = torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("image", "text", "tissue", "biomarker", "name"),
    [
        ((4,), (4,), IDS, IDS, "image_features"),
        ((4, 3), (5, 3), IDS, IDS, "text_features"),
        ((4, 3), (4, 3), IDS.float(), IDS, "tissue"),
        ((4, 3), (4, 3), IDS, IDS[:3], "biomarker"),
        ((0, 3), (0, 3), IDS[:0], IDS[:0], "image_features"),
    ],
    ids=["not a matrix", "other number of rows", "float labels", "too few labels", "empty batch"],
)
def test_tensors_that_do_not_fit_are_refused_by_the_arguments_name(image, text, tissue, biomarker, name):
    with pytest.raises(OptionError) as refused:
        WISELoss()(torch.zeros(image), torch.zeros(text), tissue, biomarker, torch.tensor(1.0))
    assert refused.value.key == name


def test_features_of_different_shapes_are_refused_with_both_shapes():
    with pytest.raises(OptionError) as refused:
        WISELoss()(torch.zeros(4, 3), torch.zeros(5, 3), IDS, IDS, torch.tensor(1.0))
    assert all(str(shape) in str(refused.value) for shape in ((4, 3), (5, 3)))
