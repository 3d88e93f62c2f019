"""Sweeps of alpha between a frozen model and its tuned self: what is won at home, what is lost elsewhere."""

from __future__ import annotations

import csv
import html
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from his2lip.report.board import Board

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True, kw_only=True)
class Point:
    """One blend: mean macro F1, a fraction, on training distributions and on all other datasets."""

    sweep: str
    alpha: float
    in_domain: float
    out_of_domain: float


def curve_points(board: Board) -> list[Point]:
    """The points of every sweep, by sweep and alpha; those that lack a cell are left out."""
    blends = {(c.blend, c.alpha): c.model for c in board.cells if c.blend is not None and c.alpha is not None}
    points = []
    for (sweep, alpha), model in sorted(blends.items()):
        home = [board.cell(model, column) for column in board.in_domain()]
        figures = [cell.macro_f1 for cell in home if cell is not None]
        elsewhere = board.mean(model)
        if home and len(figures) == len(home) and elsewhere is not None:
            at_home = statistics.fmean(figures)
            points.append(Point(sweep=sweep, alpha=alpha, in_domain=at_home, out_of_domain=elsewhere))
    return points


def curve_csv(points: Sequence[Point]) -> str:
    """The points as CSV, fractions in [0, 1]."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("sweep", "alpha", "in_domain_macro_f1", "out_of_domain_macro_f1"))
    writer.writerows((p.sweep, p.alpha, p.in_domain, p.out_of_domain) for p in points)
    return out.getvalue()


def curve_plot(points: Sequence[Point]) -> Figure:
    """A line a sweep, from the frozen model (alpha 0) to the tuned one (1); right and up is better."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for sweep in dict.fromkeys(p.sweep for p in points):
        mine = [p for p in points if p.sweep == sweep]
        figure.add_scatter(
            x=[100 * p.in_domain for p in mine], y=[100 * p.out_of_domain for p in mine],
            text=[f"{p.alpha:g}" for p in mine], name=html.escape(sweep),
            mode="lines+markers+text", textposition="top center",
        )  # fmt: skip
    figure.update_layout(
        xaxis_title="macro F1 on the training distribution, %", yaxis_title="macro F1 elsewhere, mean, %",
        showlegend=True, height=420, margin={"t": 20, "l": 10, "r": 10, "b": 10},
    )  # fmt: skip
    return figure
