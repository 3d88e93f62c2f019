"""Plots as PNG images that need more than a board: retrieval panels, and reliability diagrams."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from his2lip.evaluation import CellResult, Estimate, TaskCell, TaskRow, reliability_points
from his2lip.report.board import heading
from his2lip.report.columns import by_column
from his2lip.report.images import new_figure, save_figure
from his2lip.report.retrieval import TASK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_RECALLS = {"recall_at_1": "#9ecae1", "recall_at_5": "#4292c6", "recall_at_10": "#084594"}
_SHIFT = 0.2  # of a recall beside the line of its model
_ACROSS = 3
_PANEL_INCHES = 3.2


def draw_retrieval(tasks: Sequence[TaskCell], folder: Path) -> list[Path]:
    """Draws recall at 1, 5 and 10 of every model, one image per dataset and one panel per setting."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{TASK}_*.png"):
        old.unlink(missing_ok=True)
    written = []
    for column, own in by_column(tasks, TASK).items():
        down = math.ceil(len(own[0].rows) / _ACROSS)
        title = (
            f"Retrieval on {column}: recall at 1, 5 and 10 (light to dark) in percent; dotted: chance at 5"
        )
        figure = new_figure(1.5 + _PANEL_INCHES * _ACROSS, 0.6 + down * (1.0 + 0.36 * len(own)), title)
        panels = figure.subplots(down, _ACROSS, squeeze=False, sharey=True).ravel()
        for number, axes in enumerate(panels):
            if number < len(own[0].rows):
                _recalls(axes, own[0].rows[number], [(cell.model, cell.rows[number]) for cell in own])
            else:
                axes.set_axis_off()
        name = own[0].scored_as.removesuffix(f".{TASK}")
        written.append(save_figure(figure, folder / f"{TASK}_{name}.png"))
    return written


def _recalls(axes: Axes, first: TaskRow, rows: Sequence[tuple[str, TaskRow]]) -> None:
    axes.set_title(
        f"{first.setting['direction']}, same {first.setting['relevance']}\n{first.size}", fontsize=7
    )
    chance = first.figures["recall_at_5_chance"].value
    if chance is not None:
        axes.axvline(100 * chance, color="0.5", linestyle=":", linewidth=1)
    models = [model for model, _ in reversed(rows)]
    for y, (_, row) in enumerate(reversed(rows)):
        for place, (name, colour) in enumerate(_RECALLS.items()):
            _point(axes, row.figures[name], y + (1 - place) * _SHIFT, colour)
    axes.set_yticks(range(len(models)), models, fontsize=7)
    axes.tick_params(axis="x", labelsize=7)
    axes.set_xlim(0, 100)


def _point(axes: Axes, found: Estimate, y: float, colour: str) -> None:
    if found.value is None:
        return
    if found.interval is not None:
        axes.plot([100 * limit for limit in found.interval], [y, y], color=colour, linewidth=2)
    axes.plot(100 * found.value, y, "o", color=colour, markersize=4)


def draw_reliability(benchmark: str, cells: Sequence[CellResult], folder: Path) -> list[Path]:
    """Draws the reliability diagrams of one model, one panel per grid cell that is calibrated.

    benchmark  folder of the benchmark, for its predictions
    """
    drawn = [(cell, points) for cell in cells if (points := reliability_points(benchmark, cell))]
    if not drawn:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    across = min(len(drawn), _ACROSS)
    down = math.ceil(len(drawn) / across)
    title = f"{drawn[0][0].model}: accuracy by confidence, with the 95 % interval where there is one"
    figure = new_figure(max(_PANEL_INCHES * across, 6), 0.5 + 3.0 * down, title)
    panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).ravel()
    for axes in panels[len(drawn) :]:
        axes.set_axis_off()
    for axes, (cell, points) in zip(panels, drawn, strict=False):
        axes.set_title(f"{heading(cell)}\n{cell.size}; {points[0].n} or so per point", fontsize=7)
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
        x, y = [p.confidence for p in points], [p.accuracy for p in points]
        for p in points:
            if p.limits is not None:
                axes.plot([p.confidence] * 2, p.limits, color="#36c", linewidth=1.5)
        axes.plot(x, y, "o", color="#36c", markersize=4)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_xticks(np.linspace(0, 1, 6))
        axes.tick_params(labelsize=7)
    return [save_figure(figure, folder / "reliability.png")]
