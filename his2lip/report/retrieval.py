"""The section of retrieval: images and captions that search each other, never part of the zero-shot mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from his2lip.evaluation import Estimate, TaskCell, TaskRow
from his2lip.report.section import Inputs, Section
from his2lip.report.table import Figure, Head, Row, Scale, Table

_TASK = "retrieval"
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
    cells = [cell for cell in inputs.tasks if cell.task == _TASK]
    if not cells:
        return None
    tables = [
        _table(own, number)
        for dataset in dict.fromkeys(cell.column for cell in cells)
        for own in [[cell for cell in cells if cell.column == dataset]]
        for number in range(len(own[0].rows))
    ]
    of_images = any(row.setting["direction"] == "image-to-image" for cell in cells for row in cell.rows)
    own_case = [_OWN_CASE] if of_images else []
    values = {"tables": tables, "remarks": [*own_case, *_remarks(cells)], "csv": inputs.link(f"{_TASK}.csv")}
    return Section(_TASK, "Retrieval", values, tables, own_case)


def _table(cells: Sequence[TaskCell], number: int) -> Table:
    """All models in the setting of the rows with this number."""
    row = cells[0].rows[number]
    title = f"{cells[0].column}: {row.setting['direction']}, same {row.setting['relevance']}, {row.size}"
    rows = [
        Row(cell.model, cell.is_baseline, [_figure(cell.rows[number].figures[name]) for name in _TITLES])
        for cell in cells
    ]
    return Table(f"{_TASK}-{number}", title, [_head(row, name) for name in _TITLES], rows)


def _head(row: TaskRow, name: str) -> Head:
    chance = row.figures[f"{name}_chance"]
    drawn = chance.unit == "fraction"
    return Head(
        _TITLES[name],
        (f"chance {chance}",),
        scale=Scale(0.0, 1.0) if drawn else None,
        chance=chance.value if drawn else None,
    )


def _figure(found: Estimate) -> Figure:
    if found.value is None:
        return Figure(None)
    if found.lo is None or found.hi is None:
        return Figure(found.value, found.shown(found.value))
    limits = f"{100 * found.lo:.1f} to {100 * found.hi:.1f}"
    return Figure(found.value, found.shown(found.value), limits, (found.lo, found.hi))


def _remarks(cells: Sequence[TaskCell]) -> Iterator[str]:
    """Who is in-domain, and why there are no intervals."""
    for column in dict.fromkeys(cell.column for cell in cells):
        own = [cell for cell in cells if cell.column == column]
        if known := [cell.model for cell in own if cell.in_domain]:
            yield f"{column}: in-domain for {', '.join(known)}"
        for cell in own:
            if cell.caveat:
                yield f"{column}, {cell.model}: {cell.caveat}"
        reasons = {row.no_interval: row.name for cell in own if not cell.is_baseline for row in cell.rows}
        yield from (f"{column}, {name}: no interval: {why}" for why, name in reasons.items() if why)
