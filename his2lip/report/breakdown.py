"""The figures of each grid cell by organ, biomarker, stain, slide and case, as a table."""

from __future__ import annotations

from his2lip.report.board import Board
from his2lip.report.csv_text import csv_text

_OF_CELL = ("model", "dataset", "protocol", "generated")
_OF_PART = ("n", "clusters", "accuracy", "macro_f1", "balanced_accuracy")


def breakdown_csv(board: Board) -> str:
    """One line per grid cell, column and value; empty where nothing is broken down.

    A figure that needs classes which the units of a value do not have is empty.
    """
    rows = [
        {name: getattr(cell, name) for name in _OF_CELL} | {"column": column, "value": value} | part
        for cell in board.cells
        for column, parts in cell.breakdown.items()
        for value, part in parts.items()
    ]
    return csv_text(rows, (*_OF_CELL, "column", "value", *_OF_PART))
