"""ANHIR: `lung-lesion_1/scale-25pc/29-041-Izd2-w35-proSPC-4-les1.jpg`, the stain a token of the name."""

from __future__ import annotations

import re
from functools import cached_property

from his2lip import taxonomy
from his2lip.config import Config, validate
from his2lip.data.readers.base import Item, PassedOver, Reader
from his2lip.errors import DatasetError

_SCALE = re.compile(r"scale-(\d+)pc")
_HE = re.compile(r"(?<![a-z0-9])(he|h&e)(?![a-z0-9])", re.IGNORECASE)
_REGION = re.compile(r"(les|lob)\w*$", re.IGNORECASE)


class AnhirOptions(Config):
    """Sets of ANHIR that are read, such as lung-lesion for lung-lesion_1 and others; none means all."""

    sets: list[str] = []


class AnhirReader(Reader):
    """One image a stain and lesion; each stands at several scales, of which the largest present is read."""

    def item(self, key: str) -> Item:
        parts = self.parts(key, 1)
        scale = _scale(parts[-2]) if len(parts) > 1 else None
        options = validate(AnhirOptions, self.card.options, where=f"card {self.card.name}, options")
        if scale is not None and options.sets and not self._set_of(parts).startswith(tuple(options.sets)):
            raise PassedOver("of another set")
        if scale is not None and scale < self._largest["/".join(parts[:-2])]:
            raise PassedOver("the same image at a smaller scale")
        stem = parts[-1].rpartition(".")[0]
        if _HE.search(stem):
            raise PassedOver("an H&E twin")
        before, biomarker, _ = taxonomy.partition_biomarker(stem)
        if biomarker is None:
            raise DatasetError("no known biomarker stands in the name")
        if biomarker not in self.card.classes:
            raise DatasetError(f"the stain {biomarker} is not a class of the card")
        case = before.strip("-_ ")
        region = _REGION.search(stem)
        return Item(
            key=key,
            name=key,
            split=self.base_split,
            case_id=case or None,
            slide_id=stem,
            region_id=f"{case}-{region[0]}" if region else None,
            biomarker=biomarker,
            label=biomarker,
            mpp=self.card.mpp,
        )

    def _set_of(self, parts: tuple[str, ...]) -> str:
        """The folder that holds the scales; the root's own name where the root is a set."""
        return parts[-3] if len(parts) > 2 else self.root.name

    @cached_property
    def _largest(self) -> dict[str, int]:
        """The largest scale, in percent, in each set's folder."""
        scales: dict[str, int] = {}
        for folder in self.root.rglob("scale-*pc"):
            of = folder.parent.relative_to(self.root).as_posix()
            of = "" if of == "." else of
            scales[of] = max(scales.get(of, 0), _scale(folder.name) or 0)
        return scales


def _scale(folder: str) -> int | None:
    match = _SCALE.fullmatch(folder)
    return int(match[1]) if match else None
