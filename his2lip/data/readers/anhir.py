"""ANHIR: `lung-lesion_1/scale-25pc/29-041-Izd2-w35-proSPC-4-les1.jpg`; the name contains the stain."""

from __future__ import annotations

import re
from functools import cached_property

from his2lip import taxonomy
from his2lip.config import Config, validate
from his2lip.data.cards import Mpp
from his2lip.data.readers.base import Item, PassedOver, Reader
from his2lip.errors import DatasetError

_SCALE = re.compile(r"scale-(\d+)pc", re.IGNORECASE)
_HE = re.compile(r"(?<![a-z0-9])(he|h&e)(?![a-z0-9])", re.IGNORECASE)
_REGION = re.compile(r"(les|lob)\w*$", re.IGNORECASE)


class AnhirOptions(Config):
    """Which parts of ANHIR are read."""

    sets: list[str] = []
    """How the names of the sets begin, such as lung-lesion for lung-lesion_1 and others; empty: all sets."""
    mpp: dict[str, Mpp] = {}
    """How the names of sets begin -> microns per pixel of their images at scale-100pc."""


class AnhirReader(Reader):
    """One image per stain and lesion. Of the scales at which it is there, only the largest is read."""

    def item(self, key: str) -> Item:
        parts = self.parts(key, 1)
        percent = _percent(parts[-2]) if len(parts) > 1 else None
        options = validate(AnhirOptions, self.card.options, where=f"card {self.card.name}, options")
        if percent is not None and options.sets and not self._set_of(parts).startswith(tuple(options.sets)):
            raise PassedOver("of another set")
        stem = _stem(parts[-1])
        if percent is not None and percent < self._largest["/".join(parts[:-2]), stem]:
            raise PassedOver("the same image at a smaller scale")
        if re.search(r"\s", stem):  # `Copy of 29-041` would be another case
            raise DatasetError("published names have no spaces: this may be a copy", key="path")
        if _HE.search(stem):
            raise PassedOver("an H&E twin")
        before, biomarker, _ = taxonomy.partition_biomarker(stem)
        if biomarker is None:
            raise DatasetError("no known biomarker is in the name", key="biomarker")
        if biomarker not in self.card.classes:
            raise DatasetError(f"the stain {biomarker} is not a class of the card", key=biomarker)
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
            mpp=self.card.mpp if percent is None else self._mpp(self._set_of(parts), percent, options),
        )

    def _mpp(self, of_set: str, percent: int, options: AnhirOptions) -> float | None:
        """Microns per pixel of a set's images at a scale; the card's own where the set is not listed."""
        full = next((mpp for name, mpp in options.mpp.items() if of_set.startswith(name)), None)
        return self.card.mpp if full is None else full * 100 / percent

    def _set_of(self, parts: tuple[str, ...]) -> str:
        """The name of the folder of the scales, which may be the root itself."""
        return parts[-3] if len(parts) > 2 else self.root.name

    @cached_property
    def _largest(self) -> dict[tuple[str, str], int]:
        """(folder of a set, name of an image without its suffix) -> its largest scale, in percent."""
        largest: dict[tuple[str, str], int] = {}
        for key, rule in self.walk():
            folder, _, file = key.rpartition("/")
            of_set, _, scale = folder.rpartition("/")
            percent = _percent(scale)
            if rule is None and percent is not None and key.lower().endswith(self.suffixes):
                image = of_set, _stem(file)
                largest[image] = max(largest.get(image, 0), percent)
        return largest


def _percent(folder: str) -> int | None:
    """The percentage in the name of a scale's folder, or None for another folder."""
    match = _SCALE.fullmatch(folder)
    return int(match[1]) if match else None


def _stem(file: str) -> str:
    return file.rpartition(".")[0]
