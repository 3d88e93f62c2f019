"""The leaderboard as files: one HTML page that needs no network, Markdown, and CSV."""

from __future__ import annotations

import html
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from his2lip.evaluation import CellResult, Metric, metric_fields
from his2lip.report.alpha import curve_csv, curve_points
from his2lip.report.board import Board, PublishedRow, heading, published_rows, read_board
from his2lip.report.comparability import NOT_COMPARABLE
from his2lip.report.plots import draw_plots
from his2lip.templates import percent, render, trusted

GENERATED = (
    "Columns marked generated are of generated twins, which only test the benchmark. "
    "Their figures say nothing about the real datasets, and cannot be compared with published figures."
)
INTERVALS = (
    "Intervals are 95 % jackknife intervals over cases (over slides or files where cases are unknown), "
    "with Student's t. They measure what other patients would change, not other prompts or seeds."
)
UNCHANGED = "no case changes the figure"
FIRST = "macro_f1"  # models are sorted by this metric, and its table comes first
_MEAN = "zero-shot mean"
_OVERLAP = "†"  # beside figures of units that the model was trained on


@dataclass(frozen=True)
class Figure:
    """One figure of a table.

    value    None where the model was not scored or has no such figure
    shown    the value as text
    limits   its interval as text, such as 30.1-52.3
    is_best  whether it is the largest of its column
    hint     what the page shows when the pointer is over it
    """

    value: float | None
    shown: str
    limits: str = ""
    is_best: bool = False
    hint: str = ""

    @property
    def text(self) -> str:
        """The figure with its interval, on one line."""
        return f"{self.shown} ({self.limits})" if self.limits else self.shown


@dataclass(frozen=True)
class TableRow:
    """The figures of a model: one per column of the board, then its mean."""

    model: str
    is_baseline: bool
    figures: Sequence[Figure]


@dataclass(frozen=True)
class Head:
    """The head of a column: its name, and notes on it in small print below the name."""

    title: str
    notes: str


@dataclass(frozen=True)
class Table:
    """One metric of all models on all columns."""

    title: str
    heads: Sequence[Head]
    rows: Sequence[TableRow]


def write_pages(leaderboard: Path, out: Path) -> Path:
    """Writes index.html, leaderboard.md and leaderboard.csv into `out`, and alpha.csv where alpha was swept.

    Returns the path of index.html.
    """
    board = read_board(leaderboard)
    out.mkdir(parents=True, exist_ok=True)
    page = out / "index.html"
    page.write_text(html_page(board, published_rows()), encoding="utf-8")
    (out / "leaderboard.md").write_text(markdown(board), encoding="utf-8")
    curve = out / "alpha.csv"
    if points := curve_points(board):
        curve.write_text(curve_csv(points), encoding="utf-8")
    else:
        curve.unlink(missing_ok=True)  # of an earlier call
    shutil.copyfile(leaderboard, out / leaderboard.name)
    return page


def markdown(board: Board) -> str:
    """The leaderboard as Markdown, with one table per metric."""
    parts = ["# Leaderboard", ""]
    if board.generated:
        parts += [f"> {GENERATED}", ""]
    head = ["model", *board.columns, _MEAN]
    rule = _line(["---", *["---:"] * (len(head) - 1)])
    for table in tables(board):
        parts += [f"## {table.title}", "", _line(map(_plain, head)), rule]
        parts += [_line([_plain(row.model), *(f.text for f in row.figures)]) for row in table.rows]
        parts.append("")
    return "\n".join([*parts, *(f"{_plain(note)}\n" for note in _notes(board))])


def html_page(board: Board, published: Sequence[PublishedRow]) -> str:
    """The leaderboard as an HTML page, with plots and the published figures."""
    datasets = list(dict.fromkeys(row.dataset for row in published))
    pairs = {(row.model, row.dataset): row for row in published}
    return render(
        "report/leaderboard.html",
        warning=GENERATED if board.generated else "",
        tables=tables(board),
        notes=[
            f"{_domain_note(board)} Click a head to sort; "
            "hold the pointer over a figure for details and its published value.",
            *_notes(board)[1:],
        ],
        plots=[
            (title, trusted(figure.to_html(full_html=False, include_plotlyjs=i == 0)))
            for i, (title, figure) in enumerate(draw_plots(board))
        ],
        published={
            "datasets": datasets,
            "rows": [
                (model, [pairs.get((model, dataset)) for dataset in datasets])
                for model in dict.fromkeys(row.model for row in published)
            ],
        },
        not_comparable=NOT_COMPARABLE,
    )


def tables(board: Board) -> list[Table]:
    """One table per metric that at least one grid cell has; `FIRST` comes first."""
    known = [
        name
        for name in metric_fields()
        if name == FIRST or any(getattr(c, name) is not None for c in board.cells)
    ]
    return [_table(board, name) for name in sorted(known, key=lambda name: name != FIRST)]


def _table(board: Board, name: str) -> Table:
    metric = metric_fields()[name]
    title = f"{metric.title}, %" if metric.unit == "fraction" else metric.title
    cells = {model: [board.cell(model, column) for column in board.columns] for model in board.models}
    values = {
        model: [*(None if c is None else getattr(c, name) for c in own), board.mean(model, name)]
        for model, own in cells.items()
    }
    best = [
        max((v for v in column if v is not None), default=None)
        for column in zip(*values.values(), strict=True)
    ]
    rows = []
    for model, own in cells.items():
        figures = [
            Figure(
                value,
                _shown(value, metric.unit) + _mark(cell),
                _limits(cell, metric),
                value == top,
                _hint(cell, name),
            )
            for value, top, cell in zip(values[model], best, [*own, None], strict=True)
        ]
        rows.append(TableRow(model, any(c is not None and c.is_baseline for c in own), figures))
    return Table(title, [_head(column, board) for column in ("model", *board.columns, _MEAN)], rows)


def _head(name: str, board: Board) -> Head:
    title, _, marks = name.partition(" (")
    notes = [marks.rstrip(")")] if marks else []
    notes += ["in-domain"] if name in board.in_domain() else []
    return Head(title, ", ".join([*notes, *board.sizes(name)]))


def _mark(cell: CellResult | None) -> str:
    """The sign after the figures of units that the model was trained on."""
    return "" if cell is None or cell.overlap_note is None else f" {_OVERLAP}"


def _hint(cell: CellResult | None, name: str) -> str:
    """Details of a figure: n, its interval or why it has none, and the difference from the paper's figure."""
    if cell is None:
        return ""
    parts = [cell.size]
    if cell.overlap_note is not None:
        parts.append(cell.overlap_note)
    if (interval := cell.interval(name)) is not None:
        unit = metric_fields()[name].unit
        parts.append("95 % interval {} to {}".format(*(_shown(limit, unit) for limit in interval)))
    else:
        parts.append(f"no interval: {cell.no_interval or UNCHANGED}")
    if (published := cell.published(name)) is not None:
        difference = 100 * (getattr(cell, name) - published)
        parts.append(f"paper {percent(published)}, difference {difference:+.2f}")
    return "; ".join(parts)


def _limits(cell: CellResult | None, metric: Metric) -> str:
    """The interval of a figure in short: percent with one decimal, coefficients with two."""
    interval = None if cell is None else cell.interval(metric.name)
    if interval is None:
        return ""
    low, high = (f"{100 * x:.1f}" if metric.unit == "fraction" else f"{x:.2f}" for x in interval)
    return f"{low} to {high}"


def _shown(value: float | None, unit: str) -> str:
    """A fraction in percent, a coefficient with three decimals; no text for None."""
    if unit == "fraction" or value is None:
        return percent(value)
    return f"{value:.3f}"


def _notes(board: Board) -> list[str]:
    return [
        _domain_note(board),
        *_row_notes(board),
        INTERVALS,
        *_interval_notes(board),
        *_base_notes(board),
    ]


def _domain_note(board: Board) -> str:
    own = board.in_domain()
    if not own:
        return "No column is in-domain for any model."
    return f"Not in the {_MEAN}, because they are in-domain for some models: {', '.join(own)}."


def _interval_notes(board: Board) -> list[str]:
    """The columns without intervals, with the reasons."""
    reasons = {heading(cell): cell.no_interval for cell in board.cells if cell.no_interval is not None}
    return [f"{column}: no intervals, because {reason}." for column, reason in reasons.items()]


def _row_notes(board: Board) -> list[str]:
    """The rows whose units the model was trained on, and those whose prompts were cut."""
    cells = [cell for cell in board.cells if cell.overlap_note is not None]
    overlaps = [f"{_OVERLAP} {cell.model} on {heading(cell)}: {cell.overlap_note}." for cell in cells]
    cut = [f"{c.model} on {heading(c)}: {c.cut_note}." for c in board.cells if c.cut_note is not None]
    return [*overlaps, *cut]


def _base_notes(board: Board) -> list[str]:
    """Repeated pictures, and classes without a unit: for every model their F1 is 0, which lowers macro F1."""
    repeated = [f"{column}: {note}." for column, note in board.repeated().items()]
    empty = [
        f"{column}: the scored split has no unit of {', '.join(names)}, so their F1 counts as 0 in macro F1."
        for column, names in board.empty_classes().items()
    ]
    return [*repeated, *empty]


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _plain(text: str) -> str:
    """A name for a Markdown table: on one line, with bars and HTML escaped."""
    return html.escape(" ".join(text.split()).replace("|", "\\|"), quote=False)
