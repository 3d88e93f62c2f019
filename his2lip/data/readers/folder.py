"""Your own images, one folder per class: `[split/]class/**/image.png`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import PurePosixPath
from typing import Literal

import pydantic

from his2lip import taxonomy
from his2lip.config import Config, validate
from his2lip.data.images import Tiling
from his2lip.data.readers.base import Item, LeftOut, Reader, refuse_spellings
from his2lip.data.shards import Patch
from his2lip.errors import DatasetError, TaxonomyError


class FolderOptions(Config):
    """How folders and paths are read.

    means              the column that a class folder's name fills, besides `label`
    tissue, biomarker  of all images
    case_pattern       a regular expression with one group, searched in an image's path: its case
    """

    means: Literal["label", "tissue", "biomarker", "score"] = "label"
    tissue: str | None = None
    biomarker: str | None = None
    case_pattern: str | None = None

    @pydantic.field_validator("tissue", "biomarker")
    @classmethod
    def _is_known(cls, name: str | None, field: pydantic.ValidationInfo) -> str | None:
        known = {"tissue": taxonomy.tissue, "biomarker": taxonomy.biomarker}[str(field.field_name)]
        try:
            return known(name) if name else None
        except TaxonomyError as error:
            raise ValueError(f"{error.what} ({error.fix})") from None

    @pydantic.field_validator("case_pattern")
    @classmethod
    def _has_one_group(cls, pattern: str | None) -> str | None:
        try:
            groups = re.compile(pattern).groups if pattern else 1
        except re.error as error:
            raise ValueError(f"this is not a regular expression ({error})") from None
        if groups != 1:
            raise ValueError("a case pattern has exactly one group, in round brackets")
        return pattern


class FolderReader(Reader):
    """A first folder that spells a split of the card is that split; other images are of the base split."""

    def find(self) -> Iterator[str]:
        """All files. Raises DatasetError for folders that spell one name in two ways, and for lost cases.

        A case is lost where the card keeps cases whole and `case_pattern` is not found in an image's path:
        the image would be a case of its own, and a patient could be in two splits.
        """
        keys = list(self.files())
        images = [key for key in keys if key.lower().endswith(self.suffixes)]
        first = [PurePosixPath(key).parts[0] for key in images]
        splits = (folder for folder in first if self.find_split(folder) is not None)
        refuse_spellings(splits, where=self.root, key="split")
        classes = (placed[1][0] for placed in map(self._placed, images) if len(placed[1]) > 1)
        refuse_spellings(classes, where=self.root, key="label")
        pattern = self._options.case_pattern
        lost = [key for key in images if pattern and _case(pattern, key) is None]
        if lost and self.groups_by_case:
            what = f"case_pattern finds no case in {len(lost):,} of {len(images):,} paths, such as {lost[0]}"
            fix = "change the pattern, or group by 'file' on the card"
            raise DatasetError(what, where=f"card {self.card.name}", key="options.case_pattern", fix=fix)
        yield from keys

    def item(self, key: str) -> Item:
        options = self._options
        self.parts(key, 2)
        split, parts = self._placed(key)
        if len(parts) < 2:
            raise DatasetError("not in a folder of a class")
        label = self.card.label(parts[0]) if self.card.classes else parts[0]
        tissue = label if options.means == "tissue" else options.tissue
        biomarker = label if options.means == "biomarker" else options.biomarker
        return Item(
            key=key,
            name=key,
            split=split,
            case_id=_case(options.case_pattern, key),
            tissue=taxonomy.tissue(tissue) if tissue else None,
            biomarker=taxonomy.biomarker(biomarker) if biomarker else None,
            label=label,
            score=label if options.means == "score" else None,
            mpp=self.card.mpp,
        )

    def patches(self, item: Item, tiling: Tiling | None) -> Iterator[Patch | LeftOut]:
        yield from super().patches(item, tiling)
        if self._options.case_pattern and item.case_id is None:
            yield LeftOut(item.name, "its case: case_pattern finds none in the path")

    def _placed(self, key: str) -> tuple[str, tuple[str, ...]]:
        """The split of an image, and its path below the split's folder."""
        parts = PurePosixPath(key).parts
        split = self.find_split(parts[0])
        return (self.base_split, parts) if split is None else (split, parts[1:])

    @cached_property
    def _options(self) -> FolderOptions:
        return validate(FolderOptions, self.card.options, where=f"card {self.card.name}, options")


def _case(pattern: str | None, key: str) -> str | None:
    match = re.search(pattern, key) if pattern else None
    return match[1] if match else None
