"""Tilings: how patches are cut from an image (squashed, centre crop, tiles of tissue), and the cutting."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pydantic
from PIL import Image

from his2lip.config import Config, validate
from his2lip.data.cards import Mpp
from his2lip.data.images import codec
from his2lip.data.images.stain_vectors import red_green
from his2lip.errors import ConfigError, ImageError

MAX_PIXELS = 600_000_000  # of an image that is tiled: 1.8 GB of memory while it is cut
MAX_TILES = 1_000_000  # places of one image's grid; a slide of 100,000 x 100,000 px has 200,000 of 224 px
_CUT_NOTE = re.compile(r"(\d+) of (\d+) tiles of tissue are cut \(max_tiles\)")
# Optical density (mean over channels) from which a pixel counts as tissue; glass scatters below 0.03.
TISSUE_DENSITY = 0.06
_DENSITY = -np.log10((np.arange(256, dtype=np.float32) + 1) / 256)  # optical density of each intensity


class Tiling(Config):
    """What `prepare --view` cuts from each image.

    squash  the whole image, resized to `size` x `size`
    centre  the largest centred square, resized to `size` x `size`
    tiles   a grid of squares of `size` px at `mpp` microns per pixel, or at the image's own scale where
            either is unknown; tiles with at least the share `tissue` of tissue, `max_tiles` of them by a seed

    Only tiles have `mpp`, `max_tiles` and `tissue`.
    """

    kind: Literal["squash", "centre", "tiles"]
    size: int = pydantic.Field(default=224, ge=codec.MIN_SIDE, le=8192)
    mpp: Mpp | None = None
    max_tiles: pydantic.PositiveInt | None = None
    tissue: float = pydantic.Field(default=0.25, ge=0, le=1)
    codec: Literal["png", "jpeg"] = "png"

    @pydantic.field_validator("mpp", "max_tiles", "tissue")
    @classmethod
    def _is_of_tiles(cls, value: float | None, field: pydantic.ValidationInfo) -> float | None:
        """The default is accepted in every view, since a view that is printed has it."""
        name, kind = str(field.field_name), field.data.get("kind", "tiles")
        if kind != "tiles" and value != cls.model_fields[name].default:
            raise ValueError(f"only tiles have {name}: leave it out of {kind}")
        return value

    @classmethod
    def parse(cls, text: str) -> Tiling:
        """`squash`, `centre`, `tiles` or `tiles(size=256, mpp=0.5, max_tiles=64, codec=jpeg)`.

        Raises ConfigError for another text, for an option that is given twice, and for one that the view does
        not use.
        """
        match = re.fullmatch(r"\s*(\w+)\s*(?:\((.*)\))?\s*", text)
        if match is None:
            raise ConfigError(
                f"'{text}' is not a view", key="--view", fix="write squash, centre or tiles(size=224)"
            )
        options: dict[str, Any] = {"kind": match[1]}
        for part in filter(None, (p.strip() for p in (match[2] or "").split(","))):
            name, _, value = part.partition("=")
            name = name.strip()
            if name in options:
                raise ConfigError(
                    f"{name} is given twice", where=f"view '{text}'", key=name, fix="give it once"
                )
            options[name] = value.strip()
        return validate(cls, options, where=f"view '{text}'")

    def __str__(self) -> str:
        options = [f"{k}={v}" for k, v in self.model_dump(exclude={"kind"}, exclude_none=True).items()]
        return f"{self.kind}({', '.join(options)})"

    def side(self, mpp: float | None) -> int:
        """Side of a tile in pixels of an image at `mpp` microns per pixel; None: at an unknown scale."""
        return self.size if not (self.mpp and mpp) else max(1, round(self.size * self.mpp / mpp))

    def encode(self, pixels: np.ndarray) -> bytes:
        return codec.encode_png(pixels) if self.codec == "png" else codec.encode_jpeg(pixels)


@dataclass(frozen=True)
class Tile:
    """Encoded pixels cut at (x, y), in pixels of the image.

    suffix  what the patch id adds to the image's
    mpp     microns per pixel of the tile itself, after resizing
    of      number of tiles with enough tissue that the image has; fewer are cut where `max_tiles` limits them
    """

    image: bytes
    suffix: str
    width: int
    height: int
    x: int
    y: int
    mpp: float | None
    of: int = 1


def tiles_of(data: bytes, mpp: float | None, tiling: Tiling, *, seed: str) -> Iterator[Tile]:
    """Tiles of an encoded image. Raises ImageError for one that cannot be used or shows no tissue."""
    pixels = codec.decode(data, max_pixels=MAX_PIXELS)
    height, width = pixels.shape[:2]
    if tiling.kind == "squash":
        yield _tile(pixels, 0, 0, None, tiling, "")
        return
    if tiling.kind == "centre":
        side = min(height, width)
        x, y = (width - side) // 2, (height - side) // 2
        yield _tile(pixels[y : y + side, x : x + side], x, y, mpp, tiling, "")
        return
    side = tiling.side(mpp)
    check_grid(width, height, side)
    share = tissue_share(pixels, side)
    places, of = choose(share, side, tiling, seed=seed)
    for x, y in places:
        yield _tile(pixels[y : y + side, x : x + side], x, y, mpp, tiling, f"#{x}_{y}", of)


def check_grid(width: int, height: int, side: int) -> None:
    """Raises ImageError where an image has no room for a tile of `side` px, or more than `MAX_TILES`."""
    if side > min(width, height):
        what = f"the image is {width} x {height} px, smaller than one tile of {side} px"
        raise ImageError(what, key="size")
    places = (width // side) * (height // side)
    if places > MAX_TILES:
        what = f"the image would be cut into {places:,} tiles of {side} px, above the limit of {MAX_TILES:,}"
        raise ImageError(what, key="tiles", fix="check the microns per pixel of image and tiles")


def tissue_share(pixels: np.ndarray, side: int) -> np.ndarray:
    """float (rows, columns): the share of tissue in each tile of a grid over uint8 (H, W, 3)."""
    step = max(1, side // 64)  # about 64 x 64 pixels per tile are enough
    rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
    share = np.zeros((rows, columns))
    for r, c in np.ndindex(rows, columns):
        tile = pixels[r * side : (r + 1) * side : step, c * side : (c + 1) * side : step]
        share[r, c] = tissue_mask(tile).mean()
    return share


def tissue_mask(pixels: np.ndarray) -> np.ndarray:
    """bool (H, W) of uint8 (H, W, 3): stained tissue; not glass (too bright), not pen (too pure a colour)."""
    places, blue = red_green(pixels), np.ascontiguousarray(pixels[..., 2])
    first, last = (table.take(places, mode="clip") for table in _tissue_blues())
    return (first <= blue) & (blue <= last)


@functools.cache
def _tissue_blues() -> tuple[np.ndarray, np.ndarray]:
    """The lowest and highest blue of tissue, uint8 (65536,), by `red_green`; 255 and 0 where there is none.

    Each condition of tissue holds for the blues on one side of a limit, so a pixel needs two comparisons.
    """
    red, green = np.divmod(np.arange(65536), 256)
    first = np.where(green > red + 25, green - 10, 0)  # no stain is green
    last = np.maximum(red + 90, green + 60)  # nor as pure a blue as that of a felt pen
    first = np.where(np.maximum(red, green) < 40, np.maximum(first, 40), first)  # black ink, coverslip edges
    stained = _DENSITY[red] + _DENSITY[green]
    dense = np.full(65536, -1)  # the highest blue at which the pixel is dense enough, by bisection
    for step in (128, 64, 32, 16, 8, 4, 2, 1, 1):
        higher = dense + step
        dense = np.where((stained + _DENSITY[higher]) / np.float32(3) > TISSUE_DENSITY, higher, dense)
    last = np.minimum(last, dense)
    none = first > last
    return np.where(none, 255, first).astype(np.uint8), np.where(none, 0, last).astype(np.uint8)


def cut_note(cut: int, of: int) -> str:
    """The remark that only `cut` of an image's `of` tiles of tissue were cut."""
    return f"{cut} of {of} tiles of tissue are cut (max_tiles)"


def cut_share(note: str) -> float | None:
    """The share of an image's tiles of tissue that were cut, by a remark of `cut_note`; None for another."""
    match = _CUT_NOTE.fullmatch(note)
    return int(match[1]) / int(match[2]) if match else None


def choose(share: np.ndarray, side: int, tiling: Tiling, *, seed: str) -> tuple[list[tuple[int, int]], int]:
    """(x, y) of the tiles to cut, in reading order, and the number of places with enough tissue.

    share  float (rows, columns): the share of tissue of each place of the grid
    Raises ImageError where no tile has enough tissue.
    """
    rows, columns = np.nonzero(share >= tiling.tissue)
    places = [(int(c) * side, int(r) * side) for r, c in zip(rows, columns, strict=True)]
    if not places:
        raise ImageError("the image shows no tissue", key="tissue")
    if tiling.max_tiles is None or len(places) <= tiling.max_tiles:
        return places, len(places)
    kept = sorted(places, key=lambda p: hashlib.blake2b(f"{seed}#{p[0]}_{p[1]}".encode()).digest())
    return sorted(kept[: tiling.max_tiles], key=lambda p: (p[1], p[0])), len(places)


def _tile(
    pixels: np.ndarray, x: int, y: int, mpp: float | None, tiling: Tiling, suffix: str, of: int = 1
) -> Tile:
    side = pixels.shape[1]
    if pixels.shape[:2] != (tiling.size, tiling.size):
        image = Image.fromarray(np.ascontiguousarray(pixels))
        pixels = np.asarray(image.resize((tiling.size, tiling.size), Image.Resampling.BICUBIC))
    scaled = mpp * side / tiling.size if mpp else None
    data = tiling.encode(np.ascontiguousarray(pixels))
    return Tile(data, suffix, tiling.size, tiling.size, x, y, scaled, of)
