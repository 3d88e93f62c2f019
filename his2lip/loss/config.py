"""The options of the WISE loss, and the table of the terms that each value of `terms` keeps."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
from pydantic import Field

from his2lip.config import Config, OptionError

Weight = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
KeptTerms = Literal["full", "image_text", "image_only", "text_only", "hard"]

TERMS = ("image_text", "image_image", "text_text")  # in the order in which they are summed
KEPT: dict[str, tuple[str, ...]] = {
    "full": TERMS,
    "image_text": ("image_text",),
    "image_only": ("image_text", "image_image"),
    "text_only": ("image_text", "text_text"),
    "hard": ("image_text",),
}


class LossWeights(Config):
    """alpha, beta, gamma: the weights of the three terms. A term of weight 0 is only reported.

    AdamW is almost invariant to the scale of the loss, so only the ratios of the weights matter.
    """

    image_text: Weight = 1.0
    """alpha, the weight of the image-text term (both directions)."""
    image_image: Weight = 0.5
    """beta, the weight of the image-image term."""
    text_text: Weight = 0.5
    """gamma, the weight of the text-text term."""

    def keep(self, terms: KeptTerms) -> LossWeights:
        """The same weights for the terms that `terms` keeps, and 0 for the others.

        Raises OptionError for an unknown `terms`.
        """
        if terms not in KEPT:
            raise OptionError(f"terms must be one of {', '.join(KEPT)}, got {terms!r}", key="terms")
        left_out = set(TERMS) - set(KEPT[terms])
        return self.model_copy(update=dict.fromkeys(left_out, 0.0))


class SimilarityWeights(Config):
    """How much each label that two pairs share adds to their similarity S_ij."""

    tissue: Weight = 1.0
    """For the same tissue type."""
    pair: Weight = 1.0
    """For the same tissue type and the same biomarker, in addition to `tissue`."""
    biomarker: Weight = 0.0
    """For the same biomarker, whatever the tissue types."""
    finding: Weight = 0.0
    """For the same tissue type, biomarker and finding (staining band and class), in addition to `pair`. At 0,
    as in the paper, the loss asks that captions of one pair match all its patches, stained or not."""

    @property
    def full(self) -> float:
        """S_ii: the similarity of a pair to itself, and to every pair with the same labels."""
        return self.tissue + self.pair + self.biomarker + self.finding


class LossConfig(Config):
    """The WISE loss. With `variant: released`, `similarity`, `tau`, `kappa` and `normalize` are ignored."""

    variant: Literal["wise", "released"] = "wise"
    """wise, or released: the arithmetic of the authors' code, to float32 rounding."""
    terms: KeptTerms = "full"
    """full: all three terms. image_text: only the image-text term. image_only: image-text and image-image.
    text_only: image-text and text-text. hard: only image-text, with one-hot targets."""
    weights: LossWeights = LossWeights()
    similarity: SimilarityWeights = SimilarityWeights()
    tau: Positive = 1.0
    """Temperature of the targets P = softmax(S / tau)."""
    kappa: Positive | Literal["scale"] = 1.0
    """Factor of the image-image and text-text logits; "scale" uses the model's learned logit scale."""
    normalize: bool = True
    """Whether image-text logits use L2-normalised features. The released code does not normalise them."""

    @pydantic.model_validator(mode="after")
    def _some_term_is_left(self) -> LossConfig:
        weights = self.weights.keep(self.terms)
        if not any(getattr(weights, term) for term in TERMS):
            raise OptionError(f"terms: {self.terms} leaves no term with a weight above zero", key="weights")
        return self

    @pydantic.model_validator(mode="after")
    def _targets_tell_pairs_apart(self) -> LossConfig:
        if self.variant == "wise" and self.terms != "hard" and not self.similarity.full:
            what = "similarity: with all weights at zero, every caption is equally right for every image"
            raise OptionError(f"{what}; set one above zero, or terms: hard", key="similarity")
        return self

    @property
    def scoring(self) -> Literal["cosine", "dot"]:
        """How to compare features of a model that was trained with this loss."""
        return "cosine" if self.variant == "wise" and self.normalize else "dot"
