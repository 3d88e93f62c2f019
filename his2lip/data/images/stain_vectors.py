"""Stain vectors: published optical-density directions, and mixing and unmixing by them."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

# Optical-density directions in (R, G, B). Haematoxylin, DAB, eosin and AEC: Ruifrok and Johnston, Anal Quant
# Cytol Histol 23 (2001) 291-299, the values of scikit-image's `rgb_from_hed`, `rgb_from_hdx`, `rgb_from_hax`.
HAEMATOXYLIN = (0.65, 0.70, 0.29)
DAB = (0.27, 0.57, 0.78)
EOSIN = (0.07, 0.99, 0.11)
AEC = (0.2743, 0.6796, 0.6803)
# Not stains, so there is no published vector. Carbon absorbs all light equally. Unstained haemoglobin absorbs
# at 415 nm (blue) and 540 to 577 nm (green), which leaves red cells straw-coloured.
CARBON = (1.0, 1.0, 1.0)
HAEMOGLOBIN = (0.16, 0.42, 0.66)

CHROMOGENS: dict[str, tuple[float, float, float]] = {"DAB": DAB, "AEC": AEC}

HED = np.array([HAEMATOXYLIN, EOSIN, DAB])  # rows of scikit-image's `rgb_from_hed`
HED.setflags(write=False)
_UNMIX = np.linalg.inv(HED)  # the same as scikit-image's `hed_from_rgb`
_DENSITY = -np.log10(np.maximum(np.arange(256), 1) / 255)  # optical density of each intensity; 0 counts as 1
_UNIT_HED = HED / np.linalg.norm(HED, axis=1, keepdims=True)
_UNIT_UNMIX = np.linalg.inv(_UNIT_HED)


def unmix(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """uint8 (…, 3) RGB to optical densities (…, 3) of haematoxylin, eosin and DAB, some of them negative."""
    densities: NDArray[np.float64] = _DENSITY[pixels] @ _UNMIX
    return densities


def restained(pixels: NDArray[np.uint8], vectors: NDArray[np.float64]) -> NDArray[np.uint8]:
    """An image, uint8 (H, W, 3), whose haematoxylin, eosin and DAB have other vectors (3, 3).

    Negative optical densities are kept, so that the published vectors, `HED`, give the image back.
    """
    density = _DENSITY[pixels] @ (_UNMIX @ vectors)
    return np.clip(np.rint(255 * 10**-density), 0, 255).astype(np.uint8)


def haematoxylin_and_dab(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """uint8 (…, 3) RGB to the optical densities (…) of haematoxylin and of DAB, as `unmix` has them.

    They have the same bits on every machine; the last bits of a matrix product differ.
    """
    places, blue = red_green(pixels), np.ascontiguousarray(pixels[..., 2])
    haematoxylin, dab = (
        of_red_green.take(places, mode="clip") + of_blue.take(blue, mode="clip")
        for of_red_green, of_blue in _haematoxylin_and_dab()
    )
    return haematoxylin, dab


@functools.cache
def _haematoxylin_and_dab() -> tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]:
    """Of haematoxylin and DAB: what red and green add (65536,), by `red_green`; what blue adds (256,)."""
    found = []
    for stain in (0, 2):
        red, green, blue = (_DENSITY * _UNMIX.T[stain, :, None]).astype(np.float32)
        found.append((np.add.outer(red, green).reshape(-1), blue))
    return tuple(found)


def red_green(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """int64 (…): 256 red + green of uint8 (…, 3), the place of a pixel in a table of 65,536."""
    red, green = (np.ascontiguousarray(pixels[..., channel]) for channel in range(2))
    return (red.astype(np.uint16) << 8 | green).astype(np.int64)


def restaining(
    factors: NDArray[np.float64], offsets: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(matrix (3, 3), offset (3,)) that change the amounts of haematoxylin, eosin and DAB in a pixel.

    Each stain's amount is multiplied by its factor (3,), and its offset (3,) is added, in natural optical
    density. Apply them to the optical density (…, 3) of RGB: `density @ matrix + offset`.
    """
    matrix = _UNIT_UNMIX @ np.diag(factors) @ _UNIT_HED
    return matrix.astype(np.float32), (offsets @ _UNIT_HED).astype(np.float32)


def unit(vector: tuple[float, ...] | NDArray[np.float64]) -> NDArray[np.float32]:
    """The direction of an optical-density vector, float32 (3,), length 1 and never negative."""
    positive = np.clip(np.asarray(vector, dtype=np.float64), 1e-3, None)
    return (positive / np.linalg.norm(positive)).astype(np.float32)


def tilt(vector: tuple[float, ...], shift: NDArray[np.float64]) -> NDArray[np.float32]:
    """`vector` moved by a small `shift` (3,), as batches of one dye differ in hue."""
    return unit(np.asarray(unit(vector), dtype=np.float64) + shift)


def transmit(amounts: NDArray[np.float32], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Beer-Lambert: absorbances (..., K) of K dyes with unit `vectors` (K, 3) to light (..., 3) in 0..1."""
    return np.exp(np.float32(-np.log(10)) * (amounts @ vectors))
