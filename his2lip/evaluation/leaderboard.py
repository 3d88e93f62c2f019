"""The files of a finished grid: the leaderboard, the predictions of all grid cells, and the failures."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from his2lip.config import resolved
from his2lip.evaluation.config import ModelEntry
from his2lip.evaluation.grid_cell import read_predictions
from his2lip.evaluation.published_table import comparison_name, published_figures
from his2lip.evaluation.results import CellFailure, CellResult, to_csv, to_table
from his2lip.files import filesystem, write_file

PAPER = "paper"  # the only protocol that is compared with published figures


def write_leaderboard(folder: str, cells: Sequence[CellResult], failed: Sequence[CellFailure]) -> str:
    """Writes leaderboard.csv and .parquet, predictions.parquet and failures.json into `folder`.

    Returns the path of leaderboard.csv.
    """
    system, path = filesystem(folder)
    reasons = [resolved(failure) for failure in failed]
    written = {
        "leaderboard.csv": to_csv(cells).encode(),
        "leaderboard.parquet": _parquet(to_table(cells)),
        "predictions.parquet": _parquet(_all_predictions(folder, cells)),
        "failures.json": (json.dumps(reasons, indent=1) + "\n").encode(),
    }
    for name, data in written.items():
        write_file(system, f"{path}/{name}", data)
    return f"{path}/leaderboard.csv"


def with_published(cells: Iterable[CellResult], cards: Mapping[str, str]) -> list[CellResult]:
    """`cells` with the paper's accuracy and F1 added to those of the `paper` protocol on real data.

    cards  dataset -> the project's card by which it is scored; a dataset with a card of one's own has none
    """
    known = {(comparison_name(row.model), comparison_name(row.dataset)): row for row in published_figures()}
    filled = []
    for cell in cells:
        card = cards.get(cell.dataset, "")
        row = known.get((comparison_name(cell.model), comparison_name(card)))
        if row and cell.protocol == PAPER and not cell.generated:
            found = {"published_accuracy": row.accuracy, "published_f1": row.macro_f1}
            cell = cell.model_copy(update=found)
        filled.append(cell)
    return filled


def with_blends(cells: Iterable[CellResult], entries: Iterable[ModelEntry]) -> list[CellResult]:
    """`cells` with the sweep and its alpha added to those whose model is a blend of two."""
    blends = {entry.name: entry.blend for entry in entries if entry.blend is not None}
    return [
        cell.model_copy(update={"blend": b.sweep, "alpha": b.alpha})
        if (b := blends.get(cell.model))
        else cell
        for cell in cells
    ]


def _all_predictions(folder: str, cells: Sequence[CellResult]) -> pa.Table:
    """The predictions of all grid cells; score columns of other protocols' classes are null."""
    names = ("model", "dataset", "protocol")
    tables = []
    for cell in cells:
        predictions = read_predictions(folder, cell)
        of_cell = {name: pa.array([getattr(cell, name)] * len(predictions), pa.string()) for name in names}
        tables.append(pa.table(of_cell | {name: predictions[name] for name in predictions.column_names}))
    empty = pa.table({name: pa.array([], pa.string()) for name in names})
    return pa.concat_tables(tables or [empty], promote_options="default")


def _parquet(table: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return out.getvalue()
