"""Plots as PNG images, which MLflow shows among the artifacts of a run: of a board, and of one model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from his2lip.evaluation import DRAWS, CellResult, TaskCell
from his2lip.report.board import Board, heading
from his2lip.report.columns import by_column
from his2lip.report.robustness import TASK, drops, kinds_of, reach

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 110
_INCHES_PER_ROW, _INCHES_PER_COLUMN = 0.34, 1.15
_MATRIX_INCHES, _MATRICES_PER_ROW = 3.4, 3
_WORDS = 18  # letters of a name beside a matrix


def draw_board(cells: Sequence[CellResult], folder: Path) -> list[Path]:
    """Draws models x datasets, differences from the reference and prompt bands, as far as there are any."""
    board = Board(cells)
    return _draw(
        board,
        folder,
        {"models_by_datasets": _heat_map, "differences": _differences, "prompt_bands": _prompt_bands},
    )


def draw_model(cells: Sequence[CellResult], model: str, folder: Path) -> list[Path]:
    """Draws the confusion matrices of a model."""
    own = Board([cell for cell in cells if cell.model == model])
    return _draw(own, folder, {"confusion": _confusion})


def draw_robustness(tasks: Sequence[TaskCell], folder: Path) -> list[Path]:
    """Draws the relative drop of macro F1 under each perturbation, one image per dataset."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("robustness_*.png"):
        old.unlink(missing_ok=True)
    written = []
    for column, cells in by_column(tasks, TASK).items():
        path = folder / f"robustness_{cells[0].scored_as.removesuffix(f'.{TASK}')}.png"
        written.append(save_figure(_curves(column, cells), path))
    return written


def _curves(column: str, cells: Sequence[TaskCell]) -> Figure:
    kinds = kinds_of(cells)
    columns = min(3, len(kinds))
    lines = -(-len(kinds) // columns)
    title = f"Relative drop of macro F1 in percent on {column}, {cells[0].rows[0].size}"
    figure = new_figure(3.2 * columns + 1.5, 2.4 * lines + 0.8, title)
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
    for place, kind in zip(axes, kinds, strict=False):
        place.set_title(kind, fontsize=9)
        place.axhline(0, color="0.7", linewidth=0.8)
        for cell in cells:
            known = drops(cell, kind)
            values = [100 * (e.value or 0.0) for _, e in known]
            reaches = [[reach(e, e.lo) or 0 for _, e in known], [reach(e, e.hi) or 0 for _, e in known]]
            place.errorbar([x for x, _ in known], values, reaches, marker="o", capsize=2)
    for place in axes[len(kinds) :]:
        place.set_axis_off()
    # Named here: matplotlib leaves a label that begins with "_" out unless it is given.
    axes[0].legend(axes[0].containers, [cell.model for cell in cells], fontsize=7)
    return figure


Drawing = Callable[[Board], "Figure | None"]


def _draw(board: Board, folder: Path, drawings: dict[str, Drawing]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, drawing in drawings.items():
        figure = drawing(board)
        path = folder / f"{name}.png"
        path.unlink(missing_ok=True)
        if figure is not None:
            written.append(save_figure(figure, path))
    return written


def save_figure(figure: Figure, path: Path) -> Path:
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a name with two dollar signs is no formula
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})
    return path


def new_figure(width: float, height: float, title: str) -> Figure:
    """An empty figure of `width` x `height` inches."""
    from matplotlib.figure import Figure as New  # not pyplot, which keeps figures and chooses a window system

    figure = New(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=10)
    return figure


def _title(what: str, board: Board) -> str:
    return f"{what} (generated twins)" if board.generated else what


def _heat_map(board: Board) -> Figure | None:
    """Macro F1 in percent of each model (rows) on each column of the board, with its interval."""
    if not board.cells:
        return None
    found = [[board.cell(model, column) for column in board.columns] for model in board.models]
    values = np.array([[math.nan if cell is None else 100 * cell.macro_f1 for cell in row] for row in found])
    size = 2.5 + _INCHES_PER_COLUMN * values.shape[1], 1.8 + 1.4 * _INCHES_PER_ROW * values.shape[0]
    figure = new_figure(*size, _title("Macro F1 in percent, with the 95 % interval if there is one", board))
    axes = figure.subplots()
    axes.imshow(values, vmin=0, vmax=100, cmap="viridis", aspect="auto")
    axes.set_xticks(
        range(len(board.columns)),
        [_base(board, c) for c in board.columns],
        rotation=40,
        ha="right",
        fontsize=7,
    )
    axes.set_yticks(range(len(board.models)), board.models, fontsize=8)
    for (row, column), value in np.ndenumerate(values):
        cell = found[row][column]
        if cell is not None:
            limits = cell.interval("macro_f1")
            text = f"{value:.1f}" + (
                "" if limits is None else "\n{:.0f} to {:.0f}".format(*(100 * x for x in limits))
            )
            axes.text(
                column,
                row,
                text,
                ha="center",
                va="center",
                fontsize=7,
                color="black" if value > 60 else "white",
            )
    return figure


def _base(board: Board, column: str) -> str:
    return "\n".join([column, *board.sizes(column)])


def _differences(board: Board) -> Figure | None:
    """The difference of every model from the reference in macro F1, in points, one panel per column."""
    if board.reference is None:
        return None
    return _panels(
        board,
        f"Macro F1: difference from {board.reference}, points, 95 % for all pairs together",
        _difference,
    )


def _difference(cell: CellResult) -> tuple[float, float, float] | None:
    found = cell.compared.get("macro_f1")
    if found is None or found.difference is None:
        return None
    return found.difference, *(found.difference_interval or (found.difference, found.difference))


def _prompt_bands(board: Board) -> Figure | None:
    """The median and the 5 to 95 % band of macro F1 over prompt draws, one panel per column."""
    return _panels(board, f"Macro F1 over {DRAWS} prompt draws, percent: median, and 5 to 95 %", _band)


def _band(cell: CellResult) -> tuple[float, float, float] | None:
    median, low, high = cell.prompt_f1_median, cell.prompt_f1_lo, cell.prompt_f1_hi
    return None if median is None or low is None or high is None else (median, low, high)


def _panels(
    board: Board, title: str, spread: Callable[[CellResult], tuple[float, float, float] | None]
) -> Figure | None:
    """One panel per column with a point and a line for every model that has a spread there."""
    spreads = {
        (heading(cell), cell.model): found for cell in board.cells if (found := spread(cell)) is not None
    }
    columns = [c for c in board.columns if any(column == c for column, _ in spreads)]
    models = [m for m in reversed(board.models) if any(model == m for _, model in spreads)]
    if not columns:
        return None
    across = min(len(columns), 4)
    down = math.ceil(len(columns) / across)
    figure = new_figure(
        2 + 2.6 * across, 1 + down * (1.0 + _INCHES_PER_ROW * len(models)), _title(title, board)
    )
    panels = figure.subplots(down, across, sharey=True, squeeze=False).ravel()
    for axes, column in zip(panels, columns, strict=False):
        axes.set_title(_base(board, column), fontsize=7)
        if spread is _difference:
            axes.axvline(0, color="#999", linewidth=0.8)
        for y, model in enumerate(models):
            if (found := spreads.get((column, model))) is not None:
                middle, low, high = (100 * x for x in found)
                axes.plot([low, high], [y, y], color="#36c", linewidth=2)
                axes.plot(middle, y, "o", color="#36c", markersize=4)
        axes.set_yticks(range(len(models)), models, fontsize=7)
        axes.tick_params(axis="x", labelsize=7)
    for axes in panels[len(columns) :]:
        axes.set_axis_off()
    return figure


def _confusion(board: Board) -> Figure | None:
    """The confusion matrix on every column: rows are the labels, their shares of the row are the colours."""
    if not board.cells:
        return None
    across = min(len(board.cells), _MATRICES_PER_ROW)
    down = math.ceil(len(board.cells) / across)
    title = _title(f"{board.cells[0].model}: units by label (row) and predicted class (column)", board)
    figure = new_figure(_MATRIX_INCHES * across, 0.4 + _MATRIX_INCHES * down, title)
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for axes, cell in zip(panels, board.cells, strict=False):
        _matrix(axes, cell)
    for axes in panels[len(board.cells) :]:
        axes.set_axis_off()
    return figure


def _matrix(axes: Axes, cell: CellResult) -> None:
    counts = np.array(cell.confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    names = [name if len(name) <= _WORDS else f"{name[: _WORDS - 1]}…" for name in cell.classes]
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=6)
    axes.set_yticks(range(len(names)), names, fontsize=6)
    axes.set_title(f"{heading(cell)}\n{cell.size}", fontsize=7)
    for (row, column), count in np.ndenumerate(counts):
        dark = shares[row, column] > 0.6
        axes.text(
            column, row, str(count), ha="center", va="center", fontsize=6, color="white" if dark else "black"
        )
