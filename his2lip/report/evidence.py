"""The section of evidence: what every figure of a grid cell rests on, and where its predictions are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from his2lip.data.cards import list_cards, load_card
from his2lip.evaluation import CellResult, metric_fields
from his2lip.report.board import heading
from his2lip.report.comparability import NOT_COMPARABLE, is_comparable
from his2lip.report.notes import UNCHANGED
from his2lip.report.probes import few_shot
from his2lip.report.prompt_order import unstable
from his2lip.report.section import Inputs, Section
from his2lip.report.table import FRACTION, limits, shown
from his2lip.templates import percent

_FILES = {
    "leaderboard.csv": "every field of every grid cell",
    "differences.csv": "differences from the reference, and who cannot be told from the best",
    "prompt_order.csv": "how often the prompt draws keep the order of two models",
    "against_paper.csv": "the paper's figures beside ours, with what differs",
    "calibration.csv": "temperatures, Brier score, log loss, debiased error, slope, AURC",
    "risk_coverage.csv": "share of wrong answers where the least confident are not answered",
    "breakdown.csv": "figures by organ, biomarker, stain, slide and case",
    "alpha.csv": "the curve of a sweep of alpha",
}
_DIGESTS = {
    "weights": "weights_sha256",
    "prompts": "prompts_sha256",
    "units and labels": "split_sha256",
    "images": "images_sha256",
    "grid cell": "cell",
}


def fill(inputs: Inputs) -> Section | None:
    """The columns with their grid cells; None without any."""
    if not inputs.board.cells:
        return None
    files = {name: what for name, what in _FILES.items() if inputs.is_written(name)}
    values = {
        "columns": [_column(inputs, column) for column in inputs.board.columns],
        "files": files,
        "predictions": inputs.link("predictions.parquet"),
    }
    return Section("evidence", "Evidence", values)


def _column(inputs: Inputs, column: str) -> dict[str, Any]:
    """What is common to the grid cells of a column, and the cells themselves."""
    cell = inputs.columns.cells[column]
    known = load_card(cell.dataset).protocols if cell.dataset in list_cards() else {}
    protocol = known.get(cell.protocol)
    board = inputs.board
    models = (*board.models, *few_shot(board))
    rows = [c for model in models if (c := board.cell(model, column)) is not None]
    return {
        "id": inputs.column_ids[(column,)],
        "name": column,
        "dataset": cell.dataset,
        "protocol": cell.protocol,
        "cell": cell,
        "supports": {name: figures.support for name, figures in cell.per_class.items()},
        "note": None if protocol is None else protocol.note,
        "cells": [_cell(inputs, c) for row in rows for c in _with_trainings(inputs, row)],
    }


def _with_trainings(inputs: Inputs, row: CellResult) -> Iterator[CellResult]:
    """The row, and each training of it where it is the mean of several."""
    yield row
    if row.seeds_of is not None and row.model not in inputs.models_scored:
        own = (heading(row), row.seeds_of)
        yield from (c for c in inputs.every.cells if (heading(c), c.seeds_of) == own)


def _cell(inputs: Inputs, cell: CellResult) -> dict[str, Any]:
    """Everything that the record says of one grid cell. A mean of trainings has no predictions of its own."""
    is_single = cell.model in inputs.models_scored
    return {
        "id": inputs.cell_ids[cell.model, heading(cell)],
        "model": cell.model,
        "is_baseline": cell.is_baseline,
        "size": cell.size,
        "figures": list(_figures(cell)),
        "is_single": is_single,
        "classes": cell.classes,
        "confusion": cell.confusion,
        "per_class": cell.per_class,
        "prompts": list(_prompts(cell)),
        "remarks": list(_remarks(cell)),
        "digests": [(what, value) for what, name in _DIGESTS.items() if (value := getattr(cell, name))],
        "predictions": inputs.link("cells", cell.cell, "predictions.parquet") if is_single else "",
        "record": inputs.link("cells", cell.cell, "cell.json") if is_single else "",
    }


def _figures(cell: CellResult) -> Iterator[tuple[str, str, str]]:
    """(title, figure, interval) of every metric that the cell has."""
    for name, metric in metric_fields().items():
        value = getattr(cell, name)
        if value is not None:
            unit = " %" if metric.unit == FRACTION else ""
            yield metric.title, shown(value, metric.unit) + unit, limits(cell.interval(name), metric.unit)


def _prompts(cell: CellResult) -> Iterator[str]:
    """How macro F1 depends on the sentences: the draws, further pools, and the pairs that change places."""
    if cell.prompt_f1_median is not None:
        yield (
            f"macro F1 over prompt draws: median {percent(cell.prompt_f1_median)} %, 5 to 95 % "
            f"{percent(cell.prompt_f1_lo)} to {percent(cell.prompt_f1_hi)} %; "
            f"{cell.prompt_pool} sentences or more per class"
        )
    for name, pool in cell.prompt_pools.items():
        known = f", draws {percent(pool.lo)} to {percent(pool.hi)} %" if pool.median is not None else ""
        yield f"macro F1 under the pool {name}: {percent(pool.macro_f1)} %{known}"
    for model, share in unstable(cell):
        yield f"the order with {model} is kept in {100 * share:.0f} % of the prompt draws"


def _remarks(cell: CellResult) -> Iterator[str]:
    """What limits the figures, one sentence each."""
    if cell.interval("macro_f1") is None:
        yield f"no interval: {cell.no_interval or UNCHANGED}"
    notes = (cell.caveat, cell.overlap_note, cell.cut_note, cell.seen_note)
    yield from (note for note in notes if note)
    if cell.in_domain:
        yield "in-domain: the model was trained on data of this distribution"
    if cell.coverage is not None:
        yield f"tissue seen {percent(cell.coverage)} %"
    if cell.ties:
        yield f"{cell.ties:,} units with more than one class at the highest score"
    for figure, title in (("accuracy", "accuracy"), ("macro_f1", "macro F1")):
        if (published := cell.published(figure)) is not None:
            found = f"difference {100 * (getattr(cell, figure) - published):+.2f}"
            yield f"{title}: paper {percent(published)}, {found if is_comparable(cell) else NOT_COMPARABLE}"
