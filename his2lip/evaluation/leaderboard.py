"""The grid's tables: leaderboard.csv, and the predictions of all cells together."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from his2lip.evaluation.config import ModelEntry
from his2lip.evaluation.grid_cell import CellFailure, CellResult, read_predictions
from his2lip.evaluation.published_table import plain, published
from his2lip.files import filesystem, write_file

PAPER = "paper"  # the protocol that published numbers stand beside

# Fixed by the design; what follows them may grow.
COLUMNS = (
    "model", "dataset", "protocol", "n", "accuracy", "accuracy_lo", "accuracy_hi", "macro_f1", "macro_f1_lo",
    "macro_f1_hi", "balanced_accuracy", "published_accuracy", "published_f1", "weights_sha256",
    "prompts_sha256", "split_sha256",
    "images_sha256", "encoder", "in_domain", "generated", "split", "role", "basis", "ties", "apart",
    "without_mpp", "quadratic_kappa", "cell", "blend", "alpha",
)  # fmt: skip


def write_leaderboard(folder: str, results: Sequence[CellResult], failed: Sequence[CellFailure]) -> str:
    """Writes leaderboard.csv, predictions.parquet and failures.json into `folder`; the leaderboard's path."""
    system, path = filesystem(folder)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(r) for r in results)
    write_file(system, f"{path}/leaderboard.csv", text.getvalue().encode())
    out = io.BytesIO()
    pq.write_table(_all_predictions(results), out, compression="zstd")
    write_file(system, f"{path}/predictions.parquet", out.getvalue())
    reasons = [dataclasses.asdict(f) for f in failed]
    write_file(system, f"{path}/failures.json", (json.dumps(reasons, indent=1) + "\n").encode())
    return f"{path}/leaderboard.csv"


def with_published(results: Iterable[CellResult]) -> list[CellResult]:
    """`results`, with published accuracy and F1 beside `paper` protocols on real data that the table has."""
    known = {(plain(row.model), plain(row.dataset)): row for row in published()}
    filled = []
    for result in results:
        row = known.get((plain(result.model), plain(result.dataset)))
        if row and result.protocol == PAPER and not result.generated:
            result = dataclasses.replace(result, published_accuracy=row.accuracy, published_f1=row.macro_f1)
        filled.append(result)
    return filled


def with_blends(results: Iterable[CellResult], entries: Iterable[ModelEntry]) -> list[CellResult]:
    """`results`, with the sweep and the alpha of those whose model lies between two."""
    blends = {entry.name: entry.blend for entry in entries if entry.blend is not None}
    return [
        dataclasses.replace(r, blend=b.sweep, alpha=b.alpha) if (b := blends.get(r.model)) else r
        for r in results
    ]


def _all_predictions(results: Sequence[CellResult]) -> pa.Table:
    """Every cell's predictions under one another; score columns of other protocols' classes are null."""
    names = ("model", "dataset", "protocol")
    tables = [
        pa.table({name: pa.array([getattr(r, name)] * len(t), pa.string()) for name in names}
                 | {name: t[name] for name in t.column_names})
        for r, t in ((r, read_predictions(r)) for r in results)
    ]  # fmt: skip
    empty = pa.table({name: pa.array([], pa.string()) for name in names})
    return pa.concat_tables(tables or [empty], promote_options="default")
