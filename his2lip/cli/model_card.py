"""The model card that `models promote` writes: its figures come from the benchmarks of the storage."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from his2lip.errors import His2lipError

if TYPE_CHECKING:
    from his2lip.evaluation import CellResult, TaskCell
    from his2lip.serving import CardContent, CardFigures


def write_model_card(folder: Path, content: CardContent) -> str:
    """Writes README.md into the checkpoint's `folder`; its text."""
    from his2lip.serving import CARD, model_card

    text = model_card(content)
    (folder / CARD).write_text(text, encoding="utf-8")
    return text


def benchmarks_in(storage: Path) -> list[Path]:
    """The folders of the benchmarks in a storage that have a leaderboard."""
    return sorted(board.parent for board in (storage / "benchmark").glob("*/leaderboard.csv"))


def figures_of(weights: str, benchmarks: Iterable[Path]) -> CardFigures:
    """The figures of weights, by their tensor digest, in the benchmarks of these folders."""
    from his2lip.evaluation import read_results, read_tasks
    from his2lip.report import Board
    from his2lip.serving import CardFigures, MeanFigure

    cells: dict[str, CellResult] = {}
    tasks: dict[str, TaskCell] = {}
    means, unread = [], []
    for folder in dict.fromkeys(folder.resolve() for folder in benchmarks):
        try:
            board, of_tasks = Board(read_results(folder / "leaderboard.csv")), read_tasks(folder)
        except His2lipError:
            unread.append(folder.name)
            continue
        tasks |= {task.cell: task for task in of_tasks if task.weights_sha256 == weights}
        own = [cell for cell in board.cells if cell.weights_sha256 == weights and not cell.is_baseline]
        if not own:
            continue
        row = own[0].model  # the same weights may have several rows
        cells |= {cell.cell: cell for cell in own if cell.model == row}
        mean = board.mean(row)
        if mean is not None:
            count, limits = len(board.zero_shot()), board.mean_interval(row)
            means.append(
                MeanFigure(
                    benchmark=folder.name,
                    datasets=count,
                    mean=mean,
                    limits=limits,
                    roles=sorted({cell.role for cell in own if cell.model == row}),
                )
            )
    return CardFigures(cells=list(cells.values()), tasks=list(tasks.values()), means=means, unread=unread)
