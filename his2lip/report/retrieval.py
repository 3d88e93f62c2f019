"""The section of retrieval: images and captions that search each other, never part of the zero-shot mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from his2lip.evaluation import TaskCell, TaskRow
from his2lip.report.columns import by_column
from his2lip.report.section import Inputs, Section
from his2lip.report.table import FRACTION, Figure, Head, Row, Scale, Table

TASK = "retrieval"
_TITLES = {
    "recall_at_1": "recall at 1, %",
    "recall_at_5": "recall at 5, %",
    "recall_at_10": "recall at 10, %",
    "mean_average_precision": "mAP, %",
    "median_rank": "median rank",
}
_OWN_CASE = "image-to-image: images of the query's own case are in the gallery; they are often the nearest"


def fill(inputs: Inputs) -> Section | None:
    """A table for each dataset, direction and meaning of relevant; None without retrieval."""
    columns = by_column(inputs.tasks, TASK)
    if not columns:
        return None
    tables = [_table(cells, number) for cells in columns.values() for number in range(len(cells[0].rows))]
    shown = [row for cells in columns.values() for cell in cells for row in cell.rows]
    own_case = [_OWN_CASE] if any(row.setting["direction"] == "image-to-image" for row in shown) else []
    values = {"tables": tables, "remarks": [*own_case, *_remarks(columns)], "csv": inputs.link(f"{TASK}.csv")}
    return Section(TASK, "Retrieval", values, tables, own_case)


def _table(cells: Sequence[TaskCell], number: int) -> Table:
    """All models in the setting of the rows with this number."""
    row = cells[0].rows[number]
    title = f"{cells[0].column}: {row.setting['direction']}, same {row.setting['relevance']}, {row.size}"
    rows = [
        Row(cell.model, [Figure.of(cell.rows[number].figures[name]) for name in _TITLES]) for cell in cells
    ]
    return Table(f"{TASK}-{number}", title, [_head(row, name) for name in _TITLES], rows)


def _head(row: TaskRow, name: str) -> Head:
    chance = row.figures[f"{name}_chance"]
    drawn = chance.unit == FRACTION
    return Head(
        _TITLES[name],
        (f"chance {chance}",),
        scale=Scale(0.0, 1.0) if drawn else None,
        chance=chance.value if drawn else None,
    )


def _remarks(columns: Mapping[str, Sequence[TaskCell]]) -> Iterator[str]:
    """Who is in-domain, and why there are no intervals."""
    for column, own in columns.items():
        if known := [cell.model for cell in own if cell.in_domain]:
            yield f"{column}: in-domain for {', '.join(known)}"
        for cell in own:
            if cell.caveat:
                yield f"{column}, {cell.model}: {cell.caveat}"
        reasons = {row.no_interval: row.name for cell in own if not cell.is_baseline for row in cell.rows}
        yield from (f"{column}, {name}: no interval: {why}" for why, name in reasons.items() if why)
