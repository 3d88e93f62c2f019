"""Colours of classes and of similarities, as readers with any colour vision tell them apart."""

from __future__ import annotations

import colorsys

import numpy as np

Colour = tuple[int, int, int]

# Okabe and Ito (2008), black last: told apart under the common colour blindnesses.
_DISTINCT: tuple[Colour, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66),
    (0, 114, 178), (213, 94, 0), (204, 121, 167), (0, 0, 0),
)  # fmt: skip
# Five points of viridis (van der Walt and Smith 2015), dark to bright.
_SCALE = np.array(
    [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], dtype=np.float64
)


def class_colours(count: int) -> list[Colour]:
    """One colour a class; more than eight are spread over the hues."""
    if count <= len(_DISTINCT):
        return list(_DISTINCT[:count])
    wheel = (colorsys.hsv_to_rgb(i / count, 0.9, 0.6 + 0.4 * (i % 2)) for i in range(count))
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in wheel]


def scale_colours(values: np.ndarray) -> np.ndarray:
    """uint8 (…, 3) of values in [0, 1]."""
    place = np.clip(values, 0, 1) * (len(_SCALE) - 1)
    points = np.arange(len(_SCALE))
    channels = [np.interp(place, points, _SCALE[:, c]) for c in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)
