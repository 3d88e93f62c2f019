"""The files of a finished grid: the leaderboard, the predictions of all grid cells, and the failures."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from his2lip.config import recorded
from his2lip.evaluation.config import ModelEntry
from his2lip.evaluation.grid_cell import PromptF1, read_predictions
from his2lip.evaluation.prompt_bands import STABLE, order_shares
from his2lip.evaluation.published_table import comparison_name, published_figures
from his2lip.evaluation.results import DIGESTS, CellFailure, CellResult, to_csv, to_table
from his2lip.files import filesystem, write_file

PAPER = "paper"  # the only protocol that is compared with published figures


def write_leaderboard(folder: str, cells: Sequence[CellResult], failed: Sequence[CellFailure]) -> str:
    """Writes leaderboard.csv and .parquet, predictions.parquet and failures.json into `folder`.

    sha256.json has the digest of each, which is checked when the leaderboard is read.
    Returns the path of leaderboard.csv.
    """
    system, path = filesystem(folder)
    reasons = [recorded(failure) for failure in failed]
    written = {
        "leaderboard.csv": to_csv(cells).encode(),
        "leaderboard.parquet": _parquet(to_table(cells)),
        "predictions.parquet": _parquet(_all_predictions(folder, cells)),
        "failures.json": (json.dumps(reasons, indent=1) + "\n").encode(),
    }
    for name, data in written.items():
        write_file(system, f"{path}/{name}", data)
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in written.items()}
    write_file(system, f"{path}/{DIGESTS}", (json.dumps(digests, indent=1) + "\n").encode())
    return f"{path}/leaderboard.csv"


def with_published(cells: Iterable[CellResult]) -> list[CellResult]:
    """`cells` with the paper's accuracy and F1 added to those of the `paper` protocol on real data."""
    known = {(comparison_name(row.model), comparison_name(row.dataset)): row for row in published_figures()}
    filled = []
    for cell in cells:
        row = known.get((comparison_name(cell.model), comparison_name(cell.dataset)))
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


def with_prompt_order(
    cells: Sequence[CellResult], prompt_f1: Mapping[tuple[str, str, str], PromptF1]
) -> list[CellResult]:
    """`cells` with the share of the prompt draws that keep a model's order with each other model.

    prompt_f1  model, dataset and protocol -> macro F1 of each prompt draw of each pool
    """
    shares: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    for column in {(cell.dataset, cell.protocol) for cell in cells}:
        own = [cell for cell in cells if (cell.dataset, cell.protocol) == column]
        of_draws = {c.model: f1 for c in own if (f1 := prompt_f1.get((c.model, *column)))}
        shares[column] = order_shares({c.model: c.macro_f1 for c in own}, of_draws)
    filled = []
    for cell in cells:
        order = shares[cell.dataset, cell.protocol].get(cell.model, {})
        least = min(order.values(), default=None)
        filled.append(
            cell.model_copy(
                update={
                    "prompt_order": order,
                    "prompt_order_least": least,
                    "order_depends_on_prompts": least is not None and least < STABLE,
                }
            )
        )
    return filled


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
