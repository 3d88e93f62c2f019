"""The base class of readers: the files under a folder, the labels of each file, and its patches."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from his2lip import taxonomy
from his2lip.data.cards import Card, Grouping
from his2lip.data.images import Tile, Tiling, cut_note, decode, tiles_of
from his2lip.data.shards import Patch
from his2lip.errors import DatasetError
from his2lip.files import is_litter

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
SYSTEM_RULE = "a hidden file, or one of a file manager, server or archiver"
# A file of this name marks the images under its folder as generated (synthetic/rehearsal.py).
GENERATED = "GENERATED-BY-HIS2LIP.txt"
# Labels of an item that its patches have too; the stain may also come from the card.
_COPIED = (
    "split", "case_id", "slide_id", "region_id", "twin_id", "tissue", "biomarker", "label", "score", "mpp",
)  # fmt: skip


class PassedOver(DatasetError):
    """A readable file that the dataset does not use, such as an H&E twin. It is counted by this reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One file and its labels. None: unknown. Texts are stored in the form of `taxonomy.normalised`.

    key   path relative to the root, in the file system's own spelling
    name  patch id without the dataset's name; it does not depend on where the root is
    mpp   microns per pixel
    """

    key: str
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

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, str) and field.name != "key":
                object.__setattr__(self, field.name, taxonomy.normalised(value) or None)

    def group(self, by: Grouping) -> str:
        """The name of the item's case, slide, region or file (`by`).

        Raises DatasetError where it is unknown: one patient's files could come into two splits.
        """
        groups = {"case": self.case_id, "slide": self.slide_id, "region": self.region_id, "file": self.name}
        name = groups[by]
        if name is None:
            raise DatasetError(f"its {by} is unknown, and the card carves its split by {by}", key=f"{by}_id")
        return name


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A part of a file that was not used, such as an annotated point outside the image."""

    place: str
    reason: str


class Reader(ABC):
    """Reads one published layout.

    A subclass defines `item`, which gets the labels of a file from its path. Some subclasses also define
    which files there are (`find`), and how patches are cut from a file (`patches`).

    generated    whether `find` found a file that marks the images as generated
    passed_over  reason -> number of files that `find` found and did not yield
    views        the kinds of `Tiling` that `patches` makes; a prepare with another one is refused
    """

    suffixes: ClassVar[tuple[str, ...]] = IMAGE_SUFFIXES
    views: ClassVar[tuple[str, ...]] = ("squash", "centre", "tiles")

    def __init__(self, root: Path, card: Card) -> None:
        if not root.is_dir():
            fix = "give the dataset's folder as --root"
            raise DatasetError("this folder does not exist", where=root, key="--root", fix=fix)
        self.root = Path(os.path.abspath(root))  # since the path "." has neither a name nor parents
        self.card = card
        self.generated = False
        self.passed_over: Counter[str] = Counter()

    def find(self) -> Iterator[str]:
        """Paths, relative to the root, of the files for which `item` is to be called.

        By default these are all files except those of SYSTEM_RULE. Folders that are links or cannot be listed
        are included, so that they are quarantined.
        """
        yield from self.files()

    def files(self) -> Iterator[str]:
        """All files under the root, sorted by folder. Those of SYSTEM_RULE are counted, but not yielded."""
        self.passed_over.clear()
        for key, rule in self.walk():
            if rule is None:
                yield key
            else:
                self.passed_over[rule] += 1

    def walk(self) -> Iterator[tuple[str, str | None]]:
        """(path relative to the root, the rule by which it is passed over or None) of every file."""
        unlistable: list[OSError] = []
        for folder, folders, files in os.walk(self.root, onerror=unlistable.append):
            folders[:] = sorted(folders)
            relative = [] if folder == str(self.root) else self._key(folder).split("/")
            is_system = any(map(is_litter, relative))
            self.generated |= GENERATED in files and not is_system
            for name in sorted(files) + [f for f in folders if os.path.islink(os.path.join(folder, f))]:
                key = self._key(os.path.join(folder, name))
                if is_system or is_litter(name):
                    yield key, SYSTEM_RULE
                else:
                    yield key, "the note that the images are generated" if name == GENERATED else None
        yield from ((self._key(error.filename), None) for error in unlistable)

    def _key(self, path: str) -> str:
        return os.path.relpath(path, self.root).replace(os.sep, "/")

    @abstractmethod
    def item(self, key: str) -> Item:
        """The labels of a file.

        Raises PassedOver for a file that the dataset does not use, and another DatasetError for a file that
        cannot be used.
        """

    def sources(self, item: Item) -> list[Path]:
        """The files that determine the patches of `item`: the file itself, and its annotations."""
        return [self.root / item.key]

    def patches(self, item: Item, tiling: Tiling | None) -> Iterator[Patch | LeftOut]:
        """The patches of a file, and its parts that were not used.

        tiling  how patches are cut from it; None: the published image is the patch, with the same bytes

        Raises DatasetError (ImageError for pixels) where the file cannot be used.
        """
        data = (self.root / item.key).read_bytes()
        if tiling is None:
            pixels = decode(data)  # completely, since a header does not show whether the file is truncated
            yield self.patch(item, data, width=pixels.shape[1], height=pixels.shape[0])
        else:
            yield from self.tiles(item, tiles_of(data, item.mpp, tiling, seed=item.name))

    def tiles(self, item: Item, tiles: Iterable[Tile]) -> Iterator[Patch | LeftOut]:
        """The rows of an image's tiles, and a remark where it has more tiles of tissue than these."""
        cut = of = 0
        for tile in tiles:
            cut, of = cut + 1, tile.of
            yield self.tile(item, tile)
        if cut < of:
            yield LeftOut(item.name, cut_note(cut, of))

    def tile(self, item: Item, tile: Tile) -> Patch:
        """The row of a tile."""
        place = {"x": tile.x, "y": tile.y, "mpp": tile.mpp, "width": tile.width, "height": tile.height}
        return self.patch(item, tile.image, tile.suffix, **place)

    def patch(self, item: Item, image: bytes, suffix: str = "", **more: Any) -> Patch:
        """The row of an encoded image, with the labels of `item`. `more` overrides them."""
        fields: dict[str, Any] = {name: getattr(item, name) for name in _COPIED}
        fields |= {"stain": item.stain or self.card.stain} | more
        name = self.card.name
        return Patch(patch_id=f"{name}/{item.name}{suffix}", image=image, dataset=name, **fields)

    def parts(self, key: str, least: int) -> tuple[str, ...]:
        """The parts of a path. Raises DatasetError for fewer than `least`, and for a file of another type."""
        if not key.lower().endswith(self.suffixes):
            extension = os.path.splitext(key)[1] or "no extension"
            raise DatasetError(f"not an image by its name ({extension})", key="extension")
        parts = tuple(key.split("/"))
        if len(parts) < least:
            raise DatasetError("not in a folder where this layout has images", key="path")
        return parts

    @property
    def base_split(self) -> str:
        """The split of the files of a dataset without official splits: the first that is not carved."""
        carved = {carve.into for carve in self.card.carve}
        return next(name for name in self.card.splits if name not in carved)

    def official_split(self, folder: str, names: dict[str, str] | None = None) -> str:
        """The card's split for the name of a folder.

        names  other names of splits, in lower case -> names on the card

        Raises DatasetError for the name of no split.
        """
        name = taxonomy.folded(folder)
        split = self.find_split((names or {}).get(name, name))
        if split is None:
            what = f"the folder '{folder}' is none of the splits {', '.join(self.card.splits)}"
            raise DatasetError(what, key="split")
        return split

    def find_split(self, name: str) -> str | None:
        """The card's split of that name, whatever its case, or None."""
        return next((s for s in self.card.splits if taxonomy.folded(s) == taxonomy.folded(name)), None)

    @property
    def groups_by_case(self) -> bool:
        """Whether a split of the card is carved or grouped by cases."""
        made = any(carve.by == "case" for carve in self.card.carve)
        return made or any(split.groups == "case" for split in self.card.splits.values())


def refuse_spellings(values: Iterable[str], *, where: str | Path, key: str) -> None:
    """Raises DatasetError for two values that differ only in case, white space or Unicode form.

    Otherwise one case, class or split with two spellings would count as two.
    """
    known: dict[str, str] = {}
    for value in values:
        first = known.setdefault(taxonomy.folded(value), value)
        if first != value:
            what = f"'{first}' and '{value}' differ only in case, white space or Unicode form"
            raise DatasetError(what, where=where, key=key, fix="write the name in one way")
