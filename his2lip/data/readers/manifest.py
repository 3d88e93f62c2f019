"""A user's own images in a table: CSV or Parquet with a column `path` and columns of shards."""

from __future__ import annotations

import math
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath

import pyarrow as pa

from his2lip import taxonomy
from his2lip.config import Config, validate
from his2lip.data.cards import MAX_MPP, MIN_MPP
from his2lip.data.images import LOOKS
from his2lip.data.readers.base import Item, Reader, refuse_spellings
from his2lip.data.readers.tables import Table, decimal_mark, read_table
from his2lip.errors import DatasetError, did_you_mean, first_line
from his2lip.parquet import read_parquet

_COLUMNS = (
    "path", "split", "case_id", "slide_id", "region_id", "twin_id", "tissue", "biomarker", "label", "stain",
    "score", "mpp",
)  # fmt: skip
_NAMES = ("case_id", "slide_id", "region_id", "label")  # columns in which one name must have one spelling
# How programs write a missing value, case-folded.
_MISSING = ("", "nan", "<na>", "na", "n/a", "none", "null")
_TOO_LONG = ""  # the column of values for which the header has no name

ManifestRow = dict[str, str]  # column -> value, empty where it is missing


class ManifestOptions(Config):
    """Where the table is."""

    manifest: str = "manifest.csv"
    """Path of the table, relative to the root."""


class ManifestReader(Reader):
    """Reads the files that the table lists, and passes over all others. `path` is relative to the root.

    White space around values is removed. `nan`, `NA`, `N/A`, `None`, `null` and `<NA>` in any case are
    missing values, except where the card has a class of that name and it is a label. Equal rows count once.
    A path with rows that differ is quarantined.
    """

    def find(self) -> Iterator[str]:
        yield from self._by_path
        listed = {self._on_disk(key) for key in self._by_path}
        for key in self.files():
            if key == self._manifest:
                self.passed_over["the manifest"] += 1
            elif key not in listed:
                self.passed_over["a file that the manifest does not list"] += 1

    def item(self, key: str) -> Item:
        row, *others = self._by_path[key]
        if not row["path"]:
            raise DatasetError("the row names no file", key="path")
        self.parts(key, 1)
        path = PurePosixPath(key)
        if path.is_absolute() or ".." in path.parts:
            raise DatasetError("the path leads out of the root", key="path")
        if not (self.root / self._on_disk(key)).is_file():
            raise DatasetError("the table lists it, but there is no such file", key="file")
        if any(other != row for other in others):
            raise DatasetError("two rows name it, and they differ", key="row")
        given = {name: value for name, value in row.items() if value and name != "path"}
        if _TOO_LONG in given:
            raise DatasetError("its row has more values than the table has columns", key="columns")
        named = given.pop("split", self.base_split)
        split = self.find_split(named)
        if split is None:
            raise DatasetError(f"the split '{named}' is not on the card", key="split")
        tissue, biomarker, label = (given.pop(name, None) for name in ("tissue", "biomarker", "label"))
        return Item(
            key=self._on_disk(key),
            name=key,
            split=split,
            tissue=taxonomy.tissue(tissue) if tissue else None,
            biomarker=taxonomy.biomarker(biomarker) if biomarker else None,
            label=self.card.label(label) if label and self.card.classes else label,
            stain=_stain(given.pop("stain", None)),
            mpp=self._mpp(given.pop("mpp", None)),
            **given,
        )

    def _mpp(self, text: str | None) -> float | None:
        if text is None:
            return self.card.mpp
        try:
            mpp = self._scales.number(text)
        except DatasetError:
            mpp = math.nan
        if not MIN_MPP <= mpp <= MAX_MPP:
            what = f"'{text}' is not a number of microns per pixel from {MIN_MPP:g} to {MAX_MPP:g}"
            raise DatasetError(what, key="mpp")
        return mpp

    def _on_disk(self, key: str) -> str:
        """The path in the Unicode form that the file system uses."""
        forms = (key, unicodedata.normalize("NFC", key), unicodedata.normalize("NFD", key))
        return next((form for form in forms if (self.root / form).is_file()), key)

    @property
    def _manifest(self) -> str:
        where = f"card {self.card.name}, options"
        return validate(ManifestOptions, self.card.options, where=where).manifest

    @cached_property
    def _by_path(self) -> dict[str, list[ManifestRow]]:
        """Path, or a note where it is missing -> all of its rows."""
        rows = defaultdict(list)
        for n, row in enumerate(self._rows, start=2):  # row 1 is the header
            rows[row["path"] or f"{self._manifest} (row {n})"].append(row)
        return rows

    @cached_property
    def _rows(self) -> list[ManifestRow]:
        """The rows of the table. Raises DatasetError for a table that cannot be used as a manifest."""
        path = self.root / self._manifest
        header = [name.casefold() for name in self._table.rows[0]] if self._table.rows else []
        unknown = [name for name in header if name not in _COLUMNS]
        if unknown:
            fix = did_you_mean(unknown[0], _COLUMNS)
            what = f"the manifest has the unknown column '{unknown[0]}'"
            raise DatasetError(what, where=path, key=unknown[0], fix=fix)
        twice = [name for name in header if header.count(name) > 1]
        if twice:
            what = f"the manifest has the column '{twice[0]}' twice"
            raise DatasetError(what, where=path, key=twice[0], fix="keep one of the two")
        if len(self._table.rows) < 2 or "path" not in header:
            raise DatasetError("the manifest has no rows, or no column 'path'", where=path, key="path")
        rows = [self._row(header, fields) for fields in self._table.rows[1:]]
        for column in _NAMES:
            if column != "label" or not self.card.classes:
                refuse_spellings((row.get(column, "") for row in rows), where=path, key=column)
        without_case = [row["path"] for row in rows if not row.get("case_id")]
        if self.groups_by_case and without_case:
            n, example = len(without_case), without_case[0]
            what = f"the splits are grouped by case, and {n:,} rows have no case, such as {example}"
            fix = "fill the column case_id, or group by 'file' on the card"
            raise DatasetError(what, where=path, key="case_id", fix=fix)
        return rows

    def _row(self, header: list[str], fields: list[str]) -> ManifestRow:
        values = list(map(taxonomy.normalised, fields))
        row = {
            name: "" if self._is_missing(name, value) else value
            for name, value in zip(header, values, strict=False)
        }
        if any(value.casefold() not in _MISSING for value in values[len(header) :]):
            row[_TOO_LONG] = "…"
        path = row.get("path", "")
        return row | {"path": PurePosixPath(path).as_posix() if path else ""}

    def _is_missing(self, column: str, value: str) -> bool:
        """Whether a value is a missing one: the name of a class of the card is a label."""
        return value.casefold() in _MISSING and not (column == "label" and value.casefold() in self._classes)

    @cached_property
    def _scales(self) -> Table:
        """The column `mpp` with its own decimal mark, which a name such as 1.5 in another column is not."""
        rows = [[row.get("mpp", "")] for row in self._rows]
        return Table(rows, decimal_mark(rows))

    @cached_property
    def _classes(self) -> set[str]:
        """The folded names of the card's classes, and their other spellings."""
        names = (name for known, aliases in self.card.classes.items() for name in (known, *aliases))
        return set(map(taxonomy.folded, names))

    @cached_property
    def _table(self) -> Table:
        path = self.root / self._manifest
        if not path.is_file():
            fix = "set options.manifest on the card"
            raise DatasetError("the manifest does not exist", where=path, key="options.manifest", fix=fix)
        return _parquet(path) if path.suffix.lower() == ".parquet" else read_table(path)


def _stain(text: str | None) -> str | None:
    """The stain in the case of `LOOKS`, by which it is compared; another stain as it is."""
    known = {name.casefold(): name for name in LOOKS}
    return None if text is None else known.get(text.casefold(), text)


def _parquet(path: Path) -> Table:
    try:
        table = read_parquet(path)
    except (pa.ArrowInvalid, OSError) as error:
        what = f"the manifest cannot be read: {first_line(error)}"
        raise DatasetError(what, where=path, key="options.manifest") from None
    rows = [["" if value is None else str(value) for value in row.values()] for row in table.to_pylist()]
    return Table([table.column_names, *rows], ".")
