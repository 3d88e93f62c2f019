"""Stain detection: whether an image looks stained with DAB, AEC, haematoxylin only, or H&E."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from his2lip.data.images.stain_vectors import unmix
from his2lip.data.images.tiling import tissue_mask

LOOKS = ("DAB", "AEC", "haematoxylin", "H&E")

SAMPLE = 64  # pixels per side that are examined, at most; sampled, not blurred, to keep stains apart
LEAST_TISSUE = 0.05  # share of tissue below which an image counts as blank
# Optical density from which a second stain is certainly present, and the share of tissue on which it must
# exceed haematoxylin: about one nucleus of a patch.
_DEPOSIT = 0.08
_LEAST_DEPOSIT = 0.005
# Unmixed with the vectors of Ruifrok and Johnston (2001), the second stain's density splits into eosin and
# DAB. Eosin's share is 0 for pure DAB, 0.17 for AEC and 1 for eosin. The thresholds lie midway between DAB
# and AEC, and midway between AEC and the smallest share of a real H&E tile (0.44).
_AEC_FROM = 0.085
_EOSIN_FROM = 0.30


@dataclass(frozen=True, slots=True)
class StainLook:
    """The result of colour deconvolution of one image.

    tissue   share of its pixels that show tissue
    deposit  share of the tissue on which a second stain exceeds haematoxylin
    eosin    eosin's share of that second stain's density; below 0 where it is browner than DAB's vector
    """

    tissue: float
    deposit: float
    eosin: float

    @property
    def blank(self) -> bool:
        """Whether it shows too little tissue to show a stain."""
        return self.tissue < LEAST_TISSUE

    @property
    def stain(self) -> str | None:
        """One of LOOKS, or None for a blank image.

        A patch without a positive nucleus looks like haematoxylin only, whatever its slide was stained with.
        AEC and DAB differ by 9 degrees, less than the DAB of two laboratories (figures: docs/datasets.md).
        """
        if self.blank:
            return None
        if self.deposit < _LEAST_DEPOSIT:
            return "haematoxylin"
        if self.eosin >= _EOSIN_FROM:
            return "H&E"
        return "AEC" if self.eosin >= _AEC_FROM else "DAB"


def sampled(pixels: np.ndarray) -> np.ndarray:
    """Every k-th pixel of uint8 (…, H, W, 3), so that neither side exceeds `SAMPLE`; a view."""
    step = -(-max(pixels.shape[-3:-1]) // SAMPLE)
    return pixels[..., ::step, ::step, :]


def look_at(pixels: np.ndarray) -> StainLook:
    """Examines uint8 (H, W, 3) RGB. The white balance is not corrected: glass is expected to be white."""
    pixels = sampled(pixels)
    mask = tissue_mask(pixels)
    if mask.mean() < LEAST_TISSUE:
        return StainLook(float(mask.mean()), 0.0, 0.0)
    haematoxylin, eosin, dab = unmix(pixels[mask]).T
    second = np.maximum(eosin, 0) + np.maximum(dab, 0)
    deposit = (second > _DEPOSIT) & (second > haematoxylin)
    both = (eosin[deposit] + dab[deposit]).sum()
    share = float(eosin[deposit].sum() / both) if both > 0 else 0.0
    return StainLook(float(mask.mean()), float(deposit.mean()), share)
