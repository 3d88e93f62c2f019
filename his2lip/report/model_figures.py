"""The figures of one model on all datasets, as a table of models shows them: few and rounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from his2lip.evaluation import CellResult
from his2lip.report.board import Board, heading

DECIMALS = 4  # of figures in a table of models; leaderboard.csv has the exact values
MEAN = "mean_chance_corrected"  # the figure that ranks the models
_SHARE = "zero_shot_share"
_F1 = "macro_f1"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One model of a board.

    weights  tensor digest of the model, or the baseline and its version
    figures  name -> rounded figure: the mean over datasets, and DATASET/macro_f1 with its n and limits
    bases    name -> what a figure rests on, in words: interval, n and clusters
    note     the same as a Markdown table
    """

    model: str
    weights: str
    is_baseline: bool
    figures: Mapping[str, float]
    bases: Mapping[str, str]
    note: str


def summaries(cells: Sequence[CellResult]) -> list[Summary]:
    """One summary per model, those with the highest mean first, then the baselines."""
    board = Board(cells)
    return [_summary(board, model) for model in board.models]


def table_columns(cells: Sequence[CellResult]) -> list[str]:
    """The names of figures and bases in the order in which a table of models shows them."""
    columns = [MEAN, _base_of(MEAN), _SHARE]
    for named in dict.fromkeys(cell.scored_as for cell in cells):
        columns += [f"{named}/{_F1}", _base_of(f"{named}/{_F1}")]
    return columns


def _summary(board: Board, model: str) -> Summary:
    own = [cell for cell in board.cells if cell.model == model]
    figures: dict[str, float | None] = {
        MEAN: board.mean(model),
        _SHARE: board.zero_shot_share(model),
    }
    limits = board.mean_interval(model)
    figures |= _limits(MEAN, limits)
    counted = board.zero_shot()
    scored = sum(heading(cell) in counted for cell in own)
    lacks = f"{scored} of " if scored < len(counted) else ""
    bases = {_base_of(MEAN): f"{_interval(limits)}; {lacks}{len(counted)} dataset{'s' * (len(counted) != 1)}"}
    lines = [f"| mean | {_shown(figures[MEAN])} | {bases[_base_of(MEAN)]} |"]
    for cell in own:
        name = f"{cell.scored_as}/{_F1}"
        limits = cell.interval(_F1)
        figures |= {name: cell.macro_f1, **_limits(name, limits)}
        figures |= {f"{cell.scored_as}/n": cell.n, f"{cell.scored_as}/clusters": cell.clusters}
        bases[_base_of(name)] = "; ".join([_interval(limits), cell.size, *_marks(cell)])
        lines.append(f"| {heading(cell)} | {_shown(cell.macro_f1)} | {bases[_base_of(name)]} |")
    head = "| dataset | macro F1 (mean: chance-corrected) | 95 % interval, base |\n|---|---|---|\n"
    return Summary(
        model=model,
        weights=own[0].weights_sha256,
        is_baseline=own[0].is_baseline,
        figures={name: round(value, DECIMALS) for name, value in figures.items() if value is not None},
        bases=bases,
        note=head + "\n".join(lines),
    )


def _base_of(name: str) -> str:
    return f"{name}/interval"


def _limits(name: str, limits: tuple[float, float] | None) -> dict[str, float]:
    return {} if limits is None else {f"{name}_lo": limits[0], f"{name}_hi": limits[1]}


def _interval(limits: tuple[float, float] | None) -> str:
    return "no interval" if limits is None else f"{limits[0]:.{DECIMALS}f} to {limits[1]:.{DECIMALS}f}"


def _marks(cell: CellResult) -> list[str]:
    """What to know before a figure is compared with those of other models."""
    marks = ["in-domain"] if cell.in_domain else []
    return marks + (["order depends on prompts"] if cell.order_depends_on_prompts else [])


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.{DECIMALS}f}"
