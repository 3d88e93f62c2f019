"""Labels: the value of a column for each row, and the class numbers of the rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import pyarrow as pa

from his2lip.data.shards.schema import SCHEMA
from his2lip.errors import DatasetError, did_you_mean

PAIR = "pair"  # the label column that joins tissue type and biomarker: "{tissue} {biomarker}"


def labelled_rows(
    table: pa.Table,
    column: str,
    numbers: Mapping[str, int],
    *,
    where: Mapping[str, Collection[str]] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The rows whose label has a class number.

    column   a column of the shards, or `pair`
    numbers  label -> class number; rows with no label or another one are left out
    where    column -> allowed values; rows with another value are left out

    Returns row numbers, int64 (N,) in ascending order, and class numbers, int64 (N,). Raises DatasetError for
    a column that the table does not have.
    """
    values = label_values(table, column)
    kept = np.array([value in numbers for value in values], dtype=bool)
    for name, allowed in (where or {}).items():
        kept &= np.array([value in allowed for value in column_values(table, name)], dtype=bool)
    rows = np.flatnonzero(kept)
    return rows, np.array([numbers[values[row]] for row in rows], dtype=np.int64)


def label_values(table: pa.Table, column: str) -> list:
    """The label of each row, or None. A `pair` is None unless tissue type and biomarker are both known."""
    if column != PAIR:
        return column_values(table, column)
    both = zip(column_values(table, "tissue"), column_values(table, "biomarker"), strict=True)
    return [None if None in pair else f"{pair[0]} {pair[1]}" for pair in both]


def column_values(table: pa.Table, column: str) -> list:
    """One column as Python values. Raises DatasetError for a column that the table does not have."""
    if column not in table.column_names:
        fix = did_you_mean(column, SCHEMA.names)
        raise DatasetError(f"shards have no column '{column}'", key=column, fix=fix)
    return table[column].to_pylist()
