"""Labels: the value of a column for each row, the class numbers of the rows, and what a label states."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa

from his2lip import taxonomy
from his2lip.data.shards.schema import SCHEMA
from his2lip.errors import DatasetError, did_you_mean

Staining = Literal["negative", "weak", "moderate", "strong"]
STAININGS: tuple[Staining, ...] = get_args(Staining)

# Scores and words of class names that state the staining of a patch. `positive` states that there is
# staining, and not how much. HER2 scores: Wolff et al. 2018, J Clin Oncol 36:2105-2122.
_SCORES: dict[str, Staining] = {"0": "negative", "1+": "weak", "2+": "moderate", "3+": "strong"}
_PLAIN_SCORES = {f"{n}{end}": f"{n}+" for n in (1, 2, 3) for end in ("", ".0", " +")} | {"0.0": "0"}
_WORDS: dict[str, Staining | Literal["positive"]] = {
    **{name: name for name in STAININGS},
    "neg": "negative",
    "unstained": "negative",
    "positive": "positive",
    "pos": "positive",
    "stained": "positive",
}

PAIR = "pair"  # the label column that joins tissue type and biomarker: "{tissue} {biomarker}"


class Statement(NamedTuple):
    """What a patch's own score or label states beyond its tissue type and biomarker.

    staining   a staining band, or `positive` for staining of an unknown amount; None: not stated
    described  a class that states something else than staining, in words; None: no such class
    """

    staining: Staining | Literal["positive"] | None = None
    described: str | None = None


def statement(
    card: Mapping[str, Any],
    *,
    tissue: str | None = None,
    biomarker: str | None = None,
    label: str | None = None,
    score: str | None = None,
) -> Statement:
    """What the columns of a patch state, by the card of its dataset (`DatasetInfo.card`).

    The score comes first, then the card's `staining` of the class, then the words of the class's name (of
    HER2 also 0 to 3+). A class that states no staining is described by the card's `descriptions`, or by its
    name. A label that repeats the tissue type or the biomarker states nothing.
    """
    if biomarker == "HER2":
        score = score or label
        score = _PLAIN_SCORES.get(score or "", score)
    if score in _SCORES:
        return Statement(_SCORES[score], (card.get("descriptions") or {}).get(label))
    if label is None or taxonomy.folded(label) in {
        taxonomy.folded(name) for name in (tissue, biomarker) if name
    }:
        return Statement()
    described = (card.get("descriptions") or {}).get(label)
    staining = (card.get("staining") or {}).get(label) or _WORDS.get(taxonomy.folded(label))
    if staining is None and described is None:
        described = " ".join(label.replace("_", " ").split())
    return Statement(staining, described)


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
