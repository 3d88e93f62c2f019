"""Differences of models: from a reference, and whether they can be told from the best of a column."""

from __future__ import annotations

import csv
import io

from his2lip.evaluation import CellResult, Compared
from his2lip.report.board import Board

SHOWN = ("chance_corrected", "macro_f1")  # figures whose differences from the reference are on the page
_OF_CELL = ("model", "dataset", "protocol", "generated", "reference", "margin")
_COLUMNS = (
    *("model", "dataset", "protocol", "generated", "figure", "value", "top", "detectable"),
    *("reference", "difference", "difference_lo", "difference_hi", "margin", "non_inferior"),
)


def compared(cell: CellResult | None, figure: str) -> Compared | None:
    """How a figure compares with those of the other models; None where nothing was compared."""
    return None if cell is None else cell.compared.get(figure)


def is_top(cell: CellResult | None, figure: str) -> bool:
    """Whether a figure cannot be told from the best of its column."""
    found = compared(cell, figure)
    return found is not None and found.top


def differences_csv(board: Board) -> str:
    """Every figure that was compared with those of other models, as CSV; empty without any."""
    out = io.StringIO()
    writer = csv.DictWriter(out, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    rows = [
        {name: getattr(cell, name) for name in ("model", "dataset", "protocol", "generated")}
        | {
            "figure": figure,
            "value": getattr(cell, figure),
            "reference": cell.reference,
            "margin": cell.margin,
        }
        | found.model_dump()
        for cell in board.cells
        for figure, found in cell.compared.items()
    ]
    writer.writerows(rows)
    return out.getvalue() if rows else ""
