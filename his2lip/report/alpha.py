"""Sweeps of alpha between a frozen and a tuned model: their means in-domain and on the other datasets."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from his2lip.report.board import Board
from his2lip.report.csv_text import csv_text

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True, kw_only=True)
class Point:
    """Mean chance-corrected balanced accuracy of one blend, on in-domain datasets and on all others."""

    sweep: str
    alpha: float
    in_domain: float
    out_of_domain: float


def curve_points(board: Board) -> list[Point]:
    """The points of all sweeps, sorted by sweep and alpha. Blends without all grid cells are left out."""
    blends = {(c.blend, c.alpha): c.model for c in board.cells if c.blend is not None and c.alpha is not None}
    points = []
    own = [column for column in board.in_domain() if column in board.counted]
    for (sweep, alpha), model in sorted(blends.items()):
        in_domain, zero_shot = board.mean(model, columns=own), board.mean(model)
        if in_domain is not None and zero_shot is not None:
            points.append(Point(sweep=sweep, alpha=alpha, in_domain=in_domain, out_of_domain=zero_shot))
    return points


def curve_csv(points: Sequence[Point]) -> str:
    """The points as CSV; figures are 0 at chance and 1 if perfect."""
    return csv_text(
        [
            {
                "sweep": point.sweep,
                "alpha": point.alpha,
                "in_domain_chance_corrected": point.in_domain,
                "out_of_domain_chance_corrected": point.out_of_domain,
            }
            for point in points
        ]
    )


def curve_plot(points: Sequence[Point]) -> Figure:
    """One line per sweep, from the frozen model (alpha 0) to the tuned model (alpha 1)."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for sweep in dict.fromkeys(p.sweep for p in points):
        mine = [p for p in points if p.sweep == sweep]
        figure.add_scatter(
            x=[p.in_domain for p in mine], y=[p.out_of_domain for p in mine],
            text=[f"{p.alpha:g}" for p in mine], name=html.escape(sweep),
            mode="lines+markers+text", textposition="top center",
        )  # fmt: skip
    figure.update_layout(
        xaxis_title="mean chance-corrected balanced accuracy, in-domain", yaxis_title="other datasets",
        showlegend=True, height=420, margin={"t": 20, "l": 10, "r": 10, "b": 10},
    )  # fmt: skip
    return figure
