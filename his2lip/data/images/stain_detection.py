"""Which stain an image looks like, by colour deconvolution: DAB, AEC, haematoxylin alone, or H&E."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from his2lip.data.images.stain_vectors import DAB, EOSIN, HAEMATOXYLIN
from his2lip.data.images.tiling import tissue_mask

LOOKS = ("DAB", "AEC", "haematoxylin", "H&E")

SAMPLE = 64  # pixels a side that are looked at, at most; stains are sampled, not blurred together
LEAST_TISSUE = 0.05  # share of tissue below which an image is blank, and shows no stain
# Absorbance (optical density) of a second stain that is surely there, and the share of tissue on which it
# must outweigh haematoxylin: one cell of a patch.
_DEPOSIT = 0.08
_LEAST_DEPOSIT = 0.005
# Unmixed with the vectors of Ruifrok and Johnston (2001), the second stain's absorbance splits into eosin
# and DAB. Of pure DAB none is eosin's, of AEC 0.17, of eosin all. The cuts lie midway from DAB to AEC, and
# from AEC to the least that a real H&E tile showed (0.44).
_AEC_FROM = 0.085
_EOSIN_FROM = 0.30
_UNMIX = np.linalg.inv(np.array([HAEMATOXYLIN, EOSIN, DAB]))  # as scikit-image's hed_from_rgb
_DENSITY = -np.log10(np.maximum(np.arange(256), 1) / 255)  # optical density of each byte


@dataclass(frozen=True, slots=True)
class StainLook:
    """What deconvolution finds in one image.

    tissue   share of its pixels on tissue
    deposit  share of the tissue on which a second stain outweighs haematoxylin
    eosin    eosin's part of that second stain's absorbance; below 0 where it is browner than DAB's vector
    """

    tissue: float
    deposit: float
    eosin: float

    @property
    def blank(self) -> bool:
        """Whether there is too little tissue to show a stain."""
        return self.tissue < LEAST_TISSUE

    @property
    def stain(self) -> str | None:
        """One of LOOKS, or None for a blank image.

        A patch without a positive cell looks like haematoxylin alone, whatever its slide was stained with.
        AEC and DAB lie 9 degrees apart, less than the DAB of two laboratories (figures: docs/datasets.md).
        """
        if self.blank:
            return None
        if self.deposit < _LEAST_DEPOSIT:
            return "haematoxylin"
        if self.eosin >= _EOSIN_FROM:
            return "H&E"
        return "AEC" if self.eosin >= _AEC_FROM else "DAB"


def unmix(pixels: np.ndarray) -> np.ndarray:
    """uint8 (…, 3) RGB to optical densities (…, 3) of haematoxylin, eosin and DAB; some come out negative."""
    return _DENSITY[pixels] @ _UNMIX


def sampled(pixels: np.ndarray) -> np.ndarray:
    """Every k-th pixel of uint8 (H, W, 3), so that neither side exceeds `SAMPLE`; a view."""
    step = -(-max(pixels.shape[:2]) // SAMPLE)
    return pixels[::step, ::step]


def look_at(pixels: np.ndarray) -> StainLook:
    """What uint8 (H, W, 3) RGB shows. White balance is taken as it is: glass is meant to be white."""
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
