"""The base of all readers: files under a root, what a file's path says about it, and its patches."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from his2lip import taxonomy
from his2lip.data.cards import Card
from his2lip.data.images import Tile, Tiling, decode, tiles_of
from his2lip.data.shards import Patch
from his2lip.errors import DatasetError
from his2lip.files import is_litter

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
SYSTEM_RULE = "a hidden file, or one of a file manager, server or archiver"
# A file of this name marks the images beside it as generated (synthetic/rehearsal.py).
GENERATED = "GENERATED-BY-HIS2LIP.txt"


class PassedOver(DatasetError):
    """A readable file that the layout does not use, such as an H&E twin: counted by reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One file and what its path says about it. Texts are stored normalised (`taxonomy.normalised`).

    key   the path relative to the root, as the file system has it
    name  the patch id without the dataset; the same wherever the root is
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

    def group(self, by: str) -> str:
        """The value that a split keeps together: the case, slide or region, or the file where unknown."""
        ladder = {"case": self.case_id, "slide": self.slide_id, "region": self.region_id, "file": self.name}
        return ladder[by] or self.name


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A part of a file that was not used, such as a point outside the image."""

    place: str
    reason: str


class Reader(ABC):
    """Reads one published layout. A subclass defines what a path means, and some also how a file is cut.

    generated    whether `find` met a file that marks the images as generated
    passed_over  reason -> number of files that `find` met and did not yield
    """

    suffixes: ClassVar[tuple[str, ...]] = IMAGE_SUFFIXES

    def __init__(self, root: Path, card: Card) -> None:
        if not root.is_dir():
            fix = "give the dataset's folder as --root"
            raise DatasetError("this folder does not exist", where=root, key="--root", fix=fix)
        self.root, self.card = Path(os.path.abspath(root)), card  # "." has neither name nor parents
        self.generated = False
        self.passed_over: Counter[str] = Counter()

    def find(self) -> Iterator[str]:
        """Paths, relative to the root, of the files that the reader wants to be asked about (`item`).

        By default these are all files but those of SYSTEM_RULE. Folders that are links, or that may not be
        listed, are among them, so that they are quarantined.
        """
        yield from self.files()

    def files(self) -> Iterator[str]:
        """All files under the root, sorted by folder; those of SYSTEM_RULE are counted and not yielded."""
        self.passed_over.clear()
        for key, rule in self.walk():
            if rule is None:
                yield key
            else:
                self.passed_over[rule] += 1

    def walk(self) -> Iterator[tuple[str, str | None]]:
        """(path relative to the root, None or the rule by which it is passed over) of every file."""
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
        """What a file's path says about it. Raises DatasetError with the reason, or PassedOver."""

    def sources(self, item: Item) -> list[Path]:
        """The files that decide the patches of `item`: the file itself, and annotations that belong to it."""
        return [self.root / item.key]

    def patches(self, item: Item, tiling: Tiling | None) -> Iterator[Patch | LeftOut]:
        """The patches of a file: the file itself as published, or what `tiling` cuts from it."""
        data = (self.root / item.key).read_bytes()
        if tiling is None:
            pixels = decode(data)  # all of it, because a header does not show that a file is truncated
            yield self.patch(item, data, width=pixels.shape[1], height=pixels.shape[0])
        else:
            for tile in tiles_of(data, item.mpp, tiling, seed=item.name):
                yield self.tile(item, tile)

    def tile(self, item: Item, tile: Tile) -> Patch:
        """A row for a tile of a file."""
        place = {"x": tile.x, "y": tile.y, "mpp": tile.mpp, "width": tile.width, "height": tile.height}
        return self.patch(item, tile.image, tile.suffix, **place)

    def patch(self, item: Item, image: bytes, suffix: str = "", **more: Any) -> Patch:
        """A row for `image` with the values of `item`; `more` overrides them."""
        fields: dict[str, Any] = {name: getattr(item, name) for name in _COPIED}
        fields |= {"stain": item.stain or self.card.stain} | more
        name = self.card.name
        return Patch(patch_id=f"{name}/{item.name}{suffix}", image=image, dataset=name, **fields)

    def parts(self, key: str, least: int) -> tuple[str, ...]:
        """The path's parts, at least `least` of them. Raises DatasetError for fewer, and for other files."""
        if not key.lower().endswith(self.suffixes):
            raise DatasetError(f"not an image by its name ({os.path.splitext(key)[1] or 'no extension'})")
        parts = tuple(key.split("/"))
        if len(parts) < least:
            raise DatasetError("not where this layout has its images")
        return parts

    @property
    def base_split(self) -> str:
        """The split of all files where the dataset publishes none: the first that is not carved."""
        carved = {carve.into for carve in self.card.carve}
        return next(name for name in self.card.splits if name not in carved)

    def official_split(self, folder: str, names: dict[str, str] | None = None) -> str:
        """The card's split that a folder's name means; `names` maps other names to it, in lower case."""
        name = taxonomy.folded(folder)
        split = self.find_split((names or {}).get(name, name))
        if split is None:
            raise DatasetError(f"the folder '{folder}' is none of the splits {', '.join(self.card.splits)}")
        return split

    def find_split(self, name: str) -> str | None:
        """The card's split that `name` spells, whatever its case, or None."""
        return next((s for s in self.card.splits if taxonomy.folded(s) == taxonomy.folded(name)), None)

    @property
    def groups_by_case(self) -> bool:
        """Whether some split of the card is made, or said to be made, by whole cases."""
        made = any(carve.by == "case" for carve in self.card.carve)
        return made or any(split.groups == "case" for split in self.card.splits.values())


_COPIED = (
    "split", "case_id", "slide_id", "region_id", "twin_id", "tissue", "biomarker", "label", "score", "mpp",
)  # fmt: skip


def refuse_spellings(values: Iterable[str], *, where: str | Path, key: str) -> None:
    """Raises DatasetError for two values that differ only in case, white space or Unicode form.

    One name of a case, class or split that is written in two ways would count as two.
    """
    known: dict[str, str] = {}
    for value in values:
        first = known.setdefault(taxonomy.folded(value), value)
        if first != value:
            what = f"'{first}' and '{value}' differ only in case, white space or Unicode form"
            raise DatasetError(what, where=where, key=key, fix="write the name in one way")
