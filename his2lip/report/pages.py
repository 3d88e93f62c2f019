"""The leaderboard as files: one HTML page that needs no network, Markdown, and CSV."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from his2lip.errors import ConfigError, did_you_mean, first_line
from his2lip.evaluation import (
    DRAWS,
    SENTENCES,
    CellResult,
    Metric,
    metric_fields,
    to_csv,
    with_differences,
)
from his2lip.report.alpha import curve_csv, curve_points
from his2lip.report.board import (
    ONE_NUMBER,
    Board,
    PublishedRow,
    heading,
    outdated,
    published_rows,
    read_board,
)
from his2lip.report.breakdown import breakdown_csv
from his2lip.report.comparability import NOT_COMPARABLE
from his2lip.report.differences import SHOWN, compared, differences_csv, is_top
from his2lip.report.plots import draw_plots
from his2lip.report.prompt_order import (
    MARK,
    MARKED,
    banded,
    columns_with_bands,
    is_marked,
    pairs,
    pairs_csv,
    unstable,
)
from his2lip.report.seeds import pooled
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
# Head of a column that follows the datasets -> note below it.
_SUMMARY = {
    "mean": "of the datasets that are zero-shot for all",
    "rank": "Borda count over the same datasets",
    "zero-shot": "share of all datasets",
}
_OVERLAP = "‡"  # beside figures of units that the model was trained on


@dataclass(frozen=True)
class Figure:
    """One figure of a table.

    value    None where the model was not scored or has no such figure
    shown    the value as text
    limits   its interval as text, such as 30.1-52.3
    is_best  whether it cannot be told from the best of its column
    hint     what the page shows when the pointer is over it
    mark     a sign beside the value, which a note explains
    """

    value: float | None
    shown: str
    limits: str = ""
    is_best: bool = False
    hint: str = ""
    mark: str = ""

    @property
    def text(self) -> str:
        """The figure with its interval, on one line."""
        shown = (f"**{self.shown}**" if self.is_best else self.shown) + self.mark
        return f"{shown} ({self.limits})" if self.limits else shown


@dataclass(frozen=True)
class TableRow:
    """The figures of a model: one per column of the table."""

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
    """One metric of all models on all columns.

    has_summary  whether the mean over the datasets, its rank and the share of zero-shot datasets follow
    """

    title: str
    heads: Sequence[Head]
    rows: Sequence[TableRow]
    has_summary: bool = False


def write_pages(leaderboard: Path, out: Path, *, reference: str | None = None) -> Path:
    """Writes index.html, leaderboard.md and leaderboard.csv into `out`, and further tables where they apply.

    alpha.csv has the curve of a sweep of alpha. prompt_order.csv has every pair of models on a column with
    the share of the prompt draws that keep their order. differences.csv has the difference of each figure
    from that of `reference` (default: the benchmark's). breakdown.csv has figures by biomarker, stain, slide
    and case. Returns the path of index.html.
    """
    board = read_board(leaderboard)
    if reference is not None:
        board = _compared_with(board, leaderboard.parent, reference)
    out.mkdir(parents=True, exist_ok=True)
    page, shown = out / "index.html", Board(pooled(board.cells))
    page.write_text(html_page(shown, published_rows()), encoding="utf-8")
    (out / "leaderboard.md").write_text(markdown(shown), encoding="utf-8")
    points, compared = curve_points(board), pairs(board)
    _write_or_remove(out / "alpha.csv", curve_csv(points) if points else None)
    _write_or_remove(out / "prompt_order.csv", pairs_csv(compared) if compared else None)
    _write_or_remove(out / "differences.csv", differences_csv(board) or None)
    _write_or_remove(out / "breakdown.csv", breakdown_csv(board) or None)
    (out / "leaderboard.csv").write_text(to_csv(board.cells), encoding="utf-8", newline="")
    return page


def _compared_with(board: Board, folder: Path, reference: str) -> Board:
    """The board with differences from another model, computed from the stored predictions."""
    models = dict.fromkeys(cell.model for cell in board.cells)
    if reference not in models:
        what = f"no row is called '{reference}'"
        raise ConfigError(what, where=folder, key="--baseline", fix=did_you_mean(reference, models))
    margin = next((cell.margin for cell in board.cells), None)
    try:
        return Board(with_differences(str(folder), board.cells, reference=reference, margin=margin))
    except FileNotFoundError as error:
        what = f"the predictions behind the board are not here: {first_line(error)}"
        raise ConfigError(what, where=folder, fix="run his2lip benchmark again") from None


def _write_or_remove(path: Path, text: str | None) -> None:
    """Writes a table; without one, removes that of an earlier call."""
    if text is None:
        path.unlink(missing_ok=True)
    else:
        path.write_text(text, encoding="utf-8")


def markdown(board: Board) -> str:
    """The leaderboard as Markdown, with one table per metric."""
    parts = ["# Leaderboard", ""]
    if board.generated:
        parts += [f"> {GENERATED}", ""]
    for table in tables(board):
        head = ["model", *board.columns, *(_SUMMARY if table.has_summary else ())]
        rule = _line(["---", *["---:"] * (len(head) - 1)])
        parts += [f"## {table.title}", "", _line(map(_plain, head)), rule]
        parts += [_line([_plain(row.model), *(f.text for f in row.figures)]) for row in table.rows]
        parts.append("")
    if bands := prompt_table(board):
        parts += [f"## {bands.title}", "", _line(_plain(head.title) for head in bands.heads)]
        parts.append(_line(["---", *["---:"] * (len(bands.heads) - 1)]))
        parts += [_line([_plain(row.model), *(f.shown for f in row.figures)]) for row in bands.rows]
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
        prompts=prompt_table(board),
        unstable=unstable_pairs(board),
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
    """The table of the mean, that of macro F1, differences, the other metrics, and the tissue seen."""
    metrics = metric_fields()
    first = (ONE_NUMBER, "macro_f1")
    known = [name for name in metrics if any(getattr(c, name) is not None for c in board.cells)]
    shown = {name: _table(board, name, metrics[name].title, metrics[name].unit) for name in (*first, *known)}
    others = [table for name, table in shown.items() if name not in first]
    seen = _table(board, "coverage", "Tissue seen", "fraction")
    return [*(shown[name] for name in first), *_difference_tables(board), *others, seen]


def _difference_tables(board: Board) -> Iterator[Table]:
    """The differences of the models from the reference; none where the benchmark has no reference."""
    if board.reference is None:
        return
    for name in SHOWN:
        metric = metric_fields()[name]
        rows = [
            TableRow(
                model,
                model.startswith("baseline:"),
                [_difference(board.cell(model, column), metric) for column in board.columns],
            )
            for model in board.models
            if model != board.reference
        ]
        rows = [row for row in rows if any(figure.value is not None for figure in row.figures)]
        title = f"{metric.title}: difference from {board.reference}"
        heads = [_head(column, board, name) for column in ("model", *board.columns)]
        yield Table(f"{title}, points" if metric.unit == "fraction" else title, heads, rows)


def _difference(cell: CellResult | None, metric: Metric) -> Figure:
    """A difference from the reference, with its interval and whether it is no loss."""
    found = compared(cell, metric.name)
    if cell is None or found is None or found.difference is None:
        return Figure(None, "")
    limits = None
    if found.difference_lo is not None and found.difference_hi is not None:
        limits = _short((found.difference_lo, found.difference_hi), metric.unit)
    parts = [limits or "", "no loss" if found.non_inferior else ""]
    shown = f"{100 * found.difference:+.2f}" if metric.unit == "fraction" else f"{found.difference:+.3f}"
    return Figure(found.difference, shown, ", ".join(filter(None, parts)), hint=cell.size)


def _table(board: Board, name: str, title: str, unit: str) -> Table:
    """The field `name` of all grid cells."""
    title = f"{title}, %" if unit == "fraction" else title
    cells = {model: [board.cell(model, column) for column in board.columns] for model in board.models}
    values = {model: [None if c is None else getattr(c, name) for c in own] for model, own in cells.items()}
    rows = []
    for model, own in cells.items():
        figures = [
            Figure(
                value,
                _shown(value, unit),
                _limits(cell, name, unit),
                is_top(cell, name),
                _hint(cell, name),
                _marks(cell, name),
            )
            for value, cell in zip(values[model], own, strict=True)
        ]
        rows.append(TableRow(model, any(c is not None and c.is_baseline for c in own), figures))
    heads = [_head(column, board, name) for column in ("model", *board.columns)]
    if name != ONE_NUMBER:
        return Table(title, heads, rows)
    rows = [replace(row, figures=[*row.figures, *_summary(board, row.model)]) for row in rows]
    heads += [Head(*pair) for pair in _SUMMARY.items()]
    return Table(title, heads, rows, has_summary=True)


def _summary(board: Board, model: str) -> Iterator[Figure]:
    """The mean of a model over the datasets, its rank by Borda count, and its share of zero-shot datasets."""
    mean, rank, share = board.mean(model), board.borda().get(model), board.zero_shot_share(model)
    limits = _short(board.mean_interval(model), "coefficient")
    yield Figure(mean, _shown(mean, "coefficient"), limits)
    yield Figure(rank, "" if rank is None else str(rank))
    yield Figure(share, f"{100 * share:.0f} %")


def prompt_table(board: Board) -> Table | None:
    """Macro F1 over the prompt draws of each model and column: median, and 5 to 95 % in parentheses."""
    columns = columns_with_bands(board)
    rows = []
    for model in banded(board):
        cells = [board.cell(model, column) for column in columns]
        medians = [None if c is None else c.prompt_f1_median for c in cells]
        figures = [Figure(m, _band(c), hint=_pools(c)) for m, c in zip(medians, cells, strict=True)]
        rows.append(TableRow(model, is_baseline=False, figures=figures))
    title = f"Macro F1 over {DRAWS} draws of {SENTENCES} prompts per class: median (5 to 95 %), %"
    return Table(title, [_head(column, board) for column in ("model", *columns)], rows) if rows else None


def unstable_pairs(board: Board) -> list[tuple[str, list[str]]]:
    """Column -> the pairs of models whose order depends on the prompts, one sentence each."""
    found: dict[str, list[str]] = {}
    for pair in pairs(board):
        if pair.depends_on_prompts:
            text = (
                f"{pair.first} above {pair.second} by {100 * pair.difference:.2f} points, "
                f"in {100 * pair.share:.1f} % of the prompt draws"
            )
            found.setdefault(pair.column, []).append(text)
    return list(found.items())


def _band(cell: CellResult | None) -> str:
    if cell is None or cell.prompt_f1_median is None:
        return ""
    low, high = percent(cell.prompt_f1_lo), percent(cell.prompt_f1_hi)
    return f"{percent(cell.prompt_f1_median)} ({low} to {high})"


def _pools(cell: CellResult | None) -> str:
    """The number of sentences, and macro F1 under each further pool of prompts."""
    if cell is None:
        return ""
    parts = [f"{cell.prompt_pool} sentences or more per class"]
    for name, pool in cell.prompt_pools.items():
        known = f", draws {percent(pool.lo)} to {percent(pool.hi)}" if pool.median is not None else ""
        parts.append(f"pool {name}: {percent(pool.macro_f1)}{known}")
    return "; ".join(parts)


def _prompt_notes(board: Board) -> list[str]:
    """What the mark means, where a figure has it, and the further pools."""
    marked = [pair for pair in pairs(board) if pair.depends_on_prompts]
    names = sorted({name for cell in board.cells for name in cell.prompt_pools})
    notes = []
    if names:
        notes.append(f"Models are compared under the protocol's own prompts and under: {', '.join(names)}.")
    if marked:
        notes.append(
            f"{MARK} {MARKED}: with another model, fewer than 95 % of {DRAWS} seeded draws of {SENTENCES} "
            f"sentences per class keep the order of macro F1 ({len(marked)} of {len(pairs(board))} pairs; "
            "prompt_order.csv has all)."
        )
    return notes


def _head(name: str, board: Board, figure: str | None = None) -> Head:
    """The head of a column: its marks, its size, and the difference of `figure` that it can show."""
    title, _, marks = name.partition(" (")
    notes = [marks.rstrip(")")] if marks else []
    notes += ["in-domain"] if name in board.in_domain() else []
    notes += board.sizes(name)
    detectable = None if figure is None else board.detectable(name, figure)
    if figure is not None and detectable is not None:
        is_fraction = metric_fields()[figure].unit == "fraction"
        if is_fraction and detectable >= 1:
            notes.append("shows no difference")
        else:
            notes.append(f"shows {100 * detectable:.1f} points" if is_fraction else f"shows {detectable:.2f}")
    return Head(title, ", ".join(notes))


def _marks(cell: CellResult | None, name: str) -> str:
    """The signs beside a figure: its order depends on the prompts, and units were trained on."""
    overlap = cell is not None and cell.overlap_note is not None
    return (MARK if is_marked(cell, name) else "") + (_OVERLAP if overlap else "")


def _hint(cell: CellResult | None, name: str) -> str:
    """Details of a figure: n, its interval or why it has none, the paper's figure, and what was seen."""
    if cell is None:
        return ""
    parts = [cell.size]
    if cell.overlap_note is not None:
        parts.append(cell.overlap_note)
    if (interval := cell.interval(name)) is not None:
        unit = metric_fields()[name].unit
        parts.append("95 % interval {} to {}".format(*(_shown(limit, unit) for limit in interval)))
    elif name in metric_fields():
        parts.append(f"no interval: {cell.no_interval or UNCHANGED}")
    if (published := cell.published(name)) is not None:
        difference = 100 * (getattr(cell, name) - published)
        parts.append(f"paper {percent(published)}, difference {difference:+.2f}")
    if cell.caveat is not None:
        parts.append(cell.caveat)
    if is_marked(cell, name):
        others = ", ".join(f"{model} ({100 * share:.0f} % of the draws)" for model, share in unstable(cell))
        parts.append(f"{MARKED}, with {others}")
    if cell.coverage is not None:
        parts.append(f"tissue seen {percent(cell.coverage)} %")
    return "; ".join([*parts, *([cell.seen_note] if cell.seen_note else [])])


def _limits(cell: CellResult | None, name: str, unit: str) -> str:
    return "" if cell is None else _short(cell.interval(name), unit)


def _short(interval: tuple[float, float] | None, unit: str) -> str:
    """An interval in short: percent with one decimal, coefficients with two."""
    if interval is None:
        return ""
    low, high = (f"{100 * limit:.1f}" if unit == "fraction" else f"{limit:.2f}" for limit in interval)
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
        *_difference_notes(board),
        *_interval_notes(board),
        *_base_notes(board),
        *_prompt_notes(board),
        *_seen_notes(board),
        *_version_notes(board),
        *_caveat_notes(board),
    ]


def _caveat_notes(board: Board) -> list[str]:
    """What to know before the figures of some rows are compared, each once."""
    rows: dict[str, dict[str, None]] = {}
    for cell in board.cells:
        if cell.caveat is not None:
            rows.setdefault(cell.caveat, {})[cell.model] = None
    return [f"{', '.join(models)}: {caveat}." for caveat, models in rows.items()]


def _difference_notes(board: Board) -> list[str]:
    """What bold figures, differences and the sizes of detectable differences mean."""
    if not any(cell.compared for cell in board.cells):
        return []
    notes = [
        "Bold figures cannot be told from the best of their column, with 95 % confidence for all pairs of "
        "models together (sign flips over cases); expectations such as chance are left out. The head of a "
        "column names the smallest difference of two models that its cases show with a probability of 80 %."
    ]
    margin = next((cell.margin for cell in board.cells if cell.margin is not None), None)
    if board.reference is not None and margin is not None:
        notes.append(
            f"No loss: the lower limit of the difference from {board.reference} is above "
            f"{-100 * margin:g} points."
        )
    return notes


def _domain_note(board: Board) -> str:
    own = board.in_domain()
    if not own:
        return "No column is in-domain for any model."
    return f"Not in the mean and the rank, because they are in-domain for some models: {', '.join(own)}."


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


def _seen_notes(board: Board) -> list[str]:
    """What limits the tissue that models saw of a column, or the scale at which they saw it."""
    found: dict[tuple[str, str], list[str]] = {}
    for cell in board.cells:
        if cell.seen_note:
            found.setdefault((heading(cell), cell.seen_note), []).append(cell.model)
    return [f"{column}: {note} ({', '.join(models)})." for (column, note), models in found.items()]


def _version_notes(board: Board) -> list[str]:
    """Columns of an older version of a protocol, and what has changed since."""
    found = {heading(cell): outdated(cell) for cell in board.cells}
    return [
        f"{column}: the protocol has changed since; run the benchmark again to score it by the current "
        f"version. {changes}"
        for column, changes in found.items()
        if changes is not None
    ]


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _plain(text: str) -> str:
    """A name for a Markdown table: on one line, with bars and HTML escaped."""
    return html.escape(" ".join(text.split()).replace("|", "\\|"), quote=False)
