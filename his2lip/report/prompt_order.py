"""How far a board depends on its prompts: models with prompt draws, and pairs of models by column."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from his2lip.evaluation import STABLE, CellResult
from his2lip.report.board import Board, heading

MARK = "†"  # beside figures whose order depends on the prompts
MARKED = "order depends on prompts"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two models on one column, the first with the higher macro F1 under the whole pool.

    difference  of their macro F1, a fraction
    share       of the prompt draws that keep this order
    """

    column: str
    first: str
    second: str
    difference: float
    share: float

    @property
    def depends_on_prompts(self) -> bool:
        return self.share < STABLE


def pairs(board: Board) -> list[Pair]:
    """Every two models of a column that have prompt draws, in the order of the board's columns and models."""
    found = []
    for column in board.columns:
        cells = [cell for m in board.models if (cell := board.cell(m, column)) is not None]
        for one, other in combinations(cells, 2):
            if (share := one.prompt_order.get(other.model)) is not None:
                first, second = (one, other) if one.macro_f1 >= other.macro_f1 else (other, one)
                difference = first.macro_f1 - second.macro_f1
                found.append(
                    Pair(
                        column=column,
                        first=first.model,
                        second=second.model,
                        difference=difference,
                        share=share,
                    )
                )
    return found


def pairs_csv(pairs: Sequence[Pair]) -> str:
    """The pairs as CSV; figures are fractions in [0, 1]."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("column", "first", "second", "difference", "share_in_order", "order_depends_on_prompts"))
    writer.writerows(
        (p.column, p.first, p.second, p.difference, p.share, str(p.depends_on_prompts)) for p in pairs
    )
    return out.getvalue()


def is_marked(cell: CellResult | None, name: str) -> bool:
    """Whether a figure carries the mark: only macro F1 is measured over prompt draws."""
    return name == "macro_f1" and cell is not None and cell.order_depends_on_prompts


def unstable(cell: CellResult) -> list[tuple[str, float]]:
    """The other models whose order with this one depends on the prompts, each with its share."""
    return [(model, share) for model, share in cell.prompt_order.items() if share < STABLE]


def banded(board: Board) -> list[str]:
    """The models that have prompt draws on some column, in the board's order."""
    have = {cell.model for cell in board.cells if cell.prompt_f1_median is not None}
    return [model for model in board.models if model in have]


def columns_with_bands(board: Board) -> list[str]:
    """The columns that have prompt draws, in the board's order."""
    have = {heading(cell) for cell in board.cells if cell.prompt_f1_median is not None}
    return [column for column in board.columns if column in have]
