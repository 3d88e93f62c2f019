"""The plots of the leaderboard, made with plotly. `PLOTS` lists those on the page."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import TYPE_CHECKING

from his2lip.report import robustness
from his2lip.report.alpha import curve_plot, curve_points
from his2lip.report.board import Board
from his2lip.report.section import Inputs, Section
from his2lip.templates import trusted

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def heat_map(board: Board) -> Figure | None:
    """Macro F1 in percent of each model (rows) on each column of the board; None for an empty board."""
    import plotly.graph_objects as go

    if not board.cells:
        return None
    models = list(reversed(board.models))
    cells = [[board.cell(model, column) for column in board.columns] for model in models]
    values = [[None if cell is None else 100 * cell.macro_f1 for cell in row] for row in cells]
    figure = go.Figure(
        go.Heatmap(
            z=values, x=[_label(c) for c in board.columns], y=[_label(m) for m in models],
            zmin=0, zmax=100, colorscale="Viridis",
            texttemplate="%{z:.0f}", colorbar={"title": "macro F1, %"},
        )
    )  # fmt: skip
    figure.update_layout(height=120 + 34 * len(models), margin={"t": 20, "l": 10, "r": 10, "b": 10})
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(showgrid=False)
    return figure


def in_domain_against_zero_shot(board: Board) -> Figure | None:
    """Chance-corrected balanced accuracy of each model: first in-domain column (x), zero-shot mean (y).

    Fine-tuning moves models to the right, and the plot shows whether it also moves them up. None where no
    column is in-domain, or no model has both figures.
    """
    import plotly.graph_objects as go

    own = board.in_domain()
    if not own:
        return None
    points = []
    for model in board.models:
        cell, mean = board.cell(model, own[0]), board.mean(model)
        if cell is not None and mean is not None:
            points.append(
                (cell.chance_corrected, mean, _label(model), "#999" if cell.is_baseline else "#36c")
            )
    if not points:
        return None
    x, y, text, colours = zip(*points, strict=True)
    marker = {"size": 9, "color": colours}
    figure = go.Figure(
        go.Scatter(x=x, y=y, text=text, mode="markers+text", textposition="top center", marker=marker)
    )
    figure.update_layout(
        xaxis={"title": f"chance-corrected balanced accuracy on {own[0]}", "range": [min(x) - 0.1, 1.1]},
        yaxis={"title": "zero-shot mean", "range": [min(y) - 0.03, max(y) + 0.04]},
        height=420, margin={"t": 20, "l": 10, "r": 10, "b": 10},
    )  # fmt: skip
    return figure


def frozen_to_tuned(board: Board) -> Figure | None:
    """The curve of each sweep of alpha; None where no alpha was swept."""
    points = curve_points(board)
    return curve_plot(points) if points else None


# Title on the page -> a function that draws the board, or returns None where the board lacks the figures.
PLOTS: dict[str, Callable[[Board], Figure | None]] = {
    "Models by datasets": heat_map,
    "In-domain and zero-shot chance-corrected balanced accuracy": in_domain_against_zero_shot,
    "Blends of a frozen and a tuned model; labels are alpha": frozen_to_tuned,
}


def draw_plots(board: Board) -> list[tuple[str, Figure]]:
    """(title, figure) of each plot that can be drawn, in the order of `PLOTS`."""
    figures = [(title, draw(board)) for title, draw in PLOTS.items()]
    return [(title, figure) for title, figure in figures if figure is not None]


def fill(inputs: Inputs) -> Section | None:
    """The plots that can be drawn, as plotly's JSON; a script of the page draws them when they are reached.

    Plots have no background, so that they follow the page into dark mode.
    """
    from plotly.offline import get_plotlyjs

    clear = {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)"}
    plots = [
        (title, trusted(str(figure.update_layout(**clear).to_json()).replace("<", "\\u003c")))
        for title, figure in (*draw_plots(inputs.board), *robustness.plots(inputs.tasks))
    ]
    return Section("plots", "Plots", {"plots": plots, "plotly": trusted(get_plotlyjs())}) if plots else None


def _label(name: str) -> str:
    """A name as plotly text, in which HTML is escaped; text in parentheses is on a second line."""
    return html.escape(name).replace(" (", "<br>(", 1)
