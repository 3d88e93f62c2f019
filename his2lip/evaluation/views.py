"""Views: which crops of an image a model is shown, and how much of the image's tissue they show."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from his2lip.config import Config
from his2lip.data.images import tissue_mask

SQUASHED_FROM = 4.0  # an image that spans more training fields than this is said to be squashed
NEARLY_BLANK = 0.01  # share of tissue below which an image counts as nearly blank
_FEWEST = 16  # tiles that are used where an image has them, even if fewer reach the coverage
_ON_TISSUE = 0.25  # share of tissue from which a tile counts as tissue; sparser ones come after them
_MASK_PX = 16  # pixels of the tissue mask per side of a tile
_GAP = 0.1  # largest part of a tile's side that may stay unseen at the borders of an image
_TISSUE_TILES = 2  # version of the choice of tiles, raised when it changes


class TrainingField(NamedTuple):
    """What a model saw per input side in training: `px` pixels and `um` microns of its patches."""

    px: int
    um: float

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> TrainingField | None:
        """The training field that a checkpoint records (`patch` in his2lip.json); None where unknown."""
        patch = meta.get("patch") or {}
        return cls(patch["size"], round(patch["size"] * patch["mpp"], 2)) if patch else None

    def times(self, side: np.ndarray, mpp: np.ndarray) -> np.ndarray:
        """How many training fields `side` pixels (N,) span at `mpp` microns per pixel (N,).

        Where `mpp` is NaN, pixels are compared, as if the image had the scale of the training patches.
        """
        return np.where(np.isnan(mpp), side / self.px, side * mpp / self.um)


MIHIC_FIELD = TrainingField(128, 29.0)  # of a MIHIC patch; for models that record no training field


@dataclass(frozen=True)
class Squares:
    """The parts of one image that a view shows.

    places  (x, y) of each, in pixels, in reading order
    width, height  of each, in pixels; equal except with `squash`
    seen    share of the image's tissue that lies inside; None for a nearly blank image
    """

    places: list[tuple[int, int]]
    width: int
    height: int
    seen: float | None


class View(Config):
    """How an image of any size is cropped. Each crop is then resized to the model's input size.

    squash  the whole image, resized to a square without keeping its aspect ratio, as in the released code
    centre  the largest square in the middle
    tiles   squares of `um` microns per side that lie on tissue, evenly spread: at least 16 of them if there
            are as many, then more until they show the share `coverage` of the tissue, at most `max_tiles`.
            In an image with unknown microns per pixel, a tile is `size` pixels wide. A nearly blank image
            gives evenly spread tiles.
    """

    kind: Literal["squash", "centre", "tiles"] = "squash"
    size: int = MIHIC_FIELD.px
    um: float = MIHIC_FIELD.um
    coverage: float = 0.5
    max_tiles: int = 512

    def key(self) -> dict[str, Any]:
        """The options that change pixels: all but `kind` only count for tiles."""
        return self.model_dump() | {"tiles": _TISSUE_TILES} if self.kind == "tiles" else {"kind": self.kind}

    def side(self, mpp: float | None) -> int | None:
        """Side of a tile in pixels of an image of `mpp` microns per pixel; None for the other views."""
        if self.kind != "tiles":
            return None
        if mpp is None or not math.isfinite(mpp) or mpp <= 0:
            return self.size
        return max(1, round(self.um / mpp))

    def crops(self, pixels: np.ndarray, mpp: float | None = None) -> list[np.ndarray]:
        """At least one crop of an image, uint8 (H, W, 3), as array views; square except with `squash`.

        mpp  microns per pixel of the image; None: unknown
        """
        found = self.squares(pixels, mpp)
        return [pixels[y : y + found.height, x : x + found.width] for x, y in found.places]

    def squares(self, pixels: np.ndarray, mpp: float | None = None) -> Squares:
        """Where the crops of an image, uint8 (H, W, 3), lie, and the share of its tissue that they show.

        Equal images have equal crops. The share is of a tissue mask at 16 pixels per side of a tile.
        """
        height, width = pixels.shape[:2]
        if self.kind == "squash":
            return Squares([(0, 0)], width, height, 1.0)
        side = min(self.side(mpp) or height, height, width)
        if self.kind == "centre":
            columns, rows = [(width - side) // 2], [(height - side) // 2]
        else:
            columns, rows = _starts(width, side), _starts(height, side)
        step = max(1, side // _MASK_PX)
        tissue = tissue_mask(pixels[::step, ::step])
        blank = tissue.mean() < NEARLY_BLANK
        if blank:
            tissue = np.ones_like(tissue)
        numbers = np.array([(c, r) for r in range(len(rows)) for c in range(len(columns))])
        places = np.stack([np.array(columns)[numbers[:, 0]], np.array(rows)[numbers[:, 1]]], axis=1)
        boxes = -(-np.concatenate([places, places + side], axis=1) // step)  # the mask's pixels inside
        share = _share(tissue, boxes)
        most = min(_FEWEST, self.max_tiles) if blank else self.max_tiles
        order = _order(share, numbers)[:most]
        chosen, seen = self._until_covered(tissue, boxes[order], share[order])
        used = [(int(x), int(y)) for x, y in places[sorted(order[:chosen]) or [0]]]
        return Squares(used, side, side, None if blank else seen)

    def _until_covered(self, tissue: np.ndarray, boxes: np.ndarray, share: np.ndarray) -> tuple[int, float]:
        """How many of the tiles are needed, in their order, and the share of the tissue that these show.

        tissue  bool (h, w)
        boxes   int (N, 4), left, top, right and bottom of each tile in it
        share   float (N,), the share of tissue of each tile
        """
        total, shown = max(int(tissue.sum()), 1), 0
        seen = np.zeros_like(tissue)
        for number, (left, top, right, bottom) in enumerate(boxes):
            if shown >= self.coverage * total and (number >= _FEWEST or share[number] < _ON_TISSUE):
                return number, shown / total
            place = (slice(top, bottom), slice(left, right))
            shown += int((tissue[place] & ~seen[place]).sum())
            seen[place] = True
        return len(boxes), shown / total


def _starts(length: int, side: int) -> list[int]:
    """First pixels of the fewest squares along `length` that leave no more than `_GAP` of a side unseen."""
    count = max(1, math.ceil(length / side - _GAP))
    if count == 1:
        return [(length - side) // 2]
    return [round(i * (length - side) / (count - 1)) for i in range(count)]


def _share(tissue: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """float (N,): the share of tissue, bool (h, w), in boxes (N, 4): left, top, right and bottom."""
    sums = np.pad(tissue.astype(np.int64).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    left, top, right, bottom = boxes.T
    inside = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    return inside / np.maximum((right - left) * (bottom - top), 1)


def _order(share: np.ndarray, numbers: np.ndarray) -> list[int]:
    """The order in which tiles are used: those on tissue, evenly spread; then sparser ones, richest first.

    share    float (N,), the share of tissue of each tile; those without tissue are left out
    numbers  int (N, 2), column and row of each tile in the grid

    The spread is the R2 sequence (Roberts 2018): the first k of the tiles on tissue are evenly spread.
    """
    a = 0.7548776662466927  # the inverse of the plastic number
    spread = (numbers[:, 0] * a + numbers[:, 1] * a * a) % 1.0
    sparse = share < _ON_TISSUE
    order = np.lexsort((np.where(sparse, -share, spread), sparse))
    return [int(i) for i in order if share[i] > 0]
