"""Slides: large images read by region, as pyramids through OpenSlide or decoded whole, and their tiles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from his2lip.data.cards import MAX_MPP, MIN_MPP
from his2lip.data.images import codec
from his2lip.data.images.tiling import MAX_PIXELS, Tile, Tiling, check_grid, choose, tissue_mask
from his2lip.errors import ImageError

_OVERVIEW = 2048  # pixels of the longer side of the overview in which tissue is searched
_STRIP = 2048  # rows of a level that are read at a time for an overview
_SQUARE = 0.05  # largest difference of a pixel's sides, as a share of the shorter one


class Slide(Protocol):
    """An image that is read by region.

    width, height  of level 0, in pixels
    mpp            microns per pixel of level 0, None where unknown
    mpp_note       why the file's own microns per pixel were not used, or None
    origin         (x, y) of the scanned area in level 0: viewers such as QuPath show it as their (0, 0)
    """

    width: int
    height: int
    mpp: float | None
    mpp_note: str | None
    origin: tuple[int, int]

    def region(self, x: int, y: int, side: int, out: int) -> np.ndarray:
        """uint8 (out, out, 3): the square at (x, y) of `side` level-0 pixels, all of it inside the image."""

    def overview(self, longest: int) -> np.ndarray:
        """uint8 (h, w, 3): the whole image, its longer side at most `longest`."""


class PlainSlide:
    """A decoded image, uint8 (H, W, 3), at `mpp` microns per pixel."""

    def __init__(self, pixels: np.ndarray, mpp: float | None) -> None:
        self.pixels, self.mpp = pixels, mpp
        self.mpp_note: str | None = None
        self.origin = (0, 0)
        self.height, self.width = pixels.shape[:2]

    def region(self, x: int, y: int, side: int, out: int) -> np.ndarray:
        return _resized(self.pixels[y : y + side, x : x + side], out)

    def overview(self, longest: int) -> np.ndarray:
        step = -(-max(self.width, self.height) // longest)
        return self.pixels[::step, ::step]


class PyramidSlide:
    """A pyramid. Only its levels are read, never its label or macro image, which can show a name."""

    def __init__(self, path: Path, *, mpp: float | None, fallback_mpp: float | None) -> None:
        import openslide

        try:
            self._slide = openslide.OpenSlide(path)
        except openslide.OpenSlideError as error:
            raise ImageError(f"the slide cannot be opened: {error}") from None
        properties = self._slide.properties
        self.width, self.height = self._slide.dimensions
        self.mpp, self.mpp_note = _scale(properties, mpp=mpp, fallback_mpp=fallback_mpp)
        self.origin = (
            int(properties.get(openslide.PROPERTY_NAME_BOUNDS_X, 0)),
            int(properties.get(openslide.PROPERTY_NAME_BOUNDS_Y, 0)),
        )

    def region(self, x: int, y: int, side: int, out: int) -> np.ndarray:
        level = self._slide.get_best_level_for_downsample(side / out * 1.01)
        downsample = self._slide.level_downsamples[level]
        size = max(1, round(side / downsample))
        return _resized(self._read(x, y, level, (size, size)), out)

    def overview(self, longest: int) -> np.ndarray:
        """Read in strips, so that the whole level is never in memory."""
        level = self._slide.get_best_level_for_downsample(max(1, max(self.width, self.height) / longest))
        width, height = self._slide.level_dimensions[level]
        if width * height > MAX_PIXELS:
            raise ImageError("the slide has no level small enough for an overview")
        step = -(-max(width, height) // longest)
        downsample = self._slide.level_downsamples[level]
        # OpenSlide would interpolate the rows of a strip that begins between two rows of level 0.
        rows = max(1, _STRIP // step) * step if downsample.is_integer() else height
        found = np.empty((-(-height // step), -(-width // step), 3), dtype=np.uint8)
        for top in range(0, height, rows):
            strip = self._read(0, round(top * downsample), level, (width, min(rows, height - top)))
            found[top // step : -(-(top + rows) // step)] = strip[::step, ::step]
        return found

    def _read(self, x: int, y: int, level: int, size: tuple[int, int]) -> np.ndarray:
        import openslide

        try:
            region = self._slide.read_region((x, y), level, size)
        except openslide.OpenSlideError as error:
            raise ImageError(f"the slide is broken: {error}") from None
        white = Image.new("RGBA", region.size, "white")  # areas that were not scanned are transparent
        return np.asarray(Image.alpha_composite(white, region).convert("RGB"))

    def close(self) -> None:
        self._slide.close()


@contextmanager
def open_slide(
    path: Path, *, mpp: float | None = None, fallback_mpp: float | None = None
) -> Iterator[PlainSlide | PyramidSlide]:
    """The slide at `path`, through OpenSlide where it knows the format, else decoded whole.

    mpp           microns per pixel, whatever the file states
    fallback_mpp  microns per pixel where the file states none, or an impossible value

    Raises ImageError where the file cannot be read, where it would be shown turned, and where it states
    impossible microns per pixel and neither argument replaces them.
    """
    import openslide

    kind = openslide.OpenSlide.detect_format(path)
    if kind is None:
        pixels = codec.decode(path.read_bytes(), max_pixels=MAX_PIXELS)
        yield PlainSlide(pixels, mpp if mpp is not None else fallback_mpp)
        return
    if kind == "generic-tiff" and (orientation := codec.tiff_orientation(path)) != 1:
        what = f"the slide has the orientation tag {orientation}, which OpenSlide does not apply"
        raise ImageError(what, key="orientation", fix="save it turned, without the tag")
    slide = PyramidSlide(path, mpp=mpp, fallback_mpp=fallback_mpp)
    try:
        yield slide
    finally:
        slide.close()


def mpp_of(properties: Mapping[str, str]) -> tuple[float | None, str | None]:
    """(microns per pixel, why they cannot be used), from OpenSlide's properties; at most one is not None."""
    import openslide

    across = properties.get(openslide.PROPERTY_NAME_MPP_X)
    down = properties.get(openslide.PROPERTY_NAME_MPP_Y, across)
    if across is None or down is None:
        return None, None
    try:
        x, y = float(across), float(down)
    except ValueError:
        x = y = float("nan")
    if not (MIN_MPP <= x <= MAX_MPP and MIN_MPP <= y <= MAX_MPP):
        shown = across if across == down else f"{across} x {down}"
        return None, f"the file states {shown} µm per pixel, outside {MIN_MPP:g} to {MAX_MPP:g}"
    if abs(x - y) > _SQUARE * min(x, y):
        return None, f"the file states {x:g} µm per pixel across and {y:g} down, so its pixels are not square"
    return x, None


def _scale(
    properties: Mapping[str, str], *, mpp: float | None, fallback_mpp: float | None
) -> tuple[float | None, str | None]:
    """(microns per pixel, a note where the value that the file states was not used)."""
    if mpp is not None:
        return mpp, None
    value, what = mpp_of(properties)
    if what is None:
        return (fallback_mpp if value is None else value), None
    if fallback_mpp is None:
        raise ImageError(
            what, key="mpp", fix="give its scale: mpp on the card, or classify it apart with --slide-mpp"
        )
    return fallback_mpp, f"{what}; {fallback_mpp:g} is used instead"


def slide_tiles(slide: Slide, tiling: Tiling, *, seed: str) -> Iterator[Tile]:
    """Tiles of tissue at the tiling's scale; each region is read once. Raises ImageError as `tile_places`."""
    side = tiling.side(slide.mpp)
    mpp = slide.mpp * side / tiling.size if slide.mpp else None
    places, of = _places(slide, tiling, seed)
    for x, y in places:
        data = tiling.encode(slide.region(x, y, side, tiling.size))
        yield Tile(data, f"#{x}_{y}", tiling.size, tiling.size, x, y, mpp, of)


def tile_places(slide: Slide, tiling: Tiling, *, seed: str) -> list[tuple[int, int]]:
    """Level-0 (x, y) of the tiles on tissue, `tiling.side` pixels wide.

    Raises ImageError where there is no tissue, no room for a tile, or room for more than `MAX_TILES`.
    """
    return _places(slide, tiling, seed)[0]


def _places(slide: Slide, tiling: Tiling, seed: str) -> tuple[list[tuple[int, int]], int]:
    """`tile_places`, and the number of places with enough tissue."""
    side = tiling.side(slide.mpp)
    check_grid(slide.width, slide.height, side)
    return choose(_tissue_share(slide, side), side, tiling, seed=seed)


def around(slide: Slide, x: float, y: float, side: int, out: int) -> tuple[np.ndarray, int, int]:
    """(uint8 (out, out, 3), left, top): the square of `side` pixels centred on (x, y).

    Past the border, the image is reflected. Raises ImageError for an image that is smaller than the square.
    """
    left, top = round(x - side / 2), round(y - side / 2)
    inside_x = min(max(left, 0), max(slide.width - side, 0))
    inside_y = min(max(top, 0), max(slide.height - side, 0))
    if min(slide.width, slide.height) < side:
        raise ImageError(f"the image is smaller than a patch of {side} px", key="size")
    if (inside_x, inside_y) == (left, top):
        return slide.region(left, top, side, out), left, top
    pixels = slide.region(inside_x, inside_y, side, side)
    columns = _reflected(np.arange(left, left + side), slide.width) - inside_x
    rows = _reflected(np.arange(top, top + side), slide.height) - inside_y
    return _resized(pixels[np.ix_(rows, columns)], out), left, top


def _reflected(places: np.ndarray, length: int) -> np.ndarray:
    """Places mirrored at the borders 0 and length - 1, without repeating the border pixel."""
    places = np.abs(places)
    return np.where(places >= length, 2 * (length - 1) - places, places)


def _tissue_share(slide: Slide, side: int) -> np.ndarray:
    """float (rows, columns): the share of tissue in each tile of a grid, from an overview of the slide."""
    overview = slide.overview(_OVERVIEW)
    mask = tissue_mask(overview).astype(np.float32)
    downsample = overview_downsample(overview, slide.width, slide.height)
    rows, columns = slide.height // side, slide.width // side
    share = np.zeros((rows, columns))
    for row, column in np.ndindex(rows, columns):
        top, left = int(row * side / downsample), int(column * side / downsample)
        bottom = max(top + 1, int((row + 1) * side / downsample))
        right = max(left + 1, int((column + 1) * side / downsample))
        visible = mask[top:bottom, left:right]
        share[row, column] = visible.mean() if visible.size else 0
    return share


def overview_downsample(overview: np.ndarray, width: int, height: int) -> float:
    """Level-0 pixels per pixel of the overview (h, w, 3) of a slide of `width` x `height` px.

    The sides of an overview are rounded up, which distorts the ratio of the shorter sides of a long strip.
    """
    return max(width, height) / max(overview.shape[:2])


def _resized(pixels: np.ndarray, out: int) -> np.ndarray:
    if pixels.shape[:2] == (out, out):
        return np.ascontiguousarray(pixels)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize((out, out), Image.Resampling.BICUBIC))
