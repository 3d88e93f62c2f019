"""Your own images, a table: CSV (, ; or tabs) or Parquet with a column `path` and columns of shards."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from his2lip import taxonomy
from his2lip.config import Config, validate
from his2lip.data.readers.base import Item, Reader
from his2lip.errors import DatasetError, did_you_mean

_COLUMNS = (
    "path", "split", "case_id", "slide_id", "region_id", "twin_id", "tissue", "biomarker", "label", "stain",
    "score", "mpp",
)  # fmt: skip


class ManifestOptions(Config):
    """`manifest` is the table's path, relative to the root."""

    manifest: str = "manifest.csv"


class ManifestReader(Reader):
    """Finds what the table lists, and nothing else; `path` is relative to the root."""

    def find(self) -> Iterator[str]:
        yield from (row["path"] or "" for row in self._table)

    def item(self, key: str) -> Item:
        self.parts(key, 1)
        path = PurePosixPath(key)
        if path.is_absolute() or ".." in path.parts:
            raise DatasetError("the path leads out of the root")
        if not (self.root / key).is_file():
            raise DatasetError("the table lists it, but there is no such file")
        row = {name: value for name, value in self._rows[key].items() if value and name != "path"}
        if None in row:
            raise DatasetError("its row has more cells than the table has columns")
        split = row.pop("split", self.base_split)
        if split not in self.card.splits:
            raise DatasetError(f"the split '{split}' is not on the card")
        tissue, biomarker, label = (row.pop(name, None) for name in ("tissue", "biomarker", "label"))
        return Item(
            key=key,
            name=key,
            split=split,
            tissue=taxonomy.tissue(tissue) if tissue else None,
            biomarker=taxonomy.biomarker(biomarker) if biomarker else None,
            label=self.card.label(label) if label and self.card.classes else label,
            mpp=_number(row.pop("mpp", None)) or self.card.mpp,
            **row,
        )

    @cached_property
    def _rows(self) -> dict[str, dict[str, str]]:
        return {row["path"]: row for row in reversed(self._table)}  # the first row of a path counts

    @cached_property
    def _table(self) -> list[dict[str, str]]:
        options = validate(ManifestOptions, self.card.options, where=f"card {self.card.name}, options")
        path = self.root / options.manifest
        try:
            rows = _parquet(path) if path.suffix == ".parquet" else _csv(path)
        except FileNotFoundError:
            raise DatasetError(
                "the manifest does not exist", where=path, fix="set options.manifest"
            ) from None
        except (pa.ArrowInvalid, OSError, UnicodeDecodeError, csv.Error) as error:
            raise DatasetError(f"the manifest cannot be read: {error}", where=path) from None
        unknown = [name for name in (rows[0] if rows else {}) if name is not None and name not in _COLUMNS]
        if unknown:
            fix = did_you_mean(unknown[0], _COLUMNS)
            raise DatasetError(f"unknown column '{unknown[0]}'", where=path, fix=fix)
        if not rows or "path" not in rows[0]:
            raise DatasetError("the manifest has no rows, or no column 'path'", where=path)
        return rows


def _csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as source:
        header = source.readline()
        source.seek(0)
        return list(csv.DictReader(source, delimiter=max(",;\t", key=header.count)))


def _parquet(path: Path) -> list[dict[str, str]]:
    rows = pq.read_table(path).to_pylist()
    return [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows]


def _number(text: str | None) -> float | None:
    try:
        number = float(text) if text else None
    except ValueError:
        number = math.nan
    if number is None or 0 < number < math.inf:
        return number
    raise DatasetError(f"'{text}' is not a number of microns a pixel")
