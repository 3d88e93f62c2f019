"""Your own images, a folder a class: `[split/]class/**/image.png`."""

from __future__ import annotations

import re
from typing import Literal

import pydantic

from his2lip import taxonomy
from his2lip.config import Config, validate
from his2lip.data.readers.base import Item, Reader
from his2lip.errors import DatasetError, TaxonomyError


class FolderOptions(Config):
    """`means` is the column that a folder's name fills beside `label`; the others hold for all images.

    `case_pattern` is a regular expression with one group, searched in the path: the case of an image.
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
            raise ValueError("a case pattern has one group, in brackets")
        return pattern


class FolderReader(Reader):
    """Splits are the first folders, where the card declares them; else all images are of the base split."""

    def item(self, key: str) -> Item:
        options = validate(FolderOptions, self.card.options, where=f"card {self.card.name}, options")
        parts = self.parts(key, 2)
        split = self.base_split
        if parts[0] in self.card.splits:
            split, parts = parts[0], parts[1:]
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


def _case(pattern: str | None, key: str) -> str | None:
    match = re.search(pattern, key) if pattern else None
    return match[1] if match else None
