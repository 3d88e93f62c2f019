"""The section of every metric by dataset: value, interval, n, and what must be known beside it."""

from __future__ import annotations

from his2lip.evaluation import CellResult, metric_fields
from his2lip.report.board import ONE_NUMBER
from his2lip.report.comparability import IMPOSSIBLE, NOT_COMPARABLE, is_comparable
from his2lip.report.differences import groups, is_top
from his2lip.report.prompt_order import MARK, is_marked
from his2lip.report.section import Inputs, Section
from his2lip.report.table import FRACTION, Figure, Row, Scale, Table, limits, shown
from his2lip.templates import percent

TITLE = "By dataset"
FIRST = ("macro_f1", ONE_NUMBER)  # metrics that lead; the others follow in the order of the record
OVERLAP = "‡"  # beside figures of units that the model was trained on
IN_DOMAIN = "§"  # beside figures on a dataset that is in-domain for the model


def fill(inputs: Inputs) -> Section:
    """One table for each metric and block of columns; the tissue that was seen is the last."""
    metrics = metric_fields()
    known = [name for name in metrics if any(getattr(c, name) is not None for c in inputs.board.cells)]
    names = [*FIRST, *(name for name in known if name not in FIRST)]
    described: dict[str, tuple[str, str]] = {
        name: (metrics[name].title, metrics[name].unit) for name in names
    }
    described["coverage"] = ("Tissue seen", FRACTION)
    tables = [
        _table(inputs, name, title, unit, block)
        for name, (title, unit) in described.items()
        for block in inputs.columns.blocks()
    ]
    values = {
        "tables": tables,
        "choices": {table.key: table.title for table in tables},
        "meanings": {name: metrics[name].description for name in names},
        "legend": inputs.columns.legend,
        "marks": _used(inputs),
    }
    return Section("datasets", TITLE, values, tables)


def _table(inputs: Inputs, name: str, title: str, unit: str, block: tuple[str, list[str]]) -> Table:
    """The field `name` of the grid cells of some columns."""
    board, (part, columns) = inputs.board, block
    rows = [
        Row(
            model,
            [_figure(inputs, board.cell(model, column), name, unit) for column in columns],
        )
        for model in board.models
    ]
    rows = [row for row in rows if any(figure.value is not None for figure in row.figures)]
    scale = Scale.of((figure for row in rows for figure in row.figures), unit)
    heads = [inputs.columns.head(column, name, scale) for column in columns]
    title = f"{title}, %" if unit == FRACTION else title
    return Table(name, title, heads, rows, part)


def _figure(inputs: Inputs, cell: CellResult | None, name: str, unit: str) -> Figure:
    value = None if cell is None else getattr(cell, name)
    if cell is None or value is None:
        return Figure(None)
    interval = cell.interval(name)
    published = cell.published(name)
    return Figure(
        value,
        shown(value, unit),
        limits(interval, unit),
        interval,
        is_top(cell, name),
        marks(cell, name),
        groups(cell, name),
        ()
        if published is None
        else (f"paper {percent(published)}{'' if is_comparable(cell) else IMPOSSIBLE}",),
        inputs.evidence(cell),
    )


def marks(cell: CellResult, name: str) -> str:
    """The signs beside a figure: the order depends on prompts, units were trained on, it is in-domain."""
    signs = {MARK: is_marked(cell, name), OVERLAP: cell.overlap_note is not None, IN_DOMAIN: cell.in_domain}
    return "".join(sign for sign, is_used in signs.items() if is_used)


def _used(inputs: Inputs) -> dict[str, str]:
    """Sign -> what it means; only signs that a figure has."""
    meanings = {
        MARK: "the order with another model depends on the prompts",
        OVERLAP: "units that the model was trained on",
        IN_DOMAIN: "in-domain: the model was trained on data of this distribution",
        IMPOSSIBLE: NOT_COMPARABLE,
    }
    seen = {sign for cell in inputs.board.cells for name in FIRST for sign in marks(cell, name)}
    seen |= {IMPOSSIBLE for cell in inputs.board.cells if not is_comparable(cell)}
    return {sign: meaning for sign, meaning in meanings.items() if sign in seen}
