"""What every reader shares: files found under a root, what a file's place says of it, and its patches."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from his2lip.data.cards import Card
from his2lip.data.images import Tile, Tiling, decode, tiles_of
from his2lip.data.shards import Patch
from his2lip.errors import DatasetError
from his2lip.files import is_litter

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
# A file of this name says that the images beside it are not real (synthetic/rehearsal.py).
GENERATED = "GENERATED-BY-HIS2LIP.txt"


class PassedOver(DatasetError):
    """A file that is whole but not wanted, such as an H&E twin; counted by reason, never quarantined."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One file and what its place says. `name` is stable: the patch id without the dataset."""

    key: str  # the path relative to the root
    name: str
    split: str
    case_id: str | None = None
    slide_id: str | None = None
    region_id: str | None = None
    twin_id: str | None = None
    tissue: str | None = None
    biomarker: str | None = None
    label: str | None = None
    stain: str | None = None
    score: str | None = None
    mpp: float | None = None

    def group(self, by: str) -> str:
        """The value that a split keeps whole: a case, slide or region, and the file where unknown."""
        ladder = {"case": self.case_id, "slide": self.slide_id, "region": self.region_id, "file": self.name}
        return ladder[by] or self.name


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A part of a file that gave no patch, such as a point outside the image."""

    place: str
    reason: str


class Reader(ABC):
    """Reads one published layout. A subclass says what a path means, and at times how a file is cut.

    `generated` is whether `find` met images that are said to be generated.
    """

    suffixes: ClassVar[tuple[str, ...]] = IMAGE_SUFFIXES

    def __init__(self, root: Path, card: Card) -> None:
        if not root.is_dir():
            fix = "give the dataset's folder as --root"
            raise DatasetError("this folder does not exist", where=root, fix=fix)
        self.root, self.card = Path(os.path.abspath(root)), card  # "." has neither name nor parents
        self.generated, self.litter = False, 0

    def find(self) -> Iterator[str]:
        """Paths of all files under the root, relative to it. Hidden files and litter are only counted.

        Folders that are links, or that may not be listed, are among the paths, so that they are quarantined.
        """
        closed: list[OSError] = []
        litter = 0
        for folder, folders, files in os.walk(self.root, onerror=closed.append):
            litter += sum(map(is_litter, files))
            litter += sum(_count(Path(folder, name)) for name in folders if is_litter(name))
            folders[:] = sorted(f for f in folders if not is_litter(f))
            self.generated |= GENERATED in files
            for name in sorted(files) + [f for f in folders if os.path.islink(os.path.join(folder, f))]:
                if not is_litter(name) and name != GENERATED:
                    yield self._key(os.path.join(folder, name))
        self.litter = litter
        yield from (self._key(error.filename) for error in closed)

    def _key(self, path: str) -> str:
        return os.path.relpath(path, self.root).replace(os.sep, "/")

    @abstractmethod
    def item(self, key: str) -> Item:
        """What a file's place says. Raises DatasetError (with the reason), or PassedOver."""

    def sources(self, item: Item) -> list[Path]:
        """The files that decide the patches of `item`: the file itself, and annotations that belong to it."""
        return [self.root / item.key]

    def patches(self, item: Item, tiling: Tiling | None) -> Iterator[Patch | LeftOut]:
        """The patches of a file: the file itself as published, or what `tiling` cuts from it."""
        data = (self.root / item.key).read_bytes()
        if tiling is None:
            pixels = decode(data)  # whole, since a header does not show a truncated file
            yield self.patch(item, data, width=pixels.shape[1], height=pixels.shape[0])
        else:
            for tile in tiles_of(data, item.mpp, tiling, seed=item.name):
                yield self.tile(item, tile)

    def tile(self, item: Item, tile: Tile) -> Patch:
        """A row for a tile of a file."""
        place = {"x": tile.x, "y": tile.y, "mpp": tile.mpp, "width": tile.width, "height": tile.height}
        return self.patch(item, tile.image, tile.suffix, **place)

    def patch(self, item: Item, image: bytes, suffix: str = "", **more: Any) -> Patch:
        """A row for `image` with everything that `item` says; `more` overrides it."""
        fields: dict[str, Any] = {name: getattr(item, name) for name in _COPIED}
        fields |= {"stain": item.stain or self.card.stain} | more
        name = self.card.name
        return Patch(patch_id=f"{name}/{item.name}{suffix}", image=image, dataset=name, **fields)

    def parts(self, key: str, least: int) -> tuple[str, ...]:
        """The path's parts, of which the layout needs `least`. Refuses other files than images."""
        if not key.lower().endswith(self.suffixes):
            raise DatasetError(f"not an image by its name ({os.path.splitext(key)[1] or 'no extension'})")
        parts = tuple(key.split("/"))
        if len(parts) < least:
            raise DatasetError("not where this layout has its images")
        return parts

    @property
    def base_split(self) -> str:
        """The split of datasets that publish none: the one that is not carved from another."""
        carved = {carve.into for carve in self.card.carve}
        return next(name for name in self.card.splits if name not in carved)

    def official_split(self, folder: str, names: dict[str, str] | None = None) -> str:
        """The card's split that a folder's name means."""
        split = (names or {}).get(folder.casefold(), folder.casefold())
        if split not in self.card.splits:
            raise DatasetError(f"the folder '{folder}' is none of the splits {', '.join(self.card.splits)}")
        return split


_COPIED = (
    "split", "case_id", "slide_id", "region_id", "twin_id", "tissue", "biomarker", "label", "score", "mpp",
)  # fmt: skip


def _count(folder: Path) -> int:
    """The number of files in a folder and those below it."""
    return sum(len(files) for _, _, files in os.walk(folder))
