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
_WHITE = 0.99  # the quantile of each channel that counts as the image's own white
_AT_ONCE = 16  # images that are measured at once; their numbers fit in the caches of a core
_LEAST_WHITE = 180  # intensity; an image without pale pixels does not show its white


def stained_share(pixels: np.ndarray) -> float | None:
    """The share, 0 to 1, of the tissue in uint8 (H, W, 3) RGB on which DAB lies.

    There the density of DAB reaches `STAINED_FROM` and exceeds that of haematoxylin. Densities are relative
    to the image's own white, since a yellowish white would read as DAB. Stains are unmixed with the vectors
    of Ruifrok and Johnston (2001). Large images are sampled at up to 64 x 64 pixels. None where there is too
    little tissue to tell. Every machine gives the same bits.
    """
    return stained_shares(pixels[None])[0]


def stained_shares(images: np.ndarray) -> list[float | None]:
    """`stained_share` of each of uint8 (N, H, W, 3), fastest as a view of (N, 3, H, W).

    Several images at once need fewer calls of NumPy, each of which takes Python's lock from other threads.
    """
    parts = (images[start : start + _AT_ONCE] for start in range(0, len(images), _AT_ONCE))
    return [share for part in parts for share in _shares(sampled(part))]


def _shares(pixels: np.ndarray) -> list[float | None]:
    pixels = np.moveaxis(np.ascontiguousarray(np.moveaxis(pixels, -1, 1)), 1, -1)  # each channel in one piece
    tissue = tissue_mask(pixels)
    of_white = [
        stain[:, None, None] for stain in haematoxylin_and_dab(np.maximum(_white(pixels), _LEAST_WHITE))
    ]
    haematoxylin, dab = haematoxylin_and_dab(pixels)
    stained = (dab >= of_white[1] + STAINED_FROM) & (dab - of_white[1] > haematoxylin - of_white[0])
    counts = ([np.count_nonzero(image) for image in mask] for mask in (tissue, stained & tissue))
    size = tissue[0].size
    return [None if all_ / size < LEAST_TISSUE else part / all_ for all_, part in zip(*counts, strict=True)]


def _white(pixels: np.ndarray) -> np.ndarray:
    """The white of each image, uint8 (N, 3): the lower value of each channel at the quantile `_WHITE`."""
    channels = np.moveaxis(pixels.reshape(len(pixels), -1, 3), -1, 1)
    place = int((channels.shape[2] - 1) * _WHITE)
    return np.sort(channels, axis=2, kind="stable")[..., place]  # of bytes: a radix sort
