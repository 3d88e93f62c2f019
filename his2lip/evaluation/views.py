"""Views: which square crops of an image a model gets to see."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from his2lip.config import Config


class View(Config):
    """How an image of any size becomes square crops, each then resized to the model's input.

    squash  the whole image, its sides forced equal (what the released code does to any image)
    centre  the largest centred square
    tiles   squares of `size` pixels at `mpp` microns a pixel, at most `max_tiles`, spread evenly. The
            defaults are the field of a MIHIC patch: 128 px at 0.226 µm, 29 µm. Where the image's own microns
            a pixel are unknown a tile is `size` of its pixels.
    """

    kind: Literal["squash", "centre", "tiles"] = "squash"
    size: int = 128
    mpp: float = 0.226
    max_tiles: int = 16

    def key(self) -> dict[str, Any]:
        """What of this view decides pixels: options of tiles do not count elsewhere."""
        return self.model_dump() if self.kind == "tiles" else {"kind": self.kind}

    def side(self, mpp: float | None) -> int | None:
        """Side of a tile in the image's own pixels; None where the view does not depend on it."""
        if self.kind != "tiles":
            return None
        if mpp is None or not math.isfinite(mpp) or mpp <= 0:
            return self.size
        return max(1, round(self.size * self.mpp / mpp))

    def crops(self, pixels: np.ndarray, mpp: float | None = None) -> list[np.ndarray]:
        """Crops of uint8 (H, W, 3), as views into it; at least one. All but squash's are square."""
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
    """The finest (columns, rows) grid of at most `most` tiles, in the proportions of the full one."""
    if columns * rows <= most:
        return columns, rows
    kept = min(columns, max(1, round(math.sqrt(most * columns / rows))), most)
    return kept, min(rows, max(1, most // kept))


def _starts(length: int, side: int, count: int) -> list[int]:
    """`count` places of a side in a length: each in the middle of its equal share."""
    share = length / count
    return [round(min(max((i + 0.5) * share - side / 2, 0), length - side)) for i in range(count)]
