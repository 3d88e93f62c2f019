"""IHC4BC: `Images/IHC/{ER,Her2,Ki67,PR}/Patient_*/Subregion_*/NAME.jpg`, and CSV tables of nuclei."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from his2lip import taxonomy
from his2lip.config import Config, validate
from his2lip.data.cards import Card
from his2lip.data.readers.base import Item, PassedOver, Reader
from his2lip.data.readers.tables import read_table
from his2lip.errors import DatasetError

_MARKERS = ("ER", "PR", "Ki67", "HER2")


class Ihc4bcOptions(Config):
    """How the label of a patch follows from the mean DAB of its nuclei."""

    dab_thresholds: dict[str, list[float]]
    """Biomarker -> mean DAB from which a nucleus is 1+, 2+ and 3+."""
    positive_from: dict[str, float]
    """Biomarker -> fraction of nuclei at 1+ or more from which a patch is positive."""


class Nuclei(NamedTuple):
    """A row of a label table.

    status  a, 0 or d (discarded)
    dab     mean DAB (optical density) of each nucleus
    fault   why the row cannot be used, or None
    """

    status: str
    dab: list[float]
    fault: str | None = None


class LabelTable(NamedTuple):
    """A label table: the biomarker in its path, and image name -> row."""

    biomarker: str
    rows: dict[str, Nuclei]


class Ihc4bcReader(Reader):
    """Label = positive or negative, by the fraction of stained nuclei. HER2 labels have an unknown format."""

    def __init__(self, root: Path, card: Card) -> None:
        super().__init__(root, card)
        self._without_image: dict[str, list[str]] = {}  # label table -> image names that do not exist

    def find(self) -> Iterator[str]:
        """Images, and label tables that have rows without an image."""
        tables = self._tables  # an unreadable table is an error, since its images would have no label
        present: set[tuple[str, str]] = set()
        for key in self.files():
            if key not in tables:
                present.add((key.split("/")[-4:][0].casefold(), Path(key).stem))
                yield key
        for key, table in tables.items():
            missing = [name for name in table.rows if (table.biomarker.casefold(), name) not in present]
            if missing:
                self._without_image[key] = missing
                yield key
            else:
                self.passed_over["a table of labels"] += 1

    def item(self, key: str) -> Item:
        if key in self._without_image:
            missing = self._without_image[key]
            what = f"{len(missing):,} of its rows have no image here, such as {missing[0]}"
            raise DatasetError(what, key="image")
        parts = self.parts(key, 4)
        if "IHC" not in parts:
            raise PassedOver("an H&E twin")
        folder, patient, region, file = parts[-4:]
        biomarker = taxonomy.biomarker(folder)
        if biomarker == "HER2":
            raise PassedOver("HER2, of which the label format is not known")
        nuclei = self._nuclei.get((biomarker, Path(file).stem))
        if nuclei is None:
            raise DatasetError("no label row names it", key="label")
        if len(self._folders[biomarker, Path(file).stem]) > 1:
            what = "a label row names it by its file name only, and another image has the same"
            raise DatasetError(what, key="name")
        if nuclei.fault is not None:
            raise DatasetError(nuclei.fault, key="label")
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
            raise DatasetError("its label row has no nucleus", key="nuclei")
        first = self._options.dab_thresholds[biomarker][0]
        fraction = sum(dab >= first for dab in nuclei.dab) / len(nuclei.dab)
        return "positive" if fraction >= self._options.positive_from[biomarker] else "negative"

    @cached_property
    def _options(self) -> Ihc4bcOptions:
        return validate(Ihc4bcOptions, self.card.options, where=f"card {self.card.name}, options")

    @cached_property
    def _folders(self) -> dict[tuple[str, str], set[tuple[str, ...]]]:
        """(biomarker, image name) -> the (patient, region) folders with an image of that name."""
        folders = defaultdict(set)
        for key, rule in self.walk():
            parts = key.split("/")
            biomarker = taxonomy.find_biomarker(parts[-4], _MARKERS) if len(parts) > 3 else None
            if rule is None and biomarker is not None and "IHC" in parts:
                folders[biomarker, Path(key).stem].add(tuple(parts[-3:-1]))
        return folders

    @cached_property
    def _tables(self) -> dict[str, LabelTable]:
        """Every CSV whose path names a biomarker, by its path."""
        tables = {}
        for key in sorted(key for key, rule in self.walk() if rule is None and key.lower().endswith(".csv")):
            biomarker = taxonomy.find_biomarker(key, _MARKERS)
            if biomarker is not None:
                tables[key] = LabelTable(biomarker, _rows(self.root / key))
        return tables

    @cached_property
    def _nuclei(self) -> dict[tuple[str, str], Nuclei]:
        """(biomarker, image name) -> its row, from all tables."""
        rows: dict[tuple[str, str], Nuclei] = {}
        for table in self._tables.values():
            for name, row in table.rows.items():
                rows[table.biomarker, name] = _agreed(rows.get((table.biomarker, name)), row)
        return rows


def _rows(path: Path) -> dict[str, Nuclei]:
    """Image name -> its row `name, status, nuclei, mean DAB …` of one table, with or without a header."""
    table = read_table(path)
    rows: dict[str, Nuclei] = {}
    for fields in table.rows:
        if len(fields) >= 2 and fields[1].lower() in ("a", "0", "d"):
            name, status = Path(fields[0]).stem, fields[1].lower()
            try:
                row = Nuclei(status, [number for field in fields[3:] for number in table.numbers(field)])
            except DatasetError as error:
                row = Nuclei(status, [], f"its label row cannot be used: {error.what}")
            rows[name] = _agreed(rows.get(name), row)
    return rows


def _agreed(known: Nuclei | None, row: Nuclei) -> Nuclei:
    """The row, or a row with a fault where a known row of the same image differs from it."""
    differ = "two label rows name it, and they differ"
    return row if known in (None, row) else Nuclei(row.status, [], differ)
