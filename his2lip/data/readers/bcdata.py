"""BCData: `images/{train,validation,test}/N.png`, `annotations/{split}/{positive,negative}/N.h5`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydantic

from his2lip.config import Config, validate
from his2lip.data.images import MIN_SIDE, PlainSlide, Tiling, around, decode, encode_png, tissue_mask
from his2lip.data.readers.base import Item, LeftOut, Reader
from his2lip.data.shards import Patch
from his2lip.errors import DatasetError

_KINDS = ("positive", "negative")
_LEAST_TISSUE = 0.5  # smallest share of tissue in a patch without nuclei, so that glass is not a class


class BcdataOptions(Config):
    """Which patches are cut."""

    field_px: int = pydantic.Field(default=64, ge=MIN_SIDE)
    """Pixels per side of a patch."""
    per_image: pydantic.PositiveInt | None = 40
    """Largest number of patches per class and image, chosen by a hash; null: all."""


class Point(NamedTuple):
    """The centre of a patch in pixels of its image, and the patch's class."""

    x: float
    y: float
    label: str


class BcdataReader(Reader):
    """A patch around each nucleus (positive, negative), and patches of tissue without nuclei (none)."""

    suffixes = (".png",)
    views = ()

    def find(self) -> Iterator[str]:
        """Images, and annotations without an image."""
        keys = list(self.files())
        images = {_numbered(key) for key in keys if key.lower().endswith(".png")}
        for key in keys:
            if _is_annotation(key) and _numbered(key) in images:
                self.passed_over["the annotations of an image"] += 1
            else:
                yield key

    def item(self, key: str) -> Item:
        if _is_annotation(key):
            raise DatasetError("an annotation without its image", key="image")
        folder, file = self.parts(key, 2)[-2:]
        split = self.official_split(folder, {"val": "validation"})
        if not any(path.is_file() for path in self._annotations(key)):
            raise DatasetError("an image without annotations", key="annotations")
        return Item(
            key=key,
            name=f"images/{folder}/{file}",
            split=split,
            biomarker="Ki67",
            mpp=self.card.mpp,
        )

    def sources(self, item: Item) -> list[Path]:
        return [*super().sources(item), *self._annotations(item.key)]

    def patches(self, item: Item, tiling: Tiling | None) -> Iterator[Patch | LeftOut]:
        options = validate(BcdataOptions, self.card.options, where=f"card {self.card.name}, options")
        side, most = options.field_px, options.per_image
        slide = PlainSlide(decode((self.root / item.key).read_bytes()), item.mpp)
        points = self._points(item.key)
        seen: set[tuple[float, float]] = set()
        inside: list[Point] = []
        for point in points:
            place = f"{item.name}#{point.x:g}_{point.y:g}"
            if not (0 <= point.x < slide.width and 0 <= point.y < slide.height):
                yield LeftOut(place, "the point lies outside the image")
            elif point[:2] in seen:
                yield LeftOut(place, "two points have this position")
            else:
                seen.add(point[:2])
                inside.append(point)
        absent = [path.parent.name for path in self._annotations(item.key) if not path.is_file()]
        for kind in absent:  # such cells may lie anywhere
            yield LeftOut(item.name, f"patches without nuclei, since it has no file of {kind} cells")
        empty = [] if absent else _empty_places(slide, inside, side)
        both = {p[:2] for p in points if p.label == "positive"} & {
            p[:2] for p in points if p.label == "negative"
        }
        for x, y in sorted(both & seen):
            yield LeftOut(f"{item.name}#{x:g}_{y:g}", "a positive and a negative point have this position")
        inside = [point for point in inside if point[:2] not in both]
        by_label = [*([p for p in inside if p.label == kind] for kind in _KINDS), empty]
        chosen = [point for of_label in by_label for point in _choose(of_label, most, item.name)]
        for x, y, label in chosen:
            pixels, left, top = around(slide, x, y, side, side)
            at = {"x": left, "y": top, "width": side, "height": side, "label": label}
            yield self.patch(item, encode_png(pixels), f"#{label}-{x:g}_{y:g}", **at)

    def _annotations(self, key: str) -> list[Path]:
        """The h5 files of an image: annotations/{split}/{positive,negative}/N.h5."""
        path = self.root / key
        base = path.parents[2] / "annotations" / path.parent.name
        files = [base / kind / f"{path.stem}.h5" for kind in _KINDS]
        return [upper if (upper := file.with_suffix(".H5")).is_file() else file for file in files]

    def _points(self, key: str) -> list[Point]:
        paths = zip(_KINDS, self._annotations(key), strict=True)
        return [Point(x, y, kind) for kind, path in paths if path.is_file() for x, y in read_points(path)]


def read_points(path: Path) -> list[tuple[float, float]]:
    """(x, y) in pixels of the points in an HDF5 file: its dataset `coordinates`, (M, 2).

    Raises DatasetError for a file that cannot be read or has another shape.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            values = np.asarray(file["coordinates"], dtype=np.float64)
    except (OSError, KeyError, ValueError, TypeError) as error:
        what = f"the annotation {path.name} cannot be read: {error}"
        raise DatasetError(what, key=path.name) from None
    if values.size == 0:
        return []
    if values.ndim != 2 or values.shape[1] != 2:
        what = f"the annotation {path.name} has shape {values.shape}, not (M, 2)"
        raise DatasetError(what, key=path.name)
    return [(float(x), float(y)) for x, y in values]


def _empty_places(slide: PlainSlide, points: list[Point], side: int) -> list[Point]:
    """Centres of the squares of a grid that show tissue and have no point inside or within side / 8."""
    reach = side / 2 + side / 8
    nuclei = np.array([p[:2] for p in points], dtype=float).reshape(-1, 2)
    mask = tissue_mask(slide.pixels)
    places = []
    for y in range(side // 2, slide.height - side // 2 + 1, side):
        for x in range(side // 2, slide.width - side // 2 + 1, side):
            free = not (np.abs(nuclei - (x, y)).max(axis=1, initial=0) < reach).any() if len(nuclei) else True
            square = mask[y - side // 2 : y + side // 2, x - side // 2 : x + side // 2]
            if free and square.mean() >= _LEAST_TISSUE:
                places.append(Point(x, y, "none"))
    return places


def _choose(points: list[Point], most: int | None, seed: str) -> list[Point]:
    """At most `most` points, chosen by a hash of the seed and their position."""
    if most is None or len(points) <= most:
        return points
    return sorted(points, key=lambda p: hashlib.blake2b(f"{seed}#{p.x:g}_{p.y:g}".encode()).digest())[:most]


def _is_annotation(key: str) -> bool:
    return key.lower().endswith(".h5")


def _numbered(key: str) -> tuple[str, str]:
    """(folder of the split, number), which are the same for an image and its annotations."""
    parts = key.split("/")
    folder = parts[-3] if _is_annotation(key) and len(parts) > 2 else parts[-2] if len(parts) > 1 else ""
    return folder, Path(parts[-1]).stem
