"""The champion of a benchmark: the model that is best on `select` splits, never on `report` splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from his2lip.errors import ConfigError, did_you_mean
from his2lip.evaluation import (
    CellResult,
    Frame,
    all_right_interval,
    joined_interval,
    read_tasks,
    stored_predictions,
)
from his2lip.report.board import ONE_NUMBER, Board, heading, read_board
from his2lip.report.notes import UNCHANGED

BY_MEAN = "mean"  # chooses by the board's mean over datasets


@dataclass(frozen=True, kw_only=True)
class Champion:
    """The best model of a board.

    path     what loads it; None for a point between two models, and on a merged board
    weights  tensor digest of the weights that were scored
    value    its mean of chance-corrected balanced accuracy, or that of one column
    limits   of the 95 % interval of `value`; None where there is none
    models   number of models that it is the best of
    least    the lower limit of `value` where the intervals of all these models hold together at 95 %
    columns  the columns that `value` is over
    next     the model with the next lower value, and that value; None for a board of one model
    borda    the models that the Borda count ranks above it, where `value` is the mean
    unknown  why there are no `limits`; None where there are
    above    the best of the other models whose own `least` is above 0, which is chance; None without one
    seen     what of its columns the model was trained on, one sentence for each
    perfect  the columns where every unit is right, with their n; their part of `limits` is exact
    """

    model: str
    path: str | None
    weights: str
    value: float
    limits: tuple[float, float] | None
    models: int
    least: float | None
    columns: Sequence[str]
    next: tuple[str, float] | None
    borda: Sequence[str] = ()
    unknown: str | None = None
    above: str | None = None
    seen: Sequence[str] = ()
    perfect: Sequence[str] = ()

    def __str__(self) -> str:
        interval = "no interval" if self.limits is None else "{:.3f} to {:.3f}".format(*self.limits)
        base = self.columns[0] if len(self.columns) == 1 else f"{len(self.columns)} select splits"
        text = f"{self.model}, chance-corrected balanced accuracy {self.value:.3f} ({interval}) on {base}"
        if self.perfect and self.limits is not None:
            text += f"; every unit is right on {', '.join(self.perfect)}: the exact binomial limit over these"
        text += "" if self.next is None else f"; next {self.next[0]}, {self.next[1]:.3f}"
        text += f"; the Borda count prefers {', '.join(self.borda)}" if self.borda else ""
        return "; ".join([text, *self.seen])

    @property
    def is_above_chance(self) -> bool:
        """Whether its value is surely above 0, as the best of these models."""
        return self.least is not None and self.least > 0

    def check_above_chance(self, folder: Path) -> None:
        """Raises ConfigError where this champion of the benchmark in `folder` may be as good as chance.

        That is: `least` is 0 or below it, or its value has no interval. Of 20 models at chance, the best
        one's own interval is above 0 in every third benchmark, so it proves nothing.
        """
        if self.is_above_chance:
            return
        what = f"the best model is not surely above chance: {self}"
        if self.models > 1 and self.least is not None:
            what += f"; as the best of {self.models} models, its lower limit is {self.least:.3f}"
        fix = "score more cases or better models"
        if self.limits is None:
            fix = "score the datasets with intervals under another name, or choose by a column of one (--by)"
        if self.unknown is not None:
            what += f"; {self.unknown}"
        if self.above is not None:
            what += f"; {self.above} is above chance"
            fix += f", or promote {self.above} by its name"
        fix += "; --force promotes the best nevertheless"
        raise ConfigError(what, where=folder, key="--best", fix=fix)


def choose_champion(folder: Path, *, by: str = BY_MEAN) -> Champion:
    """The best model of the benchmark in `folder` that is no baseline; of equal ones, the first on the board.

    by  "mean", the board's mean of chance-corrected balanced accuracy over datasets that no model was trained
        on, or the heading of a column, by the same figure
    Raises ConfigError where there is no board, where a row was scored on a split whose role is not `select`,
    for an unknown `by`, and where no model has that figure.
    """
    if not (folder / "leaderboard.csv").is_file():
        fix = "give the folder of a benchmark, STORAGE/benchmark/NAME"
        raise ConfigError("there is no benchmark here", where=folder, key="--best", fix=fix)
    board = read_board(folder / "leaderboard.csv")
    scored = [(cell.dataset, cell.role, cell.split) for cell in board.cells]
    scored += [(task.dataset, task.role, task.split) for task in read_tasks(folder)]
    peeked = next(((dataset, role, split) for dataset, role, split in scored if role != "select"), None)
    if peeked is not None:
        dataset, role, split = peeked
        what = f"{dataset} was scored on its {role} split '{split}', which chooses no model"
        fix = "run the benchmark with role=select and another name"
        raise ConfigError(what, where=folder, key="--best", fix=fix)
    columns = board.zero_shot() if by == BY_MEAN else [by]
    if by != BY_MEAN and by not in board.columns:
        what = f"the board has no column '{by}'"
        raise ConfigError(what, where=folder, key="--by", fix=did_you_mean(by, [BY_MEAN, *board.columns]))
    models = dict.fromkeys(cell.model for cell in board.cells if not cell.is_baseline)
    values = ((board.mean(name, columns=columns), name) for name in models)
    ranked = sorted(((v, name) for v, name in values if v is not None), key=lambda pair: -pair[0])
    if not ranked:
        what = f"no model has a value for '{by}'"
        other = f"choose by one column, such as --by '{board.columns[0]}'" if board.columns else None
        raise ConfigError(what, where=folder, key="--by", fix=other)
    names = [name for _, name in ranked]
    together = {name: _limits(folder, board, name, columns, models=len(names)) for name in names}
    above = (name for name in names[1:] if (own := together[name]) is not None and own[0] > 0)
    value, model = ranked[0]
    limits = _limits(folder, board, model, columns) if by == BY_MEAN else _interval(folder, board, model, by)
    all_limits = together[model]
    cell = board.cell(model, columns[0])
    assert cell is not None
    return Champion(
        model=model,
        path=Frame.read(str(folder)).source_of(model),
        weights=cell.weights_sha256,
        value=value,
        limits=limits,
        models=len(names),
        least=None if all_limits is None else all_limits[0],
        columns=columns,
        next=None if len(ranked) < 2 else (ranked[1][1], ranked[1][0]),
        borda=[other for first, other in board.disagreements() if first == model] if by == BY_MEAN else (),
        unknown=None if limits is not None else _unknown(folder, board, model, columns),
        above=next(above, None),
        seen=[text for column in columns if (text := _seen(board.cell(model, column))) is not None],
        perfect=[
            f"{column} ({there.size})"
            for column in columns
            if (there := board.cell(model, column)) is not None and _is_perfect(there)
        ],
    )


def _limits(
    folder: Path, board: Board, model: str, columns: Sequence[str], *, models: int = 1
) -> tuple[float, float] | None:
    """`Board.mean_interval`, also where all units of a column are right."""
    if not any(_is_perfect(board.cell(model, column)) for column in columns):
        return board.mean_interval(model, columns=columns, models=models)
    found = [_interval(folder, board, model, column, models=models) for column in columns]
    known = [limits for limits in found if limits is not None]
    values = [getattr(board.cell(model, column), ONE_NUMBER) for column in columns]
    return joined_interval(values, known) if len(known) == len(columns) else None


def _interval(
    folder: Path, board: Board, model: str, column: str, *, models: int = 1
) -> tuple[float, float] | None:
    """The limits of one column; where all units are right, exact ones from the predictions in `folder`."""
    cell = board.cell(model, column)
    if cell is None:
        return None
    if not _is_perfect(cell):
        own = cell.interval(ONE_NUMBER)
        return own if models == 1 else board.mean_interval(model, columns=[column], models=models)
    try:
        return all_right_interval(*stored_predictions(str(folder), cell), models=models)
    except FileNotFoundError:
        return None


def _is_perfect(cell: CellResult | None) -> bool:
    """Whether a model has no interval because no case changes the figure: all its units are right."""
    if cell is None or cell.is_probe or cell.no_interval is not None:
        return False
    return cell.accuracy == 1 and cell.interval(ONE_NUMBER) is None


def _seen(cell: CellResult | None) -> str | None:
    """What of a column the model was trained on; None for a zero-shot column."""
    if cell is None or not cell.in_domain:
        return None
    return f"{heading(cell)} is {cell.overlap_note or 'in-domain'}"


def _unknown(folder: Path, board: Board, model: str, columns: Sequence[str]) -> str:
    """Which columns of a model have no interval, and why the first of them has none."""
    without = [column for column in columns if _interval(folder, board, model, column) is None]
    first = board.cell(model, without[0])
    reason = UNCHANGED if first is None else first.no_interval or UNCHANGED
    if _is_perfect(first):
        reason = "every unit is right, and the predictions that tell its cases apart are not in this folder"
    return f"no interval on {', '.join(without)}: {reason}"
