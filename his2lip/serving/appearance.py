"""The appearance of an image: amounts of the stains, and detail at several scales, as a short vector."""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from his2lip.data.images import unmix

APPEARANCE_VERSION = 1  # raised when the values change
SIDE = 64  # px, to which an image is resized first
_BLURS = (0.7, 1.4, 2.8, 5.6)  # px, standard deviations of the blurs between which detail is measured
_LEAST = 1e-4  # of a standard deviation of optical density, so that its logarithm is finite


def appearance(pixels: np.ndarray) -> np.ndarray:
    """float64 (A,) of an image, uint8 (H, W, 3).

    The values are: the mean optical densities of haematoxylin, eosin and DAB (Ruifrok and Johnston 2001) and
    the logarithms of their standard deviations; for the mean density and two differences between colour
    channels, the logarithm of the standard deviation of each band of a Laplacian pyramid (Burt and Adelson
    1983); and the logarithm of the kurtosis of the finest band. Embeddings of a trained model hardly depend
    on these, since training makes classes alike, whatever the scanner (see docs/architecture.md).
    """
    small = Image.fromarray(np.ascontiguousarray(pixels)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    values = np.asarray(small)
    stains = unmix(values)
    density = -np.log10((values.astype(np.float64) + 1) / 256)
    grey = density.mean(axis=-1)
    bands = []
    for channel in (grey, density[..., 0] - density[..., 2], density[..., 1] - grey):
        sharp = channel
        for blur in _BLURS:
            blurred = gaussian_filter(channel, blur)
            bands.append(sharp - blurred)
            sharp = blurred
    finest = bands[0]
    kurtosis = (finest**4).mean() / (finest.var() ** 2 + _LEAST**4)
    detail = [np.log(band.std() + _LEAST) for band in bands]
    spread = np.log(stains.std(axis=(0, 1)) + 10 * _LEAST)
    return np.array([*stains.mean(axis=(0, 1)), *spread, *detail, np.log(kurtosis + 10 * _LEAST)])
