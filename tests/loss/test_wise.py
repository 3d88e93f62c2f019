"""The loss against arithmetic written out independently, its variants, and what it refuses."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional

from his2lip.loss.targets import SimilarityWeights
from his2lip.loss.wise import LossOutput, LossWeights, WISELoss

TERMS = ("image_text", "image_image", "text_text")


def formula(x, c, tissue, biomarker, log_scale, *, released=False, tau=1.0, weights=(1.0, 0.5, 0.5)):
    """The design's formula in numpy, entry by entry."""
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


@pytest.mark.parametrize("method", ["linear", "reference"])
@pytest.mark.parametrize("released", [False, True], ids=["default", "released"])
@pytest.mark.parametrize("log_scale", [math.log(1 / 0.07), 5.5])
def test_both_methods_equal_the_formula_written_in_numpy(method, released, log_scale):
    batch = draw(9, spread=2.0)
    loss = WISELoss.released(method=method) if released else WISELoss(method=method, tile=4)
    found = evaluate(loss, *batch, log_scale).metrics()
    for name, value in formula(*batch, log_scale, released=released).items():
        assert found[name] == pytest.approx(value, rel=1e-10), name


def test_two_pairs_of_one_tissue_give_the_value_worked_out_by_hand():
    # S = [[2, 1], [1, 2]], so P = [p, 1 - p] with p = e / (1 + e). Images and captions are the unit axes, so
    # logits are [[s, 0], [0, s]] and a row costs log(1 + e^-s) + (1 - p) s; the intramodal ones have s = 1.
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
    # kappa = 1 makes the intramodal logits S itself, shifted: the excess there is nothing at all.
    assert out.excess_image_image.item() == pytest.approx(0.0, abs=1e-12)


def test_excess_is_the_term_less_the_entropy_and_never_negative():
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


def test_released_hard_variant_learns_a_scale_of_its_own_from_e():
    x, c, tissue, biomarker = draw(7)
    loss = WISELoss.released(terms="hard")
    assert [p.exp().item() for p in loss.parameters()] == pytest.approx([math.e])
    out = evaluate(loss, x, c, tissue, biomarker, -50.0)  # the model's scale is not looked at
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
def test_released_variants_leave_out_what_their_name_says(terms, weights):
    batch = draw(8)
    given = LossWeights(image_text=1, image_image=0.5, text_text=0.25)
    found = evaluate(WISELoss.released(terms=terms, weights=given), *batch, 1.0).total.item()
    assert found == pytest.approx(formula(*batch, 1.0, released=True, weights=weights)["total"], rel=1e-10)


def test_released_loss_starts_far_above_log_n_where_the_default_starts_near_it():
    # At random initialisation the towers give raw features of norm near 10 (ViT-B/32).
    x, c, tissue, biomarker = draw(32, d=512, spread=10 / math.sqrt(512))
    scale = math.log(1 / 0.07)
    default = evaluate(WISELoss(), x, c, tissue, biomarker, scale).image_text.item()
    released = evaluate(WISELoss.released(), x, c, tissue, biomarker, scale).image_text.item()
    assert default < math.log(32) + 1
    assert released > 30


def test_a_term_of_weight_zero_is_reported_and_gives_no_gradient():
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


def test_scale_held_at_the_clamp_keeps_its_gradient_and_beyond_it_does_not():
    x, c, tissue, biomarker = (torch.as_tensor(v) for v in draw(6))
    gradients = []
    for value in (math.log(100.0), 4.7):
        scale = torch.tensor(value, requires_grad=True)
        WISELoss()(x, c, tissue, biomarker, scale).total.backward()
        assert scale.grad is not None
        gradients.append(scale.grad.item())
    assert gradients[0] != 0
    assert gradients[1] == 0


def test_labels_decide_the_targets_by_equality_alone():
    x, c, tissue, biomarker = draw(12)
    renamed = (
        np.where(tissue < 0, tissue, 1000 - tissue),
        np.where(biomarker < 0, biomarker, biomarker * 7 + 3),
    )
    one = evaluate(WISELoss(), x, c, tissue, biomarker, 1.0).metrics()
    other = evaluate(WISELoss(), x, c, *renamed, 1.0).metrics()
    assert other == pytest.approx(one, rel=1e-12)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"tau": 0.0}, "tau"),
        ({"tau": math.nan}, "tau"),
        ({"kappa": -1.0}, "kappa"),
        ({"method": "fast"}, "method"),
        ({"tile": 0}, "tile"),
    ],
)
def test_an_option_that_means_nothing_is_refused_by_its_name(options, word):
    with pytest.raises(ValueError, match=word):
        WISELoss(**options)


def test_weights_below_zero_and_unknown_terms_are_refused():
    with pytest.raises(ValueError, match="text_text"):
        LossWeights(text_text=-0.1)
    with pytest.raises(ValueError, match="pair"):
        SimilarityWeights(pair=math.inf)
    with pytest.raises(ValueError, match="image_only"):
        WISELoss.released(terms="images")  # type: ignore[arg-type]


def test_shapes_that_do_not_fit_are_refused_with_both_shapes():
    ids, scale = torch.zeros(4, dtype=torch.int64), torch.tensor(1.0)
    with pytest.raises(ValueError, match=r"\(4, 3\) and \(5, 3\)"):
        WISELoss()(torch.zeros(4, 3), torch.zeros(5, 3), ids, ids, scale)
    with pytest.raises(ValueError, match="biomarker"):
        WISELoss()(torch.zeros(4, 3), torch.zeros(4, 3), ids, ids[:3], scale)
    with pytest.raises(ValueError, match="tissue"):
        WISELoss()(torch.zeros(4, 3), torch.zeros(4, 3), ids.float(), ids, scale)
    with pytest.raises(ValueError, match="empty"):
        WISELoss()(torch.zeros(0, 3), torch.zeros(0, 3), ids[:0], ids[:0], scale)


def test_loss_imports_where_ray_mlflow_and_optuna_are_not_installed():
    program = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {'ray', 'mlflow', 'optuna'}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
import torch
from his2lip.loss import LossWeights, WISELoss
out = WISELoss(weights=LossWeights())(
    torch.ones(1, 2), torch.ones(1, 2), torch.tensor([0]), torch.tensor([-1]), torch.tensor(0.0))
print(out.total.item())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == 0.0
