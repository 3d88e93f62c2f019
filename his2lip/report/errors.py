"""The most confident errors of each model as one HTML file with thumbnails, which needs no network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc

from his2lip.evaluation import TaskCell, read_evidence
from his2lip.report.robustness import TASK
from his2lip.templates import render


@dataclass(frozen=True)
class Error:
    """A unit that a model puts into another class, by how much, and a JPEG of it in base64."""

    patch_id: str
    label: str
    predicted: str
    margin: float
    thumbnail: str


def errors_page(folder: Path, tasks: Sequence[TaskCell]) -> str | None:
    """The page of all models and datasets; None where no error was kept.

    folder  of the benchmark, which has the evidence of its grid cells
    """
    groups = [(cell, *errors(folder, cell)) for cell in tasks if cell.task == TASK]
    shown = [(cell, found, count) for cell, found, count in groups if found]
    return render("report/errors.html", groups=shown) if shown else None


def errors(folder: Path, cell: TaskCell) -> tuple[list[Error], int]:
    """The errors that were kept of a grid cell, the largest margin first, and the number of all its errors.

    There are none without its evidence.
    """
    try:
        table = read_evidence(str(folder), cell)
    except FileNotFoundError:
        return [], 0
    clean = table.filter(pc.equal(table["perturbation"], "none"))
    count = pc.sum(pc.not_equal(clean["label"], clean["predicted"])).as_py() or 0
    kept = table.filter(pc.is_valid(table["thumbnail"])).sort_by([("margin", "descending")])
    found = [
        Error(
            row["patch_id"],
            row["label"],
            row["predicted"],
            row["margin"],
            base64.b64encode(row["thumbnail"]).decode(),
        )
        for row in kept.to_pylist()
    ]
    return found, count
