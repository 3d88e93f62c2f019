"""WISELoss: the three weighted terms, their excess over the entropy of the targets, and released variants."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import nn

from his2lip.config import OptionError
from his2lip.loss.config import TERMS, KeptTerms, LossConfig, LossWeights, SimilarityWeights
from his2lip.loss.distributed import Ranks
from his2lip.loss.linear import LinearCrossEntropy, unit_rows
from his2lip.loss.reference import ReferenceCrossEntropy

MAX_LOG_SCALE = math.log(100.0)  # largest log of the logit scale (CLIP: Radford et al. 2021, section 2.5)

Method = Literal["linear", "reference"]


@dataclass(frozen=True)
class LossOutput:
    """The loss of one batch as scalars, in nats. Terms of weight 0 have no gradient.

    A term is the mean cross-entropy over the global batch. `entropy` is the mean entropy of the targets: the
    smallest possible value of a term. The excess of a term is the term minus `entropy`.
    """

    total: torch.Tensor
    image_text: torch.Tensor
    image_image: torch.Tensor
    text_text: torch.Tensor
    excess_image_text: torch.Tensor
    excess_image_image: torch.Tensor
    excess_text_text: torch.Tensor
    entropy: torch.Tensor

    def metrics(self) -> dict[str, float]:
        """Every scalar by its name, as a float; waits until the device has computed them."""
        names = [field.name for field in fields(self)]
        values = torch.stack([getattr(self, name).detach() for name in names]).tolist()
        return dict(zip(names, values, strict=True))


class WISELoss(nn.Module):
    """The loss of the paper (HIS2LIP, WACV 2026, section 3): a weighted sum of three cross-entropies.

    For N pairs with image features x and caption features c (N, D), unit rows X and C, logit scale s, the
    similarity S (N, N) of their labels (`loss.targets`) and P = softmax_j(S / tau):

        CE(L) = -(1/N) sum_ij P_ij log softmax_j(L_ij)
        loss = alpha ½ [CE(s X C^T) + CE(s C X^T)] + beta CE(kappa X X^T) + gamma CE(kappa C C^T)

    weights     alpha, beta, gamma
    similarity  how much each shared label adds to the similarity of two pairs; None: one-hot targets
    tau         temperature of the targets, > 0
    kappa       factor of the intramodal logits, > 0, or "scale": the logit scale
    normalize   whether image-text logits use X and C, else x and c; intramodal logits always use X and C
    clamp       whether the logit scale is limited to at most 100
    method      "linear": memory linear in N; "reference": N x N matrices, for tests
    tile        rows of logits that "linear" computes at once; None: chosen by memory
    own_scale   initial value of a log-space scale that is a parameter of the loss and replaces the model's

    Raises OptionError, a ValueError whose `key` is the name of the argument, for a value that is not allowed.

    With torch.distributed initialised, the batch is the global batch of all ranks. Each rank reports the
    values of the global batch. Its gradient is the share of its rows times the number of ranks, so that the
    mean over ranks, which DistributedDataParallel computes, is the gradient of the global loss.
    """

    def __init__(
        self,
        *,
        weights: LossWeights | None = None,
        similarity: SimilarityWeights | None = SimilarityWeights(),  # noqa: B008 (frozen)
        tau: float = 1.0,
        kappa: float | Literal["scale"] = 1.0,
        normalize: bool = True,
        clamp: bool = True,
        method: Method = "linear",
        tile: int | None = None,
        own_scale: float | None = None,
    ) -> None:
        super().__init__()
        if not (math.isfinite(tau) and tau > 0):
            raise OptionError(f"tau must be a finite number above 0, got {tau}", key="tau")
        if kappa != "scale" and not (math.isfinite(kappa) and kappa > 0):
            raise OptionError(f"kappa must be 'scale' or a finite number above 0, got {kappa}", key="kappa")
        if method not in ("linear", "reference"):
            raise OptionError(f"method must be 'linear' or 'reference', got {method!r}", key="method")
        if tile is not None and tile < 1:
            raise OptionError(f"tile must be 1 or more, got {tile}", key="tile")
        self.weights = weights or LossWeights()
        self.similarity, self.tau, self.kappa = similarity, tau, kappa
        self.normalize, self.clamp, self.method, self.tile = normalize, clamp, method, tile
        self.own_scale = None if own_scale is None else nn.Parameter(torch.tensor(own_scale))

    @classmethod
    def released(cls, *, weights: LossWeights | None = None, terms: KeptTerms = "full") -> WISELoss:
        """The released code's behaviour: raw features in the image-text logits, no clamp, kappa = tau = 1.

        terms  "full": all three terms
               "image_text": only the image-text term
               "image_only", "text_only": the image-text term and the term of that modality
               "hard": only the image-text term, with one-hot targets. Its logit scale is a parameter of the
               loss that starts at e, so the loss's parameters must be given to the optimizer.
        Raises OptionError for an unknown value of `terms`.
        """
        hard = terms == "hard"
        return cls(
            weights=(weights or LossWeights()).keep(terms),
            similarity=None if hard else SimilarityWeights(),
            normalize=False,
            clamp=False,
            own_scale=1.0 if hard else None,
        )

    @classmethod
    def from_config(cls, config: LossConfig) -> WISELoss:
        """The loss with the options of a training configuration."""
        if config.variant == "released":
            return cls.released(weights=config.weights, terms=config.terms)
        return cls(
            weights=config.weights.keep(config.terms),
            similarity=None if config.terms == "hard" else config.similarity,
            tau=config.tau,
            kappa=config.kappa,
            normalize=config.normalize,
        )

    def forward(
        self,
        image_features: torch.Tensor,
        text_features: torch.Tensor,
        tissue: torch.Tensor,
        biomarker: torch.Tensor,
        logit_scale: torch.Tensor,
        *,
        finding: torch.Tensor | None = None,
    ) -> LossOutput:
        """The loss of one batch, of which this rank has R pairs.

        Computes in float64 where any features are float64, else in float32.

        Args:
            image_features: float (R, D), raw or normalised.
            text_features: float (R, D); row i is the caption of image i.
            tissue: int64 (R,), -1 where missing.
            biomarker: int64 (R,), -1 where missing.
            logit_scale: scalar, the log of the factor of the logits, as in CLIP.
            finding: int64 (R,), -1 where missing; None: missing everywhere. All ranks give it, or none.

        Raises OptionError, whose `key` is the name of the argument, where shapes or dtypes do not fit, or
        where the global batch is empty.
        """
        finding = torch.full_like(tissue, -1) if finding is None else finding
        _check_shapes(
            image_features, text_features, {"tissue": tissue, "biomarker": biomarker, "finding": finding}
        )
        labels = torch.stack([tissue, biomarker, finding])
        # In large batches the excess is a few hundredths of a nat, which half-precision logits would lose.
        with torch.autocast(image_features.device.type, enabled=False):
            return self._forward(image_features, text_features, labels, logit_scale)

    def _forward(
        self, image: torch.Tensor, text: torch.Tensor, labels: torch.Tensor, logit_scale: torch.Tensor
    ) -> LossOutput:
        dtype = torch.float64 if torch.float64 in (image.dtype, text.dtype) else torch.float32
        image, text = image.to(dtype), text.to(dtype)
        ranks = Ranks.of(len(image), image.device)
        if sum(ranks.sizes) == 0:
            raise OptionError("the loss of an empty batch is not defined", key="image_features")
        if ranks.count > 1:
            # One collective for both modalities, so that all ranks call it in the same order in backward.
            both = ranks.gather_with_gradient(torch.cat([image, text], dim=1))
            image, text = both.split(image.shape[1], dim=1)
            labels = ranks.gather(labels.T).T
        shares = self._term_shares(image, text, labels, ranks, self._scale(logit_scale, dtype))
        means = shares * (ranks.count / len(image))
        if ranks.count > 1:
            # Each rank reports the values of the global batch, with the gradient of its own share.
            means = means + (ranks.sum(shares) / len(image) - means).detach()
        return self._output(means)

    def _scale(self, logit_scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """s, a scalar of `dtype`, from its logarithm or from the loss's own."""
        log_scale = logit_scale if self.own_scale is None else self.own_scale
        if self.clamp:
            # Clamps before exp, in the dtype of the scale, so that a scale equal to the bound has a gradient.
            log_scale = log_scale.clamp(max=torch.full_like(log_scale, MAX_LOG_SCALE))
        return log_scale.reshape(()).to(dtype).exp()

    def _term_shares(
        self, image: torch.Tensor, text: torch.Tensor, labels: torch.Tensor, ranks: Ranks, scale: torch.Tensor
    ) -> torch.Tensor:
        """(T + 1,) this rank's shares of the sums over the batch: the terms as in TERMS, then the entropy."""
        x, c = unit_rows(image), unit_rows(text)
        a, b = (x, c) if self.normalize else (image, text)
        kappa = scale if self.kappa == "scale" else torch.full_like(scale, float(self.kappa))
        batch = self._cross_entropy(labels, ranks, image.dtype)
        w = self.weights
        with _gradient_if(w.image_text > 0):
            image_text = batch.between(a, b, scale)
        with _gradient_if(w.image_image > 0):
            image_image = batch.within(x, kappa)
        with _gradient_if(w.text_text > 0):
            text_text = batch.within(c, kappa)
        return torch.stack([image_text, image_image, text_text, batch.entropy()])

    def _cross_entropy(
        self, labels: torch.Tensor, ranks: Ranks, dtype: torch.dtype
    ) -> LinearCrossEntropy | ReferenceCrossEntropy:
        if self.method == "reference":
            return ReferenceCrossEntropy(labels, self.similarity, tau=self.tau, ranks=ranks, dtype=dtype)
        return LinearCrossEntropy(
            labels, self.similarity, tau=self.tau, ranks=ranks, dtype=dtype, tile=self.tile
        )

    def _output(self, means: torch.Tensor) -> LossOutput:
        """From the means over the batch, (T + 1,): the terms as in TERMS, then the entropy."""
        *of_terms, entropy = means.unbind()
        terms: dict[str, torch.Tensor] = {}
        # A term of weight 0 is not added: 0 times an infinite term would be NaN.
        total = torch.zeros_like(entropy)
        for name, mean in zip(TERMS, of_terms, strict=True):
            weight = getattr(self.weights, name)
            terms[name] = mean if weight > 0 else mean.detach()
            if weight > 0:
                total = total + weight * mean
        excess = {f"excess_{name}": term - entropy for name, term in terms.items()}
        return LossOutput(total=total, entropy=entropy, **terms, **excess)


def _gradient_if(wanted: bool) -> torch.set_grad_enabled:
    return torch.set_grad_enabled(wanted and torch.is_grad_enabled())


def _check_shapes(image: torch.Tensor, text: torch.Tensor, labels: dict[str, torch.Tensor]) -> None:
    if image.ndim != 2 or image.shape != text.shape:
        what = "image_features and text_features must both have shape (N, D) with the same N and D"
        got = f"got {tuple(image.shape)} and {tuple(text.shape)}"
        raise OptionError(f"{what}, {got}", key="image_features" if image.ndim != 2 else "text_features")
    for name, ids in labels.items():
        if ids.shape != image.shape[:1] or ids.is_floating_point():
            what = f"{name} must be {len(image)} integers, got {ids.dtype} {tuple(ids.shape)}"
            raise OptionError(what, key=name)
