"""Pictures of patches: the tissue around a patch, from its neighbours or its slide, and a scale bar."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from his2lip.data.images import decode, open_slide
from his2lip.data.shards import ShardSet
from his2lip.errors import DatasetError
from his2lip.evaluation import read_images

CONTEXT_UM = 200.0  # microns of tissue shown around a patch, on each side, where the slide has them
_SIDE = 512  # pixels of the longer side of a picture, or of each of its two parts
_GAP = 8  # pixels between the two
_BARS_UM = (
    5,
    10,
    20,
    50,
    100,
    200,
    500,
    1000,
)  # lengths of scale bars; the longest that fits a third is drawn
_AT_ONCE = 32  # patches whose surroundings are in memory together
_EMPTY = 238  # grey of places of which the shards have no patch


@dataclass(frozen=True)
class PatchInContext:
    """A patch with its surroundings.

    pixels      uint8 (H, W, 3)
    box         left, top, right and bottom of the patch in it
    mpp         microns per pixel; None: unknown
    context_um  microns of tissue around the patch, on the side that shows most; None: the patch only
    """

    pixels: np.ndarray
    box: tuple[int, int, int, int]
    mpp: float | None
    context_um: float | None


class Surroundings:
    """The surroundings of the patches of a prepared dataset.

    A patch that was cut from a larger image has neighbours of its region (or slide) at other places. Where
    the published files are at hand, the image itself shows what lies around it.
    """

    def __init__(self, shards: ShardSet, root: Path | None = None) -> None:
        """`root` is the folder that the dataset was prepared from."""
        self._shards, self._root = shards, root
        self._regions: dict[str, dict[str | None, list[tuple[int, Mapping[str, Any]]]]] = {}

    def views(
        self, split: str, patches: Mapping[int, Mapping[str, Any]], *, context_um: float
    ) -> Iterator[PatchInContext]:
        """The patches of some rows, given by the columns of their place, with up to `context_um` around them.

        Raises DatasetError for an image that cannot be decoded.
        """
        rows = list(patches)
        for part in (rows[at : at + _AT_ONCE] for at in range(0, len(rows), _AT_ONCE)):
            near = {row: self._near(split, row, patches[row], context_um) for row in part}
            needed = sorted({*part, *(other for own in near.values() for other, _, _ in own)})
            images = {row: patch["image"] for row, patch in read_images(self._shards, split, needed)}
            for row in part:
                yield self._view(split, patches[row], near[row], row, images, context_um)

    def _view(
        self,
        split: str,
        patch: Mapping[str, Any],
        near: list[tuple[int, int, int]],
        row: int,
        images: Mapping[int, bytes],
        context_um: float,
    ) -> PatchInContext:
        pixels = decode(images[row])
        height, width = pixels.shape[:2]
        mpp = patch["mpp"]
        alone = PatchInContext(pixels, (0, 0, width, height), mpp, None)
        if mpp is None or patch["x"] is None or patch["y"] is None:
            return alone
        margin = round(context_um / mpp)
        of_slide = self._from_slide(patch, alone, margin, self._scale(split, patch))
        if of_slide is not None or not near:
            return of_slide or alone
        canvas = np.full((height + 2 * margin, width + 2 * margin, 3), _EMPTY, dtype=np.uint8)
        covered = np.zeros(canvas.shape[:2], dtype=bool)
        for other, x, y in near:
            _paste(canvas, covered, decode(images[other]), x + margin, y + margin)
        _paste(canvas, covered, pixels, margin, margin)
        rows, columns = np.flatnonzero(covered.any(axis=1)), np.flatnonzero(covered.any(axis=0))
        top, left = int(rows[0]), int(columns[0])
        shown = canvas[top : rows[-1] + 1, left : columns[-1] + 1]
        x, y = margin - left, margin - top
        return _around(shown, (x, y, x + width, y + height), mpp)

    def _from_slide(
        self, patch: Mapping[str, Any], alone: PatchInContext, margin: int, scale: float
    ) -> PatchInContext | None:
        """The surroundings in the image that a patch was cut from; None where that is not at hand."""
        if self._root is None:
            return None
        _, _, path = patch["patch_id"].partition("#")[0].partition("/")
        file = (self._root / path).resolve()
        if not path or not file.is_relative_to(self._root.resolve()) or not file.is_file():
            return None
        _, _, width, height = alone.box
        try:
            with open_slide(file) as slide:
                scale = patch["mpp"] / slide.mpp if slide.mpp else scale
                whole = (slide.width, slide.height)
                side = min(round((max(width, height) + 2 * margin) * scale), *whole)
                centre = (patch["x"] + width * scale / 2, patch["y"] + height * scale / 2)
                left, top = (
                    min(max(round(at - side / 2), 0), most - side)
                    for at, most in zip(centre, whole, strict=True)
                )
                pixels = slide.region(left, top, side, max(round(side / scale), 1))
        except DatasetError:  # a file of another kind, or one that is damaged
            return None
        x, y = round((patch["x"] - left) / scale), round((patch["y"] - top) / scale)
        return _around(pixels, (x, y, x + width, y + height), patch["mpp"])

    def _near(
        self, split: str, row: int, patch: Mapping[str, Any], context_um: float
    ) -> list[tuple[int, int, int]]:
        """(row, x, y) of the neighbours around a patch, from its own left and top, in its own pixels."""
        if patch["mpp"] is None or patch["x"] is None or patch["y"] is None:
            return []
        margin, scale = round(context_um / patch["mpp"]), self._scale(split, patch)
        found = []
        for other, place in self._neighbours(split, patch):
            x, y = round((place["x"] - patch["x"]) / scale), round((place["y"] - patch["y"]) / scale)
            near_x = -place["width"] - margin < x < patch["width"] + margin
            near_y = -place["height"] - margin < y < patch["height"] + margin
            if other != row and near_x and near_y and place["mpp"] == patch["mpp"]:
                found.append((other, x, y))
        return found

    def _neighbours(self, split: str, patch: Mapping[str, Any]) -> list[tuple[int, Mapping[str, Any]]]:
        """(row, place) of the patches that were cut from the same image."""
        if split not in self._regions:
            columns = ["patch_id", "region_id", "slide_id", "x", "y", "width", "height", "mpp"]
            found: dict[str | None, list[tuple[int, Mapping[str, Any]]]] = {}
            for row, place in enumerate(self._shards.table(split, columns).to_pylist()):
                if place["x"] is not None and place["y"] is not None and _image_of(place) is not None:
                    found.setdefault(_image_of(place), []).append((row, place))
            self._regions[split] = found
        return self._regions[split].get(_image_of(patch), [])

    def _scale(self, split: str, patch: Mapping[str, Any]) -> float:
        """Pixels of the larger image per pixel of a patch, which may have been resized.

        By the card's microns per pixel, else by the grid on which the tiles of the image lie.
        """
        of_card = self._shards.info.card.get("mpp")
        if of_card:
            return patch["mpp"] / float(of_card)
        step = math.gcd(*(place[axis] for _, place in self._neighbours(split, patch) for axis in ("x", "y")))
        return step / patch["width"] if step > patch["width"] else 1.0


def draw(view: PatchInContext) -> tuple[np.ndarray, float | None]:
    """A picture, uint8 (H, W, 3), and the microns of its scale bar; None where the scale is unknown.

    Where the surroundings are shown, the patch is on the left and lies framed in them on the right, each with
    a bar; the one on the right is returned. Where the scale is unknown, the picture says so.
    """
    if view.context_um is None:
        return _panel(view.pixels, view.mpp)
    left, top, right, bottom = view.box
    patch, _ = _panel(view.pixels[top:bottom, left:right], view.mpp)
    around, bar = _panel(view.pixels, view.mpp, framed=view.box)
    height = max(len(patch), len(around))
    picture = np.full((height, patch.shape[1] + _GAP + around.shape[1], 3), 255, dtype=np.uint8)
    picture[: len(patch), : patch.shape[1]] = patch
    picture[: len(around), patch.shape[1] + _GAP :] = around
    return picture, bar


def _panel(
    pixels: np.ndarray, mpp: float | None, *, framed: tuple[int, int, int, int] | None = None
) -> tuple[np.ndarray, float | None]:
    """An enlarged image with a frame and a scale bar, and the microns of the bar."""
    height, width = pixels.shape[:2]
    zoom = _SIDE / max(height, width)
    size = (max(round(width * zoom), 1), max(round(height * zoom), 1))
    image = Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image)
    if framed is not None:
        left, top, right, bottom = (round(edge * zoom) for edge in framed)
        for grow, colour in ((2, "white"), (1, "black")):
            pen.rectangle((left - grow, top - grow, right + grow - 1, bottom + grow - 1), outline=colour)
    font = _font()
    if mpp is None:
        _label(pen, "scale unknown", (10, size[1] - 30), font)
        return np.asarray(image), None
    bar = max((um for um in _BARS_UM if um <= width * mpp / 3), default=_BARS_UM[0])
    length = round(bar / mpp * zoom)
    foot = size[1] - 12
    pen.rectangle((9, foot - 5, 11 + length, foot + 1), fill="white")
    pen.rectangle((10, foot - 4, 10 + length, foot), fill="black")
    _label(pen, f"{bar} µm", (10, foot - 30), font)
    return np.asarray(image), float(bar)


def _around(pixels: np.ndarray, box: tuple[int, int, int, int], mpp: float) -> PatchInContext:
    height, width = pixels.shape[:2]
    left, top, right, bottom = box
    most = max(left, top, width - right, height - bottom)
    return PatchInContext(pixels, box, mpp, round(most * mpp, 1) if most > 0 else None)


def _paste(canvas: np.ndarray, covered: np.ndarray, pixels: np.ndarray, x: int, y: int) -> None:
    """Lays an image at (x, y) of the canvas, as far as it lies on it."""
    height, width = pixels.shape[:2]
    top, left = max(y, 0), max(x, 0)
    bottom, right = min(y + height, canvas.shape[0]), min(x + width, canvas.shape[1])
    if top < bottom and left < right:
        canvas[top:bottom, left:right] = pixels[top - y : bottom - y, left - x : right - x]
        covered[top:bottom, left:right] = True


@cache
def _font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib carries: Pillow's own font has no µ."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size=18)


def _label(pen: ImageDraw.ImageDraw, text: str, at: tuple[int, int], font: Any) -> None:
    pen.text(at, text, font=font, fill="black", stroke_width=2, stroke_fill="white")


def _image_of(place: Mapping[str, Any]) -> str | None:
    """What tells the images apart that patches were cut from: the file of a tile, else the region."""
    file, tile, _ = place["patch_id"].partition("#")
    return file if tile else place["region_id"] or place["slide_id"]
