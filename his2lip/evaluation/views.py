"""Views: the crops of an image that a model reads."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from his2lip.config import Config


class View(Config):
    """How an image of any size becomes square crops, each then resized to the model's input.

    squash  the whole image, its sides forced equal (what the released code does to any image)
    centre  the largest centred square
    tiles   at most `max_tiles` squares of `size` pixels at `mpp` microns per pixel, spread evenly. The
            defaults are the field of a MIHIC patch: 128 px at 0.226 µm, which is 29 µm. A tile is `size` of
            the image's own pixels where its microns per pixel are unknown.
    """

    kind: Literal["squash", "centre", "tiles"] = "squash"
    size: int = 128
    mpp: float = 0.226
    max_tiles: int = 16

    def key(self) -> dict[str, Any]:
        """The options that decide pixels: those of tiles count for tiles only."""
        return self.model_dump() if self.kind == "tiles" else {"kind": self.kind}

    def side(self, mpp: float | None) -> int | None:
        """Side of a tile in the image's own pixels; None for the other kinds of view."""
        if self.kind != "tiles":
            return None
        if mpp is None or not math.isfinite(mpp) or mpp <= 0:
            return self.size
        return max(1, round(self.size * self.mpp / mpp))

    def crops(self, pixels: np.ndarray, mpp: float | None = None) -> list[np.ndarray]:
        """At least one crop of uint8 (H, W, 3), not copied. All are square, except for `squash`."""
        height, width = pixels.shape[:2]
        if self.kind == "squash":
            return [pixels]
        side = min(height, width) if self.kind == "centre" else min(self.side(mpp) or 1, height, width)
        columns, rows = (
            (1, 1) if self.kind == "centre" else _grid(width // side, height // side, self.max_tiles)
        )
        return [
            pixels[y : y + side, x : x + side]
            for y in _starts(height, side, rows)
            for x in _starts(width, side, columns)
        ]


def _grid(columns: int, rows: int, most: int) -> tuple[int, int]:
    """The finest grid (columns, rows) of at most `most` tiles, in the proportions of the whole grid."""
    if columns * rows <= most:
        return columns, rows
    kept = min(columns, max(1, round(math.sqrt(most * columns / rows))), most)
    return kept, min(rows, max(1, most // kept))


def _starts(length: int, side: int, count: int) -> list[int]:
    """Starts of `count` tiles of one side within a length, each in the middle of its equal share."""
    share = length / count
    return [round(min(max((i + 0.5) * share - side / 2, 0), length - side)) for i in range(count)]
