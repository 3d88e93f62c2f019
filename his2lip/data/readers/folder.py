"""A user's own images in one folder per class: `[split/]class/**/image.png`."""

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
    """The labels of an image that come from its folder and path, and those that all images have."""

    means: Literal["label", "tissue", "biomarker", "score"] = "label"
    """The column, besides `label`, that gets the name of the class folder."""
    tissue: str | None = None
    """Tissue type of all images."""
    biomarker: str | None = None
    """Biomarker of all images."""
    case_pattern: str | None = None
    """A regular expression with one group, which is the case. It is searched in the path of each image."""

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
            raise ValueError(f"a case pattern must be a regular expression ({error})") from None
        if groups != 1:
            raise ValueError("a case pattern must have exactly one group, in round brackets")
        return pattern


class FolderReader(Reader):
    """The first folder is the split if it has the name of one. Otherwise an image is in the base split."""

    def find(self) -> Iterator[str]:
        """All files.

        Raises DatasetError for folders, and for cases, that differ only in spelling. Also raises it where the
        card groups splits by case and `case_pattern` finds no case in the path of an image, or where it
        carves splits by case without a `case_pattern`: one patient could be in two splits.
        """
        keys = list(self.files())
        images = [key for key in keys if key.lower().endswith(self.suffixes)]
        top = [PurePosixPath(key).parts[0] for key in images]
        splits = (folder for folder in top if self.find_split(folder) is not None)
        refuse_spellings(splits, where=self.root, key="split")
        classes = (placed[1][0] for placed in map(self._placed, images) if len(placed[1]) > 1)
        refuse_spellings(classes, where=self.root, key="label")
        pattern = self._options.case_pattern
        if pattern is None and any(rule.by == "case" for rule in self.card.carve):
            what, fix = (
                "a split is carved by case, and no case_pattern is given",
                "give it, or carve by 'file'",
            )
            raise DatasetError(what, where=f"card {self.card.name}", key="options.case_pattern", fix=fix)
        cases = {key: _case(pattern, key) for key in images}
        refuse_spellings((case for case in cases.values() if case), where=self.root, key="case_id")
        missed = [key for key, case in cases.items() if pattern and case is None]
        if missed and self.groups_by_case:
            what = (
                f"case_pattern finds no case in {len(missed):,} of {len(images):,} paths, such as {missed[0]}"
            )
            fix = "change the pattern, move the files away, or group by 'file' on the card"
            raise DatasetError(what, where=f"card {self.card.name}", key="options.case_pattern", fix=fix)
        yield from keys

    def item(self, key: str) -> Item:
        options = self._options
        self.parts(key, 2)
        split, parts = self._placed(key)
        if len(parts) < 2:
            raise DatasetError("not in a folder of a class", key="label")
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
            yield LeftOut(item.name, "its case, since case_pattern does not match the path")

    def _placed(self, key: str) -> tuple[str, tuple[str, ...]]:
        """The split of an image, and its path below the split's folder."""
        parts = PurePosixPath(key).parts
        split = self.find_split(parts[0])
        return (self.base_split, parts) if split is None else (split, parts[1:])

    @cached_property
    def _options(self) -> FolderOptions:
        return validate(FolderOptions, self.card.options, where=f"card {self.card.name}, options")


def _case(pattern: str | None, key: str) -> str | None:
    """The case in a path; None where the pattern does not match, or its group is empty."""
    match = re.search(pattern, key) if pattern else None
    return taxonomy.normalised(match[1] or "") or None if match else None
