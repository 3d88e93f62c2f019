"""Large images, pyramids through OpenSlide and plain ones alike: read by region, tissue found first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from his2lip.data.images import codec as images
from his2lip.data.images.tiling import MAX_PIXELS, Tile, Tiling, choose, tissue_mask
from his2lip.errors import ImageError

_OVERVIEW = 2048  # pixels of the longer side at which tissue is looked for


class Slide(Protocol):
    """An image that is read by region. `mpp` is microns a pixel of level 0, None where unknown."""

    width: int
    height: int
    mpp: float | None

    def region(self, x: int, y: int, side: int, out: int) -> np.ndarray:
        """uint8 (out, out, 3): the square at (x, y) of `side` level-0 pixels, all of it inside the image."""

    def overview(self, longest: int) -> np.ndarray:
        """uint8 (h, w, 3): the whole image, its longer side at most `longest`."""


class PlainSlide:
    """A decoded image."""

    def __init__(self, pixels: np.ndarray, mpp: float | None) -> None:
        self.pixels, self.mpp = pixels, mpp
        self.height, self.width = pixels.shape[:2]

    def region(self, x: int, y: int, side: int, out: int) -> np.ndarray:
        return _resized(self.pixels[y : y + side, x : x + side], out)

    def overview(self, longest: int) -> np.ndarray:
        step = -(-max(self.width, self.height) // longest)
        return self.pixels[::step, ::step]


class PyramidSlide:
    """A pyramid. Only its levels are read, never the label or macro image, which can show a name."""

    def __init__(self, path: Path, mpp: float | None) -> None:
        import openslide

        try:
            self._slide = openslide.OpenSlide(path)
        except openslide.OpenSlideError as error:
            raise ImageError(f"the slide cannot be opened: {error}") from None
        self.width, self.height = self._slide.dimensions
        said = self._slide.properties.get(openslide.PROPERTY_NAME_MPP_X)
        self.mpp = mpp if said is None else float(said)

    def region(self, x: int, y: int, side: int, out: int) -> np.ndarray:
        level = self._slide.get_best_level_for_downsample(side / out * 1.01)
        scale = self._slide.level_downsamples[level]
        size = max(1, round(side / scale))
        return _resized(self._read(x, y, level, (size, size)), out)

    def overview(self, longest: int) -> np.ndarray:
        level = self._slide.get_best_level_for_downsample(max(1, max(self.width, self.height) / longest))
        width, height = self._slide.level_dimensions[level]
        if width * height > MAX_PIXELS:
            raise ImageError("the slide has no level small enough for an overview")
        pixels = self._read(0, 0, level, (width, height))
        return pixels[:: -(-max(width, height) // longest), :: -(-max(width, height) // longest)]

    def _read(self, x: int, y: int, level: int, size: tuple[int, int]) -> np.ndarray:
        import openslide

        try:
            region = self._slide.read_region((x, y), level, size)
        except openslide.OpenSlideError as error:
            raise ImageError(f"the slide is broken: {error}") from None
        ground = Image.new("RGBA", region.size, "white")  # what was not scanned is transparent
        return np.asarray(Image.alpha_composite(ground, region).convert("RGB"))

    def close(self) -> None:
        self._slide.close()


@contextmanager
def open_slide(path: Path, mpp: float | None = None) -> Iterator[PlainSlide | PyramidSlide]:
    """The slide at `path`, through OpenSlide where it knows the format, else decoded whole.

    `mpp` stands in where the file does not say its own. Raises ImageError where neither can read it.
    """
    import openslide

    if openslide.OpenSlide.detect_format(path) is None:
        yield PlainSlide(images.decode(path.read_bytes(), max_pixels=MAX_PIXELS), mpp)
        return
    slide = PyramidSlide(path, mpp)
    try:
        yield slide
    finally:
        slide.close()


def slide_tiles(slide: Slide, tiling: Tiling, *, seed: str) -> Iterator[Tile]:
    """Tiles of tissue at the tiling's scale; each region is read once. Raises ImageError without tissue."""
    side = tiling.side(slide.mpp)
    mpp = slide.mpp * side / tiling.size if slide.mpp else None
    for x, y in tile_places(slide, tiling, seed=seed):
        data = tiling.encode(slide.region(x, y, side, tiling.size))
        yield Tile(data, f"#{x}_{y}", tiling.size, tiling.size, x, y, mpp)


def tile_places(slide: Slide, tiling: Tiling, *, seed: str) -> list[tuple[int, int]]:
    """Level-0 (x, y) of the tiles on tissue, `tiling.side` pixels wide. Raises ImageError without tissue."""
    side = tiling.side(slide.mpp)
    if side > min(slide.width, slide.height):
        raise ImageError(f"the slide is {slide.width} x {slide.height} px, smaller than a tile of {side} px")
    return choose(_tissue_share(slide, side), side, tiling, seed=seed)


def around(slide: Slide, x: float, y: float, side: int, out: int) -> tuple[np.ndarray, int, int]:
    """(uint8 (out, out, 3), left, top) of the square centred on a point; past the border it is reflected."""
    left, top = round(x - side / 2), round(y - side / 2)
    inside_x = min(max(left, 0), max(slide.width - side, 0))
    inside_y = min(max(top, 0), max(slide.height - side, 0))
    if min(slide.width, slide.height) < side:
        raise ImageError(f"the image is smaller than a patch of {side} px")
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
    """float (rows, columns): the share of tissue in each tile of a grid, seen at low power."""
    overview = slide.overview(_OVERVIEW)
    mask = tissue_mask(overview).astype(np.float32)
    scale = slide.width / overview.shape[1]
    rows, columns = slide.height // side, slide.width // side
    share = np.zeros((rows, columns))
    for r, c in np.ndindex(rows, columns):
        top, left = int(r * side / scale), int(c * side / scale)
        bottom, right = max(top + 1, int((r + 1) * side / scale)), max(left + 1, int((c + 1) * side / scale))
        seen = mask[top:bottom, left:right]
        share[r, c] = seen.mean() if seen.size else 0
    return share


def _resized(pixels: np.ndarray, out: int) -> np.ndarray:
    if pixels.shape[:2] == (out, out):
        return np.ascontiguousarray(pixels)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize((out, out), Image.Resampling.BICUBIC))
