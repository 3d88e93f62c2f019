"""WISELoss: three weighted terms, their excess over the targets' entropy, the released code's variants."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import nn

from his2lip.loss.config import TERMS, LossConfig, LossWeights, SimilarityWeights, Terms
from his2lip.loss.distributed import Ranks
from his2lip.loss.linear import LinearCrossEntropy, unit_rows
from his2lip.loss.reference import ReferenceCrossEntropy

MAX_LOG_SCALE = math.log(100.0)  # CLIP's clamp (Radford et al. 2021, section 2.5)

Method = Literal["linear", "reference"]


@dataclass(frozen=True)
class LossOutput:
    """Scalars, in nats. `total` carries the gradient; each term does too, unless its weight is 0.

    A term is a mean cross-entropy over the global batch; its excess is that less the targets' own entropy,
    which no features can go below.
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
        """Every scalar by its name, as floats; waits for the device."""
        names = [field.name for field in fields(self)]
        values = torch.stack([getattr(self, name).detach() for name in names]).tolist()
        return dict(zip(names, values, strict=True))


class WISELoss(nn.Module):
    """L = alpha CE(image-text, both ways) + beta CE(image-image) + gamma CE(text-text), towards soft targets.

    weights     alpha, beta, gamma
    similarity  what two pairs share and how much it counts; None: hard targets, each pair answers to itself
    tau         temperature of the targets, > 0
    kappa       scale of the intramodal logits, > 0, or "scale": the learnt one
    normalize   whether image-text logits use L2-normalised features (intramodal ones always do)
    clamp       whether the learnt scale is clamped at 100
    method      "linear": memory linear in N; "reference": the plain N x N form, for tests and comparison
    tile        rows of logits that "linear" holds at once; None: by memory
    gather      "auto": under torch.distributed the batch is that of all ranks; None: this rank's alone
    own_scale   start of a log-space scale that the loss itself learns, in place of the model's

    Over several ranks every rank reports the global batch's values, and its gradient is its rows' share times
    the number of ranks: DistributedDataParallel's mean over ranks is then the gradient of the global loss.
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
        gather: Literal["auto"] | None = "auto",
        own_scale: float | None = None,
    ) -> None:
        super().__init__()
        if not (math.isfinite(tau) and tau > 0):
            raise ValueError(f"tau must be a finite number above 0, got {tau}")
        if kappa != "scale" and not (math.isfinite(kappa) and kappa > 0):
            raise ValueError(f"kappa must be 'scale' or a finite number above 0, got {kappa}")
        if method not in ("linear", "reference"):
            raise ValueError(f"method must be 'linear' or 'reference', got {method!r}")
        if tile is not None and tile < 1:
            raise ValueError(f"tile must be 1 or more, got {tile}")
        self.weights = weights or LossWeights()
        self.similarity, self.tau, self.kappa = similarity, tau, kappa
        self.normalize, self.clamp, self.method, self.tile, self.gather = (
            normalize,
            clamp,
            method,
            tile,
            gather,
        )
        self.own_scale = None if own_scale is None else nn.Parameter(torch.tensor(own_scale))

    @classmethod
    def released(
        cls,
        *,
        weights: LossWeights | None = None,
        terms: Terms = "full",
        method: Method = "linear",
        tile: int | None = None,
        gather: Literal["auto"] | None = "auto",
    ) -> WISELoss:
        """The released code's behaviour: raw features in the image-text logits, no clamp, kappa = tau = 1.

        terms  "full": all three; "image_only", "text_only": image-text and that modality's own term;
               "image_text": that alone; "hard": one-hot targets, image-text alone, a scale of its own that
               starts at e and is learnt (give the loss's parameters to the optimizer).
        """
        hard = terms == "hard"
        return cls(
            weights=(weights or LossWeights()).keep(terms),
            similarity=None if hard else SimilarityWeights(),
            normalize=False,
            clamp=False,
            method=method,
            tile=tile,
            gather=gather,
            own_scale=1.0 if hard else None,
        )

    @classmethod
    def from_config(cls, config: LossConfig) -> WISELoss:
        """The loss that a training configuration describes."""
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
    ) -> LossOutput:
        """The loss of one batch.

        Args:
            image_features: float (R, D), raw or normalised; half precisions are computed in float32.
            text_features: float (R, D); row i belongs to row i of the images.
            tissue: int64 (R,), -1 where missing.
            biomarker: int64 (R,), -1 where missing.
            logit_scale: scalar, in log space, as CLIP keeps it.
        """
        _check_shapes(image_features, text_features, tissue, biomarker)
        # Half-precision logits would lose the few hundredths of a nat that there are to learn.
        with torch.autocast(image_features.device.type, enabled=False):
            return self._forward(image_features, text_features, torch.stack([tissue, biomarker]), logit_scale)

    def _forward(
        self, image: torch.Tensor, text: torch.Tensor, labels: torch.Tensor, logit_scale: torch.Tensor
    ) -> LossOutput:
        dtype = torch.float64 if torch.float64 in (image.dtype, text.dtype) else torch.float32
        image, text = image.to(dtype), text.to(dtype)
        ranks = Ranks.of(len(image), image.device, gather=self.gather == "auto")
        if sum(ranks.sizes) == 0:
            raise ValueError("the loss of an empty batch is not defined")
        if ranks.count > 1:
            # One collective for both modalities, so that all ranks meet in the same order in backward too.
            both = ranks.gather_with_gradient(torch.cat([image, text], dim=1))
            image, text = both.split(image.shape[1], dim=1)
            labels = ranks.gather(labels.T).T
        shares = self._term_shares(image, text, labels, ranks, self._scale(logit_scale, dtype))
        means = shares * (ranks.count / len(image))
        if ranks.count > 1:
            # Every rank shows the global values; its gradient stays that of its own share.
            means = means + (ranks.sum(shares) / len(image) - means).detach()
        return self._output(means)

    def _scale(self, logit_scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        log_scale = logit_scale if self.own_scale is None else self.own_scale
        if self.clamp:
            # Before exp, the bound in the scale's own precision: a scale held at it keeps its gradient.
            log_scale = log_scale.clamp(max=torch.full_like(log_scale, MAX_LOG_SCALE))
        return log_scale.reshape(()).to(dtype).exp()

    def _term_shares(
        self, image: torch.Tensor, text: torch.Tensor, labels: torch.Tensor, ranks: Ranks, scale: torch.Tensor
    ) -> torch.Tensor:
        """(T + 1,) this rank's shares of the sums: the T terms in the order of TERMS, then the entropy."""
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
        *of_terms, entropy = means.unbind()
        terms: dict[str, torch.Tensor] = {}
        # A term of weight 0 stays out of the sum, where its infinity would make the total a NaN.
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


def _check_shapes(
    image: torch.Tensor, text: torch.Tensor, tissue: torch.Tensor, biomarker: torch.Tensor
) -> None:
    if image.ndim != 2 or image.shape != text.shape:
        raise ValueError(
            "image and text features must both be (N, D) with the same N and D, "
            f"got {tuple(image.shape)} and {tuple(text.shape)}"
        )
    for name, labels in (("tissue", tissue), ("biomarker", biomarker)):
        if labels.shape != image.shape[:1] or labels.is_floating_point():
            raise ValueError(
                f"{name} must be {len(image)} whole numbers, got {labels.dtype} {tuple(labels.shape)}"
            )
