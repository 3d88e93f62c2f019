"""Views: which crops of an image a model gets."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from his2lip.config import Config


class View(Config):
    """How an image of any size is cropped. Each crop is then resized to the model's input size.

    squash  the whole image, resized to a square without keeping its aspect ratio, as in the released code
    centre  the largest square in the middle
    tiles   at most `max_tiles` squares, evenly spread, each with the field of `size` pixels at `mpp` microns
            per pixel. The defaults are the field of a MIHIC patch: 128 px at 0.226 µm, which is 29 µm. In an
            image with unknown microns per pixel, a tile is `size` pixels wide.
    """

    kind: Literal["squash", "centre", "tiles"] = "squash"
    size: int = 128
    mpp: float = 0.226
    max_tiles: int = 16

    def key(self) -> dict[str, Any]:
        """The options that change pixels: `size`, `mpp` and `max_tiles` only count for tiles."""
        return self.model_dump() if self.kind == "tiles" else {"kind": self.kind}

    def side(self, mpp: float | None) -> int | None:
        """Side of a tile in pixels of an image of `mpp` microns per pixel; None for the other views."""
        if self.kind != "tiles":
            return None
        if mpp is None or not math.isfinite(mpp) or mpp <= 0:
            return self.size
        return max(1, round(self.size * self.mpp / mpp))

    def crops(self, pixels: np.ndarray, mpp: float | None = None) -> list[np.ndarray]:
        """At least one crop of an image (H, W, 3), as array views. All are square, except with `squash`.

        mpp  microns per pixel of the image; None: unknown
        """
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
    """The largest grid (columns, rows) of at most `most` tiles in about the proportions of the full grid."""
    if columns * rows <= most:
        return columns, rows
    kept = min(columns, max(1, round(math.sqrt(most * columns / rows))), most)
    return kept, min(rows, max(1, most // kept))


def _starts(length: int, side: int, count: int) -> list[int]:
    """First pixels of `count` tiles along `length`, each in the middle of one of `count` equal parts."""
    share = length / count
    return [round(min(max((i + 0.5) * share - side / 2, 0), length - side)) for i in range(count)]
