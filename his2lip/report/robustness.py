"""The section of robustness: curves of the drop of macro F1 under perturbations, and the figures behind."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from his2lip.evaluation import MEANINGS, PERTURBATIONS, Estimate, PerturbationKind, TaskCell, TaskRow
from his2lip.report.columns import by_column
from his2lip.report.section import Inputs, Section
from his2lip.report.table import Figure, Head, Row, Scale, Table

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as Plot

TASK = "robustness"
ERRORS = "errors.html"  # the page of the most confident errors, beside the leaderboard
_COLOURS = ("#36c", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#888")


def fill(inputs: Inputs) -> Section | None:
    """The curves and a table for each dataset and perturbation; None without robustness."""
    cells = [cell for cell in inputs.tasks if cell.task == TASK]
    if not cells:
        return None
    columns = by_column(cells, TASK)
    tables = [_table(name, own, kind) for name, own in columns.items() for kind in kinds_of(own)]
    values = {
        "tables": tables,
        "meanings": {kind: MEANINGS[kind] for kind in kinds_of(cells)},
        "remarks": list(_remarks(cells)),
        "csv": inputs.link(f"{TASK}.csv"),
        "errors": ERRORS if inputs.is_written(ERRORS) else "",
    }
    return Section(TASK, "Robustness", values, tables)


def plots(tasks: Sequence[TaskCell]) -> list[tuple[str, Plot]]:
    """The curves of each dataset, with a title."""
    return [(_title(name, own), curves(own)) for name, own in by_column(tasks, TASK).items()]


def drops(cell: TaskCell, kind: str) -> list[tuple[str, Estimate]]:
    """(level, relative drop of macro F1) of a perturbation, where it is defined."""
    rows = [row for row in cell.rows if row.setting["perturbation"] == kind]
    return [(row.setting["level"], e) for row in rows if (e := row.figures.get("relative_drop"))]


def curves(cells: Sequence[TaskCell]) -> Plot:
    """The relative drop of macro F1, in percent, over the levels of each perturbation; one line per model."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    kinds = kinds_of(cells)
    columns = min(3, len(kinds))
    lines = -(-len(kinds) // columns)
    figure = make_subplots(rows=lines, cols=columns, subplot_titles=kinds, shared_yaxes=True)
    for i, kind in enumerate(kinds):
        for c, cell in enumerate(cells):
            known = drops(cell, kind)
            figure.add_trace(
                go.Scatter(
                    x=[level for level, _ in known],
                    y=[100 * e.value for _, e in known if e.value is not None],
                    error_y={
                        "array": [reach(e, e.hi) for _, e in known],
                        "arrayminus": [reach(e, e.lo) for _, e in known],
                        "symmetric": False,
                    },
                    name=html.escape(cell.model),
                    legendgroup=cell.model,
                    showlegend=i == 0,
                    mode="lines+markers",
                    line={"color": _COLOURS[c % len(_COLOURS)]},
                ),
                row=1 + i // columns,
                col=1 + i % columns,
            )
    figure.update_xaxes(type="category")
    figure.update_yaxes(title="drop of macro F1, %", col=1)
    figure.update_layout(height=120 + 240 * lines, margin={"t": 40, "l": 10, "r": 10, "b": 10})
    return figure


def reach(found: Estimate, limit: float | None) -> float | None:
    """How far a limit is from the figure, in percent; None where there is none."""
    return None if limit is None or found.value is None else 100 * abs(limit - found.value)


def kinds_of(cells: Sequence[TaskCell]) -> list[PerturbationKind]:
    """The perturbations of the cells, in order."""
    found = {row.setting["perturbation"] for cell in cells for row in cell.rows}
    return [kind for kind in PERTURBATIONS if kind in found]


def _title(column: str, cells: Sequence[TaskCell]) -> str:
    return f"{column}: relative drop of macro F1, {cells[0].rows[0].size}"


def _table(column: str, cells: Sequence[TaskCell], kind: str) -> Table:
    """Macro F1 of all models without a perturbation and at each of its levels, with the relative drop."""
    levels = [r.setting["level"] for r in cells[0].rows if r.setting["perturbation"] == kind]
    heads = [Head("none", scale=Scale(0.0, 1.0))]
    for level in levels:
        heads += [Head(f"level {level}", scale=Scale(0.0, 1.0)), Head(f"drop at {level}")]
    rows = []
    for cell in cells:
        figures = [_figure(cell.row(perturbation="none", level="0"), "macro_f1")]
        for row in (cell.row(perturbation=kind, level=level) for level in levels):
            figures += [_figure(row, "macro_f1"), _figure(row, "relative_drop")]
        rows.append(Row(cell.model, figures))
    title = f"{column}, {kind}: macro F1 and its relative drop, %, {cells[0].rows[0].size}"
    return Table(f"{TASK}-{kind}", title, heads, rows)


def _figure(row: TaskRow | None, name: str) -> Figure:
    return Figure.of(None if row is None else row.figures.get(name))


def _remarks(cells: Sequence[TaskCell]) -> Iterator[str]:
    """What limits the drops of single models, and why there are no intervals."""
    for cell in cells:
        if cell.caveat:
            yield f"{cell.column}, {cell.model}: {cell.caveat}"
        if cell.in_domain:
            yield f"{cell.column}: in-domain for {cell.model}"
        if (why := cell.rows[0].no_interval) is not None:
            yield f"{cell.column}, {cell.model}: no intervals: {why}"
