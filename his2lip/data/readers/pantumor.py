"""PanTumor: whole slides with cells annotated in COCO JSON, a box CSV, or a SlideRunner/EXACT database."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path, PurePosixPath

import pydantic

from his2lip.config import Config, validate
from his2lip.data.images import Tiling, around, encode_png, open_slide
from his2lip.data.readers.base import Item, LeftOut, Reader
from his2lip.data.readers.cells import ANNOTATIONS, Cell, read_cells
from his2lip.data.shards import Patch
from his2lip.errors import DatasetError

_INDICATION = re.compile(r"(?<![A-Za-z])(HNSCC|NSCLC|TNBC|GC)(?![A-Za-z])", re.IGNORECASE)
_UNKNOWN_SCALE_PX = 128  # side of a patch where neither slide nor card says microns a pixel


class PantumorOptions(Config):
    """Side of a patch around a cell in microns, and how many cells of a class a slide gives at most."""

    field_um: pydantic.PositiveFloat = 29.0
    max_cells: pydantic.PositiveInt | None = 2000


class PantumorReader(Reader):
    """A patch centred on each annotated cell; a slide is opened once."""

    suffixes = (".svs", ".ndpi", ".mrxs", ".scn", ".tif", ".tiff", ".png", ".jpg", ".jpeg")

    def find(self) -> Iterator[str]:
        """Slides, and names of slides that annotations speak of but that are not there."""
        there = [key for key in super().find() if not key.lower().endswith(ANNOTATIONS)]
        names = {PurePosixPath(key).name for key in there}
        yield from there
        yield from sorted(set(self._cells) - names)

    def item(self, key: str) -> Item:
        file = self.parts(key, 1)[-1]
        if not (self.root / key).is_file():
            raise DatasetError("annotations without their slide")
        if file not in self._cells:
            raise DatasetError("a slide without annotations")
        indication = _INDICATION.search(key)
        return Item(
            key=key,
            name=file,
            split=self.base_split,
            slide_id=file.rpartition(".")[0],
            region_id=indication[1].upper() if indication else None,
            biomarker="CD3",
            mpp=self.card.mpp,
        )

    def sources(self, item: Item) -> list[Path]:
        return [*super().sources(item), *self._annotation_files]

    def patches(self, item: Item, tiling: Tiling | None) -> Iterator[Patch | LeftOut]:
        options = validate(PantumorOptions, self.card.options, where=f"card {self.card.name}, options")
        with open_slide(self.root / item.key, fallback_mpp=item.mpp) as slide:
            if slide.mpp_note:
                yield LeftOut(item.name, slide.mpp_note)
            side = round(options.field_um / slide.mpp) if slide.mpp else _UNKNOWN_SCALE_PX
            kept: dict[str, list[Cell]] = {}
            seen: set[tuple[float, float]] = set()
            for cell in self._cells[item.name]:
                reason = self._reason(cell, slide.width, slide.height)
                if reason is None and (cell.x, cell.y) in seen:
                    reason = "two cells lie here"
                if reason is None:
                    seen.add((cell.x, cell.y))
                    kept.setdefault(self.card.label(cell.label), []).append(cell)
                else:
                    yield LeftOut(f"{item.name}#{cell.key}", reason)
            for label, cells in sorted(kept.items()):
                for cell in _some(cells, options.max_cells, item.name):
                    pixels, left, top = around(slide, cell.x, cell.y, side, side)
                    place = {"x": left, "y": top, "width": side, "height": side, "mpp": slide.mpp}
                    yield self.patch(item, encode_png(pixels), f"#{cell.key}", label=label, **place)

    def _reason(self, cell: Cell, width: int, height: int) -> str | None:
        """Why a cell gives no patch, or None."""
        if not (0 <= cell.x < width and 0 <= cell.y < height):
            return "the cell lies outside the slide"
        try:
            self.card.label(cell.label)
        except DatasetError as error:
            return error.what
        return None

    @cached_property
    def _annotation_files(self) -> list[Path]:
        return [self.root / key for key in super().find() if key.lower().endswith(ANNOTATIONS)]

    @cached_property
    def _cells(self) -> dict[str, list[Cell]]:
        """Slide file name -> its cells, of every annotation file under the root; their keys are unique."""
        cells: dict[str, dict[str, Cell]] = {}
        for path in self._annotation_files:
            for slide, of_slide in read_cells(path).items():
                known = cells.setdefault(slide, {})
                for cell in of_slide:
                    name, n = cell.key, 1
                    while name in known:  # each file, and a careless one itself, counts from 0
                        name, n = f"{cell.key}.{n}", n + 1
                    known[name] = replace(cell, key=name)
        return {slide: list(of_slide.values()) for slide, of_slide in cells.items()}


def _some(cells: list[Cell], most: int | None, seed: str) -> list[Cell]:
    if most is None or len(cells) <= most:
        return cells
    return sorted(cells, key=lambda c: hashlib.blake2b(f"{seed}#{c.key}".encode()).digest())[:most]
