"""Stained area: the share of an image's tissue on which DAB lies."""

from __future__ import annotations

import numpy as np

from his2lip.data.images.stain_detection import LEAST_TISSUE, sampled
from his2lip.data.images.stain_vectors import haematoxylin_and_dab
from his2lip.data.images.tiling import tissue_mask

# Optical density of DAB from which a pixel counts as stained: that from which IHC4BC calls a nucleus of ER or
# PR 2+ (Akbarnejad et al. 2023). Its threshold of 1+, 0.06, is for means of nuclei; single pixels with
# counterstain only reach it too.
STAINED_FROM = 0.26
_WHITE = 99  # the percentile of each channel that counts as the image's own white
_LEAST_WHITE = 180  # intensity; an image without pale pixels does not show its white


def stained_share(pixels: np.ndarray) -> float | None:
    """The share, 0 to 1, of the tissue in uint8 (H, W, 3) RGB on which DAB lies.

    There the density of DAB reaches `STAINED_FROM` and exceeds that of haematoxylin. Densities are relative
    to the image's own white, since a yellowish white would read as DAB. Stains are unmixed with the vectors
    of Ruifrok and Johnston (2001). Large images are sampled at up to 64 x 64 pixels. None where there is too
    little tissue to tell. Every machine gives the same bits.
    """
    pixels = sampled(pixels)
    tissue = tissue_mask(pixels)
    if tissue.mean() < LEAST_TISSUE:
        return None
    white = np.percentile(pixels.reshape(-1, 3), _WHITE, axis=0, method="lower")
    haematoxylin, dab = haematoxylin_and_dab(pixels)
    of_white = haematoxylin_and_dab(np.maximum(white, _LEAST_WHITE).astype(np.uint8))
    stained = (dab >= of_white[1] + STAINED_FROM) & (dab - of_white[1] > haematoxylin - of_white[0])
    return float(stained[tissue].mean())
