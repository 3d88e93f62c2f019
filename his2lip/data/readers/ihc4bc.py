"""IHC4BC: `Images/IHC/{ER,Her2,Ki67,PR}/Patient_*/Subregion_*/NAME.jpg`, and CSV tables of nuclei.

NAME is `N_CASEID_REGION_ROW_COLUMN`. CASEID is the patient; the number in the folder's name may be another.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from his2lip import taxonomy
from his2lip.config import Config, validate
from his2lip.data.cards import Card
from his2lip.data.readers.base import Item, PassedOver, Reader
from his2lip.data.readers.tables import read_table
from his2lip.errors import DatasetError

_MARKERS = ("ER", "PR", "Ki67", "HER2")
_NAME = re.compile(r"[^_]+_(?P<case>[^_]+)_(?P<region>[^_]+)_\d+_\d+")


# Percentages of stained nuclei that have a label of their own between `positive` and `negative`: biomarker ->
# (label, from, below). ER and PR: 1 to 10 %, both included, is low positive (ASCO/CAP 2020). Ki67: 5, 20 and
# 30 % are the cut-offs in use (Nielsen et al. 2021, doi 10.1093/jnci/djaa201).
_OVER_TEN = math.nextafter(10.0, 11.0)
_BANDS = {
    "ER": [("low", 1.0, _OVER_TEN)],
    "PR": [("low", 1.0, _OVER_TEN)],
    "Ki67": [("5 to 20 %", 5.0, 20.0), ("20 to 30 %", 20.0, 30.0)],
}


class Ihc4bcOptions(Config):
    """How the label of a patch follows from the mean DAB of its nuclei."""

    dab_thresholds: dict[str, list[float]]
    """Biomarker -> mean DAB from which a nucleus is 1+, 2+ and 3+."""
    measure: Literal["percent", "h-score"] = "percent"
    """percent: of nuclei at 1+ or more, in bands. h-score: the sum over nuclei of 1, 2 or 3 for 1+, 2+ or 3+,
    per 100 nuclei, from 0 to 300; a patch is positive from `h_score_from`."""
    denominator: Literal["ihc", "h&e"] = "ihc"
    """The nuclei that percent and H-score are of: those of the IHC patch, or those of its H&E twin, which are
    the third column of the tables."""
    h_score_from: dict[str, float] = {}
    """Biomarker -> H-score from which a patch is positive; for `measure: h-score`."""


class Nuclei(NamedTuple):
    """A row of a label table.

    status  a, 0 or d (discarded)
    dab     mean DAB (optical density) of each nucleus of the IHC patch
    he      number of nuclei of the H&E twin; None where the column is no number
    fault   why the row cannot be used, or None
    """

    status: str
    dab: list[float]
    he: float | None = None
    fault: str | None = None


class LabelTable(NamedTuple):
    """A label table: the biomarker in its path, and image name -> row."""

    biomarker: str
    rows: dict[str, Nuclei]


class Ihc4bcReader(Reader):
    """Label by the fraction of stained nuclei, or by the H-score. HER2 labels have an unknown format."""

    def __init__(self, root: Path, card: Card) -> None:
        super().__init__(root, card)
        self._without_image: dict[str, list[str]] = {}  # label table -> image names that do not exist

    def find(self) -> Iterator[str]:
        """Images, and label tables that have rows without an image."""
        tables = self._tables  # an unreadable table is an error, since its images would have no label
        yield from (key for key in self.files() if key not in tables)
        for key, table in tables.items():
            missing = [name for name in table.rows if (table.biomarker, name) not in self._folders]
            if missing:
                self._without_image[key] = missing
                yield key
            else:
                self.passed_over["a table of labels"] += 1

    def item(self, key: str) -> Item:
        if key in self._without_image:
            missing = self._without_image[key]
            what = f"{len(missing):,} of its rows have no IHC image here, such as {missing[0]}"
            raise DatasetError(what, key="image")
        parts = self.parts(key, 4)
        if not self._is_ihc(key):
            raise PassedOver("an H&E twin")
        folder, _, _, file = parts[-4:]
        name = _NAME.fullmatch(Path(file).stem)
        if name is None:
            raise DatasetError("the name is not N_CASEID_REGION_ROW_COLUMN", key="path")
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
            name="/".join(parts[-4:]),
            split=self.base_split,
            case_id=name["case"],
            slide_id=f"{name['case']}/{folder}",
            region_id=f"{name['case']}/{folder}/{name['region']}",
            biomarker=biomarker,
            label=self._label(biomarker, nuclei),
            mpp=self.card.mpp,
        )

    def _is_ihc(self, key: str) -> bool:
        """Whether a folder above that of the biomarker, which may be the root itself, is that of IHC."""
        above = key.split("/")[:-4] or [self.root.name]
        return "ihc" in map(str.casefold, above)

    def _label(self, biomarker: str, nuclei: Nuclei) -> str:
        if nuclei.status == "0":
            return "negative"
        options = self._options
        count = len(nuclei.dab) if options.denominator == "ihc" else nuclei.he
        if not count:
            raise DatasetError("its label row has no nucleus", key="nuclei")
        steps = [sum(dab >= least for dab in nuclei.dab) for least in options.dab_thresholds[biomarker]]
        if options.measure == "h-score":
            if biomarker not in options.h_score_from:
                what = f"the card has no H-score from which {biomarker} is positive"
                raise DatasetError(what, where=f"card {self.card.name}", key="options.h_score_from")
            return "positive" if 100 * sum(steps) / count >= options.h_score_from[biomarker] else "negative"
        return _band(biomarker, 100 * steps[0] / count)

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
            if rule is None and biomarker is not None and self._is_ihc(key):
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


def _band(biomarker: str, percent: float) -> str:
    """The label of a patch with this percentage of stained nuclei."""
    bands = _BANDS[biomarker]
    if percent < bands[0][1]:
        return "negative"
    return next((label for label, _, below in bands if percent < below), "positive")


def _rows(path: Path) -> dict[str, Nuclei]:
    """Image name -> its row `name, status, H&E nuclei, mean DAB …` of one table, with or without a header."""
    table = read_table(path)
    rows: dict[str, Nuclei] = {}
    for fields in table.rows:
        if len(fields) >= 2 and fields[1].lower() in ("a", "0", "d"):
            name, status = Path(fields[0]).stem, fields[1].lower()
            try:
                dab = [number for field in fields[3:] for number in table.numbers(field)]
                row = Nuclei(status, dab, float(fields[2]) if fields[2:] and fields[2].isdecimal() else None)
            except DatasetError as error:
                row = Nuclei(status, [], fault=f"its label row cannot be used: {error.what}")
            rows[name] = _agreed(rows.get(name), row)
    return rows


def _agreed(known: Nuclei | None, row: Nuclei) -> Nuclei:
    """The row, or a row with a fault where a known row of the same image differs from it."""
    differ = "two label rows name it, and they differ"
    return row if known in (None, row) else Nuclei(row.status, [], fault=differ)
