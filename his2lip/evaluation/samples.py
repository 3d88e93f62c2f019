"""The samples of a board as JSON lines: one file per grid cell, one line per scored unit."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from his2lip.evaluation.results import CellResult, read_results
from his2lip.evaluation.stored_cell import APART_NAME, BY, read_predictions


def write_samples(folder: Path, out: Path) -> list[Path]:
    """Writes MODEL.DATASET.PROTOCOL.CELL.jsonl of each row of a board into `out`.

    CELL is the start of the grid cell's digest.
    The keys of a line are

    patch_id   dataset and path of the image; of a pooled unit, its slide or image
    case_id    the case, null where unknown; cluster: what intervals group the unit by
    label      the true class; null for a unit that is not scored
    predicted  the predicted class; right: whether it is the label, null where that is null
    scores     class -> score (cosine or dot product), higher is more similar
    prompt     the closest sentence of the predicted class; null for baselines
    split      the scored split; rows: the unit's rows in it, counted from 0 through the shards in their order
    by         column -> value that figures are broken down by
    """
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for cell in read_results(folder / "leaderboard.csv"):
        name = re.sub(r"[^A-Za-z0-9._=@+-]+", "_", f"{cell.model}.{cell.dataset}.{cell.protocol}")
        path = out / f"{name}.{cell.cell[:8]}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            file.writelines(
                f"{json.dumps(line, ensure_ascii=False)}\n" for line in samples(str(folder), cell)
            )
        written.append(path)
    return written


def samples(folder: str, cell: CellResult) -> Iterator[dict[str, Any]]:
    """The lines of one grid cell, as `write_samples` describes them."""
    table = read_predictions(folder, cell)
    groups = [name for name in table.column_names if name.startswith(BY)]
    for row in table.to_pylist():
        label = None if row["label"] == APART_NAME else row["label"]
        yield {
            "patch_id": row["patch_id"],
            "case_id": row["case_id"],
            "cluster": row["cluster"],
            "label": label,
            "predicted": row["predicted"],
            "right": None if label is None else label == row["predicted"],
            "scores": {name: row[f"score_{name}"] for name in cell.classes},
            "prompt": row.get("prompt"),
            "split": cell.split,
            "rows": row["rows"],
            "by": {name.removeprefix(BY): row[name] for name in groups},
        }
