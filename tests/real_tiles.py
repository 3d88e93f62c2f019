"""Tiles of a real image for tests."""

from __future__ import annotations

import numpy as np


def tiles(pixels: np.ndarray, side: int = 64) -> list[np.ndarray]:
    """All whole tiles of an image, row by row."""
    height, width = pixels.shape[:2]
    return [
        pixels[y : y + side, x : x + side]
        for y in range(0, height - side + 1, side)
        for x in range(0, width - side + 1, side)
    ]
