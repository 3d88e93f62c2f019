"""Differences of models: the section of those from a reference, and who can be told from the best."""

from __future__ import annotations

from dataclasses import replace

from his2lip.evaluation import CellResult, Compared, Metric, metric_fields
from his2lip.report.board import Board
from his2lip.report.csv_text import csv_text
from his2lip.report.section import Inputs, Section
from his2lip.report.table import FRACTION, Figure, Row, Scale, Table, difference, limits

SHOWN = ("chance_corrected", "macro_f1")  # figures whose differences from the reference are on the page
_OF_CELL = ("model", "dataset", "protocol", "generated")
_COLUMNS = (
    *(*_OF_CELL, "figure", "value", "top", "groups", "detectable"),
    *("reference", "difference", "difference_lo", "difference_hi", "margin", "non_inferior"),
)


def fill(inputs: Inputs) -> Section | None:
    """The differences of the models from the reference; None where the benchmark has no reference."""
    reference = inputs.board.reference
    if reference is None:
        return None
    tables = [
        _table(inputs, metric_fields()[name], reference, block)
        for name in SHOWN
        for block in inputs.columns.blocks()
    ]
    values = {"tables": tables, "reference": reference, "margin": inputs.board.margin}
    return Section("differences", f"Differences from {reference}", values, tables)


def _table(inputs: Inputs, metric: Metric, reference: str, block: tuple[str, list[str]]) -> Table:
    part, columns = block
    rows = [
        Row(
            model,
            [_figure(inputs, inputs.board.cell(model, column), metric) for column in columns],
        )
        for model in inputs.board.models
        if model != reference
    ]
    rows = [row for row in rows if any(figure.value is not None for figure in row.figures)]
    unit = ", points" if metric.unit == FRACTION else ""
    title = f"{metric.title}: difference from {reference}{unit}"
    scale = Scale.around_zero((figure for row in rows for figure in row.figures), metric.unit)
    heads = [inputs.columns.head(column, metric.name, scale) for column in columns]
    # The line of a column is at no difference, not at the figure of chance.
    heads = [replace(head, chance=0.0) for head in heads]
    return Table(metric.name, title, heads, rows, part)


def _figure(inputs: Inputs, cell: CellResult | None, metric: Metric) -> Figure:
    """A difference from the reference, with its interval and whether it is no loss."""
    found = compared(cell, metric.name)
    if found is None or found.difference is None:
        return Figure(None)
    interval = found.difference_interval
    return Figure(
        found.difference,
        difference(found.difference, metric.unit),
        limits(interval, metric.unit),
        interval,
        beside=("no loss",) if found.non_inferior else (),
        href=inputs.evidence(cell),
    )


def compared(cell: CellResult | None, figure: str) -> Compared | None:
    """How a figure compares with those of the other models; None where nothing was compared."""
    return None if cell is None else cell.compared.get(figure)


def is_top(cell: CellResult | None, figure: str) -> bool:
    """Whether a figure cannot be told from the best of its column."""
    found = compared(cell, figure)
    return found is not None and found.top


def groups(cell: CellResult, figure: str) -> str:
    """The letters that a figure shares with those from which it cannot be told."""
    found = compared(cell, figure)
    return "" if found is None else found.groups


def differences_csv(board: Board) -> str:
    """Every figure that was compared with those of other models, as CSV; empty without any."""
    rows = [
        {name: getattr(cell, name) for name in _OF_CELL}
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
    return csv_text(rows, _COLUMNS)
