"""The section of one number for each model: its mean over the datasets, rank, and share of zero-shot ones."""

from __future__ import annotations

from collections.abc import Iterator

from his2lip.evaluation import definition
from his2lip.report.board import ONE_NUMBER, Board
from his2lip.report.columns import CHANCE
from his2lip.report.section import Inputs, Section
from his2lip.report.table import Figure, Head, Row, Scale, Table, limits, shown

TITLE = "One number across datasets"
_UNIT = "coefficient"


def fill(inputs: Inputs) -> Section:
    """The models with their means, and the definition of each baseline on the board."""
    board = inputs.board
    what = ("chance-corrected balanced accuracy, 0 at chance, 1 if perfect",)
    rows = [Row(m, list(_figures(board, m))) for m in board.models]
    scale = Scale.of((row.figures[0] for row in rows), _UNIT)
    heads = [
        Head("mean", what, scale=scale, chance=board.mean(CHANCE)),
        Head("rank", ("Borda count",)),
        Head("zero-shot", ("share of its datasets",)),
    ]
    table = Table("summary", TITLE, heads, rows)
    known = {model: definition(model) for model in board.models}
    values = {
        "table": table,
        "counted": board.zero_shot(),
        "in_domain": board.in_domain(),
        "unknown": [c for c in board.zero_shot() if inputs.columns.cells[c].no_interval is not None],
        "further": [c for c in board.columns if c not in board.counted],
        "other": [c for c in board.counted if c not in (*board.zero_shot(), *board.in_domain())],
        "baselines": {model: text for model, text in known.items() if text is not None},
    }
    return Section("summary", TITLE, values, [table] if table.rows else [])


def _figures(board: Board, model: str) -> Iterator[Figure]:
    """The mean of a model over the datasets, its rank by Borda count, and its share of zero-shot datasets."""
    mean, rank, share = board.mean(model), board.borda().get(model), board.zero_shot_share(model)
    interval = board.mean_interval(model)
    yield Figure(mean, shown(mean, _UNIT), limits(interval, _UNIT), interval, href=f"#figure-{ONE_NUMBER}")
    yield Figure(rank, "" if rank is None else str(rank), href=f"#figure-{ONE_NUMBER}")
    yield Figure(share, f"{100 * share:.0f} %")
