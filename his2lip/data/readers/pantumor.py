"""PanTumor: whole slides, and files of annotated cells in any format of `annotated_cells`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import pydantic

from his2lip.config import Config, validate
from his2lip.data.images import Tiling, around, encode_png, open_slide
from his2lip.data.readers.annotated_cells import ANNOTATIONS, AnnotatedCell, find_slides, read_annotations
from his2lip.data.readers.base import Item, LeftOut, Reader
from his2lip.data.shards import Patch
from his2lip.errors import DatasetError

_INDICATION = re.compile(r"(?<![A-Za-z])(HNSCC|NSCLC|TNBC|GC)(?![A-Za-z])", re.IGNORECASE)
_UNKNOWN_SCALE_PX = 128  # pixels per side of a patch whose microns per pixel are unknown


class PantumorOptions(Config):
    """Which patches are cut."""

    field_um: pydantic.PositiveFloat = 29.0
    """Microns per side of a patch."""
    max_cells: pydantic.PositiveInt | None = 2000
    """Largest number of annotated cells per class and slide, chosen by a hash; null: all."""


class PantumorReader(Reader):
    """A patch centred on each annotated cell. `find_slides` finds the slide of an annotation."""

    suffixes = (".svs", ".ndpi", ".mrxs", ".scn", ".tif", ".tiff", ".png", ".jpg", ".jpeg")
    views = ()

    def find(self) -> Iterator[str]:
        """Slides, and names of slides in annotations for which no slide, or no single slide, was found."""
        for key in self.files():
            if key.lower().endswith(ANNOTATIONS):
                self.passed_over["a file of annotations"] += 1
            else:
                yield key
        yield from sorted(self._without_slide)

    def item(self, key: str) -> Item:
        if not (self.root / key).is_file():
            raise DatasetError(self._without_slide.get(key, "annotations without their slide"), key="slide")
        self.parts(key, 1)
        if key in self._ambiguous:
            raise DatasetError(
                f"annotations that may belong to it: {self._ambiguous[key]}", key="annotations"
            )
        if key not in self._cells:
            raise DatasetError("a slide without annotations", key="annotations")
        indication = _INDICATION.search(key)
        return Item(
            key=key,
            name=key,
            split=self.base_split,
            slide_id=key.rpartition(".")[0],
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
            kept: dict[str, list[AnnotatedCell]] = {}
            seen: set[tuple[float, float]] = set()
            found = [(cell, self._reason(cell, slide.width, slide.height)) for cell in self._cells[item.key]]
            labels: dict[tuple[float, float], set[str]] = {}
            for cell, reason in found:
                if reason is None:
                    labels.setdefault((cell.x, cell.y), set()).add(self.card.label(cell.label))
            for cell, reason in found:
                if reason is None and len(labels[cell.x, cell.y]) > 1:
                    reason = "annotated cells of several classes have this position"
                elif reason is None and (cell.x, cell.y) in seen:
                    reason = "two annotated cells have this position"
                if reason is None:
                    seen.add((cell.x, cell.y))
                    kept.setdefault(self.card.label(cell.label), []).append(cell)
                else:
                    yield LeftOut(f"{item.name}#{cell.key}", reason)
            for label, cells in sorted(kept.items()):
                for cell in _choose(cells, options.max_cells, item.name):
                    pixels, left, top = around(slide, cell.x, cell.y, side, side)
                    place = {"x": left, "y": top, "width": side, "height": side, "mpp": slide.mpp}
                    yield self.patch(item, encode_png(pixels), f"#{cell.key}", label=label, **place)

    def _reason(self, cell: AnnotatedCell, width: int, height: int) -> str | None:
        """Why no patch is cut around an annotated cell, or None."""
        if cell.fault is not None:
            return cell.fault
        if not (0 <= cell.x < width and 0 <= cell.y < height):
            return "the annotated cell lies outside the slide"
        try:
            self.card.label(cell.label)
        except DatasetError as error:
            return error.what
        return None

    @property
    def _cells(self) -> dict[str, list[AnnotatedCell]]:
        """Path of a slide -> its annotated cells, from all annotation files under the root."""
        return self._joined[0]

    @property
    def _without_slide(self) -> dict[str, str]:
        """Name of a slide in annotations for which no slide, or no single slide, was found -> the reason."""
        return self._joined[1]

    @property
    def _ambiguous(self) -> dict[str, str]:
        """Path of a slide -> the annotations that may belong to it or to another slide."""
        return self._joined[2]

    @cached_property
    def _annotation_files(self) -> list[Path]:
        return [
            self.root / key for key, rule in self.walk() if rule is None and key.lower().endswith(ANNOTATIONS)
        ]

    @cached_property
    def _joined(self) -> tuple[dict[str, list[AnnotatedCell]], dict[str, str], dict[str, str]]:
        """`_cells`, `_without_slide` and `_ambiguous`."""
        keys = [key for key, rule in self.walk() if rule is None]
        slides = [key for key in keys if key.lower().endswith(self.suffixes)]
        cells: dict[str, dict[str, AnnotatedCell]] = {}
        without_slide: dict[str, str] = {}
        ambiguous: dict[str, str] = {}
        for source in (key for key in keys if key.lower().endswith(ANNOTATIONS)):
            for name, of_slide in read_annotations(self.root / source).items():
                if not name:
                    n = len(of_slide)
                    without_slide[f"{source} (no slide)"] = f"{n:,} of its annotations name no slide"
                    continue
                found = find_slides(name, source, slides)
                if len(found) > 1:
                    what = f"annotations of {source}: '{name}' may be {' or '.join(found)}"
                    without_slide[name] = what
                    ambiguous |= dict.fromkeys(found, f"{source} names '{name}'")
                elif not found:
                    without_slide[name] = "annotations without their slide"
                if len(found) != 1:
                    continue
                known = cells.setdefault(found[0], {})
                for cell in of_slide:
                    key, n = cell.key, 1
                    while key in known:  # numbers start at 0 in each file, and may repeat in one
                        key, n = f"{cell.key}.{n}", n + 1
                    known[key] = replace(cell, key=key)
        return {slide: list(of_slide.values()) for slide, of_slide in cells.items()}, without_slide, ambiguous


def _choose(cells: list[AnnotatedCell], most: int | None, seed: str) -> list[AnnotatedCell]:
    """At most `most` cells, chosen by a hash of the seed and their keys."""
    if most is None or len(cells) <= most:
        return cells
    return sorted(cells, key=lambda c: hashlib.blake2b(f"{seed}#{c.key}".encode()).digest())[:most]
