"""The section of few-shot probes: macro F1 by model, kind of probe and labels per class."""

from __future__ import annotations

from his2lip.evaluation import CellResult
from his2lip.report.board import Board
from his2lip.report.section import Inputs, Section
from his2lip.report.table import FRACTION, Figure, Row, Scale, Table, limits

TITLE = "Few-shot probes"
_TABLE = "Macro F1 of few-shot probes: mean ± standard deviation over draws of the labels, %"
NOTE = (
    "Probes (probe:…) are fitted on labels of other cases, so they are not zero-shot. They are in no mean "
    "and no rank, and are compared with each other only."
)


def fill(inputs: Inputs) -> Section | None:
    """Macro F1 over the draws of each few-shot probe; None where the board has none."""
    board, models = inputs.board, few_shot(inputs.board)
    if not models:
        return None
    tables = []
    for part, columns in inputs.columns.blocks():
        heads = [inputs.columns.head(column, scale=Scale(0.0, 1.0)) for column in columns]
        rows = [Row(m, [_figure(inputs, board.cell(m, column)) for column in columns]) for m in models]
        tables.append(Table("few-shot", _TABLE, heads, rows, part))
    caveats = {cell.caveat: None for cell in board.cells if cell.is_few_shot}
    return Section("few-shot", TITLE, {"tables": tables, "caveats": list(caveats)}, tables)


def few_shot(board: Board) -> list[str]:
    """The rows of few-shot probes, in the order of the grid cells."""
    return list(dict.fromkeys(cell.model for cell in board.cells if cell.is_few_shot))


def _figure(inputs: Inputs, cell: CellResult | None) -> Figure:
    found = None if cell is None else cell.over_seeds.get("macro_f1")
    if found is None:
        return Figure(None)
    text, interval = f"{100 * found.mean:.1f} ± {100 * found.deviation:.1f}", found.interval
    return Figure(found.mean, text, limits(interval, FRACTION), interval, href=inputs.evidence(cell))
