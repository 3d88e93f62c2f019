"""The section on calibration: how far probabilities can be believed, and what abstaining gives."""

from __future__ import annotations

from his2lip.evaluation import Calibrated, CellResult
from his2lip.report.board import Board
from his2lip.report.csv_text import csv_text
from his2lip.report.section import Inputs, Section
from his2lip.report.table import FRACTION, Figure, Head, Row, Table, limits, shown

_TITLES = {
    "ece": ("error, %", "debiased"),
    "brier": ("Brier score", "0 to 2"),
    "nll": ("log loss", "nats"),
    "slope": ("slope", "below 1: too confident"),
    "aurc": ("AURC, %", "mean risk over coverage"),
}
_OF_CELL = ("model", "dataset", "protocol", "generated", "n", "clusters")
_ABSTAIN = (1.0, 0.8, 0.5)  # coverages whose risk the page shows


def fill(inputs: Inputs) -> Section | None:
    """A table of each column that has calibrated models; None without any."""
    tables, reasons = [], []
    for column in inputs.board.columns:
        cell = inputs.columns.cells[column]
        known = [c for model in inputs.board.models if (c := inputs.board.cell(model, column)) is not None]
        fitted_cells = [(c, c.calibration) for c in known if c.calibration is not None]
        rows = [Row(c.model, _row(inputs, c, found)) for c, found in fitted_cells]
        reasons += [f"{column}, {c.model}: {c.no_calibration}" for c in known if c.no_calibration]
        if rows:
            fitted = {(found.fitted_on, found.fitted_n) for _, found in fitted_cells}
            on = " and ".join(f"{n:,} units of {split}" for split, n in sorted(fitted))
            heads = [Head(t, [note], cell.dataset, cell.protocol) for t, note in _TITLES.values()]
            heads += [
                Head(f"risk at {share:.0%}", ["wrong of the answered, %"], cell.dataset, cell.protocol)
                for share in _ABSTAIN
            ]
            block = f"{column}: {cell.size}; temperatures fitted to {on}"
            tables.append(Table("calibration", "Calibration", heads, rows, block))
    if not tables and not reasons:
        return None
    return Section("calibration", "Calibration", {"tables": tables, "reasons": reasons}, tables)


def _row(inputs: Inputs, cell: CellResult, found: Calibrated) -> list[Figure]:
    figures = []
    for name in _TITLES:
        figure = found.figures[name]
        text = shown(figure.value, figure.unit) if figure.value is not None else ""
        interval = limits(figure.interval, figure.unit)
        figures.append(Figure(figure.value, text, interval, href=inputs.evidence(cell)))
    for share in _ABSTAIN:
        point = min(found.curve, key=lambda p: abs(p.coverage - share))
        beside = [f"from {point.least:.2f}" if share < 1 else "all answered"]
        if f"{point.coverage:.0%}" != f"{share:.0%}":  # equal probabilities are answered together
            beside.insert(0, f"{point.coverage:.0%} answered")
        figures.append(Figure(point.risk, shown(point.risk, FRACTION), beside=tuple(beside)))
    return figures


def calibration_csv(board: Board) -> str:
    """One line per calibrated grid cell: temperature, what it was fitted to, figures; empty without any."""
    rows = [
        {name: getattr(cell, name) for name in _OF_CELL}
        | {"temperature": found.temperature, "fitted_on": found.fitted_on, "fitted_n": found.fitted_n}
        | {column: value for name, f in found.figures.items() for column, value in f.columns(name).items()}
        for cell in board.cells
        if (found := cell.calibration) is not None
    ]
    return csv_text(rows)


def risk_coverage_csv(board: Board) -> str:
    """One line per point of each risk-coverage curve: coverage, risk, and the least probability."""
    return csv_text(
        [
            {name: getattr(cell, name) for name in _OF_CELL} | point.model_dump()
            for cell in board.cells
            if cell.calibration is not None
            for point in cell.calibration.curve
        ]
    )
