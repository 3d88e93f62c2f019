"""IHC4BC: `Images/IHC/{ER,Her2,Ki67,PR}/Patient_*/Subregion_*/NAME.jpg`, and CSV tables of nuclei."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from his2lip import taxonomy
from his2lip.config import Config, validate
from his2lip.data.cards import Card
from his2lip.data.readers.base import Item, PassedOver, Reader
from his2lip.errors import DatasetError

_NUMBER = re.compile(r"-?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_UNSURE = "?"  # in place of a status, where rows contradict each other
_MARKERS = ("ER", "PR", "Ki67", "HER2")


class Ihc4bcOptions(Config):
    """Mean DAB from which a nucleus is 1+, 2+, 3+; the fraction at 1+ from which a patch is positive."""

    dab_thresholds: dict[str, list[float]]
    positive_from: dict[str, float]


class Nuclei(NamedTuple):
    """A row of a label table: its status (a, 0 or d) and the mean DAB of each nucleus."""

    status: str
    dab: list[float]


class Table(NamedTuple):
    """A label table: the biomarker that its path names, and image name -> row."""

    biomarker: str
    rows: dict[str, Nuclei]


class Ihc4bcReader(Reader):
    """Positive or negative by the fraction of stained nuclei; HER2 waits for its label format."""

    def __init__(self, root: Path, card: Card) -> None:
        super().__init__(root, card)
        self._without_image: dict[str, list[str]] = {}  # label table -> names that `find` did not meet

    def find(self) -> Iterator[str]:
        """Images, and label tables of which some rows have no image."""
        tables = self._tables  # one that cannot be read stops everything: without it no image has a label
        there: set[tuple[str, str]] = set()
        for key in super().find():
            if not key.lower().endswith(".csv"):
                there.add((key.split("/")[-4:][0].casefold(), Path(key).stem))
                yield key
        for key, table in tables.items():
            missing = [name for name in table.rows if (table.biomarker.casefold(), name) not in there]
            if missing:
                self._without_image[key] = missing
                yield key

    def item(self, key: str) -> Item:
        if key in self._without_image:
            missing = self._without_image[key]
            raise DatasetError(f"{len(missing):,} of its rows have no image here, such as {missing[0]}")
        parts = self.parts(key, 4)
        if "IHC" not in parts:
            raise PassedOver("an H&E twin")
        folder, patient, region, file = parts[-4:]
        biomarker = taxonomy.biomarker(folder)
        if biomarker == "HER2":
            raise PassedOver("HER2, of which the label format is not known")
        nuclei = self._nuclei.get((biomarker, Path(file).stem))
        if nuclei is None:
            raise DatasetError("no label row names it")
        if nuclei.status == _UNSURE:
            raise DatasetError("two label rows name it, and they differ")
        if nuclei.status == "d":
            raise PassedOver("discarded by the authors (status d)")
        return Item(
            key=key,
            name="/".join((folder, patient, region, file)),
            split=self.base_split,
            case_id=patient,
            slide_id=f"{patient}/{folder}",
            region_id=f"{patient}/{folder}/{region}",
            biomarker=biomarker,
            label=self._label(biomarker, nuclei),
            mpp=self.card.mpp,
        )

    def _label(self, biomarker: str, nuclei: Nuclei) -> str:
        if nuclei.status == "0":
            return "negative"
        if not nuclei.dab:
            raise DatasetError("its label row has no nucleus")
        first = self._options.dab_thresholds[biomarker][0]
        fraction = sum(dab >= first for dab in nuclei.dab) / len(nuclei.dab)
        return "positive" if fraction >= self._options.positive_from[biomarker] else "negative"

    @cached_property
    def _options(self) -> Ihc4bcOptions:
        return validate(Ihc4bcOptions, self.card.options, where=f"card {self.card.name}, options")

    @cached_property
    def _tables(self) -> dict[str, Table]:
        """Every CSV whose path names a biomarker, by its path."""
        tables = {}
        for path in sorted(self.root.rglob("*.csv")):
            key = path.relative_to(self.root).as_posix()
            biomarker = taxonomy.find_biomarker(key, _MARKERS)
            if biomarker is not None:
                try:
                    tables[key] = Table(biomarker, _rows(path))
                except (OSError, UnicodeDecodeError, csv.Error) as error:
                    raise DatasetError(f"this label table cannot be read: {error}", where=path) from None
        return tables

    @cached_property
    def _nuclei(self) -> dict[tuple[str, str], Nuclei]:
        """(biomarker, image name) -> its row, of all tables."""
        rows: dict[tuple[str, str], Nuclei] = {}
        for table in self._tables.values():
            for name, row in table.rows.items():
                rows[table.biomarker, name] = _agreed(rows.get((table.biomarker, name)), row)
        return rows


def _rows(path: Path) -> dict[str, Nuclei]:
    """Image name -> its row in one table."""
    rows: dict[str, Nuclei] = {}
    for name, row in _read(path):
        rows[name] = _agreed(rows.get(name), row)
    return rows


def _agreed(known: Nuclei | None, row: Nuclei) -> Nuclei:
    """The row, unless another of the same name says otherwise: then neither counts."""
    return row if known in (None, row) else Nuclei(_UNSURE, [])


def _read(path: Path) -> Iterator[tuple[str, Nuclei]]:
    """Rows `name, status, nuclei, mean DAB …` with any usual delimiter, with or without a header."""
    with path.open(encoding="utf-8-sig", newline="") as source:
        sample = source.read(4096)
        source.seek(0)
        delimiter = max(",;\t", key=sample.count)
        for row in csv.reader(source, delimiter=delimiter):
            cells = [cell.strip() for cell in row]
            if len(cells) >= 2 and cells[1].lower() in ("a", "0", "d"):
                dab = [float(n) for cell in cells[3:] for n in _NUMBER.findall(cell)]
                yield Path(cells[0]).stem, Nuclei(cells[1].lower(), dab)
