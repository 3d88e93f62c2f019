"""How far a board depends on its prompts: prompt draws of the models, and pairs of models by column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from his2lip.evaluation import DRAWS, SENTENCES, STABLE, CellResult
from his2lip.report.board import Board, heading
from his2lip.report.csv_text import csv_text
from his2lip.report.section import Inputs, Section
from his2lip.report.table import Figure, Row, Scale, Table
from his2lip.templates import percent

MARK = "†"  # beside figures whose order depends on the prompts
MARKED = "order depends on prompts"

TITLE = f"Macro F1 over {DRAWS} draws of {SENTENCES} prompts per class: median (5 to 95 %), %"


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


def fill(inputs: Inputs) -> Section | None:
    """Macro F1 over the prompt draws, and the pairs whose order depends on them; None without draws."""
    board, models = inputs.board, banded(inputs.board)
    if not models:
        return None
    have = columns_with_bands(board)
    tables = []
    for part, columns in inputs.columns.blocks():
        drawn = [column for column in columns if column in have]
        rows = [Row(m, [_figure(inputs, board.cell(m, column)) for column in drawn]) for m in models]
        if drawn:
            heads = [inputs.columns.head(column, scale=Scale(0.0, 1.0)) for column in drawn]
            tables.append(Table("prompts", TITLE, heads, rows, part))
    return Section(
        "prompts", "Prompts", {"tables": tables, "unstable": unstable_pairs(board), "mark": MARK}, tables
    )


def _figure(inputs: Inputs, cell: CellResult | None) -> Figure:
    """The median over the prompt draws; 5 and 95 % as its limits."""
    if cell is None or cell.prompt_f1_median is None:
        return Figure(None)
    low, high = cell.prompt_f1_lo, cell.prompt_f1_hi
    return Figure(
        cell.prompt_f1_median,
        percent(cell.prompt_f1_median),
        f"{percent(low)} to {percent(high)}",
        None if low is None or high is None else (low, high),
        href=inputs.evidence(cell),
    )


def unstable_pairs(board: Board) -> list[tuple[str, list[str]]]:
    """Column -> the pairs of models whose order depends on the prompts, one sentence each."""
    found: dict[str, list[str]] = {}
    for pair in pairs(board):
        if pair.depends_on_prompts:
            text = (
                f"{pair.first} above {pair.second} by {100 * pair.difference:.2f} points, "
                f"in {100 * pair.share:.1f} % of the prompt draws"
            )
            found.setdefault(pair.column, []).append(text)
    return list(found.items())


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
    return csv_text(
        [
            {
                "column": pair.column,
                "first": pair.first,
                "second": pair.second,
                "difference": pair.difference,
                "share_in_order": pair.share,
                "order_depends_on_prompts": pair.depends_on_prompts,
            }
            for pair in pairs
        ]
    )


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
