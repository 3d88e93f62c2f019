"""The leaderboard as pages: one HTML file that needs no network, Markdown, and CSV."""

from __future__ import annotations

import html
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from his2lip.report.alpha import curve_csv, curve_points
from his2lip.report.board import Board, PublishedRow, Row, published_rows, read_board
from his2lip.report.comparability import NOT_COMPARABLE
from his2lip.report.plots import draw_plots

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

GENERATED = (
    "Columns marked generated are of generated twins, which rehearse the benchmark. "
    "They say nothing of the real datasets, and stand beside no published figure."
)
_MEAN = "zero-shot mean"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1360px; margin: 2em auto; padding: 0 1em; color: #1a1a1a }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3em .7em; text-align: right; border-bottom: 1px solid #e3e3e3; white-space: nowrap }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff }
th { cursor: pointer; border-bottom: 2px solid #888; vertical-align: top }
th small { display: block; font-weight: 400; color: #777 } tr.baseline td { color: #777 }
td.best { font-weight: 700 } td.odd { color: #b00; text-decoration: underline dotted }
.note { color: #555; max-width: 70em }
.generated { background: #fff4d6; border-left: 4px solid #e0a800; padding: .6em 1em }
"""  # noqa: E501
# Sorts a table by the column whose head is clicked; empty cells go last.
_SORT = """
document.querySelectorAll('th').forEach(th => th.addEventListener('click', () => {
  const body = th.closest('table').tBodies[0], i = th.cellIndex, down = th.dataset.down !== '1';
  th.dataset.down = down ? '1' : '0';
  const key = row => row.cells[i].dataset.value ?? row.cells[i].textContent;
  const number = text => text === '' ? -Infinity : Number(text);
  [...body.rows].sort((a, b) => {
    const x = key(a), y = key(b);
    const order = isNaN(number(x)) ? x.localeCompare(y) : number(x) - number(y);
    return down ? -order : order;
  }).forEach(row => body.append(row));
}));
"""


def write_pages(leaderboard: Path, out: Path) -> Path:
    """Writes index.html, leaderboard.md and leaderboard.csv into `out`, alpha.csv where alpha was swept.

    Returns the HTML page's path.
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
        curve.unlink(missing_ok=True)  # an earlier call's
    shutil.copyfile(leaderboard, out / "leaderboard.csv")
    return page


def markdown(board: Board) -> str:
    """Macro F1 and accuracy, percent, a table each."""
    parts = ["# Leaderboard", ""]
    if board.generated:
        parts += [f"> {GENERATED}", ""]
    for title, figure in (("Macro F1, %", "macro_f1"), ("Accuracy, %", "accuracy")):
        head = ["model", *board.columns, _MEAN]
        parts += [f"## {title}", "", _line(map(_cell, head)), _line(["---", *["---:"] * (len(head) - 1)])]
        parts += [_line([_cell(model), *map(_percent, values)]) for model, values in _figures(board, figure)]
        parts.append("")
    return "\n".join([*parts, _cell(_domain_note(board)), ""])


def html_page(board: Board, published: Sequence[PublishedRow]) -> str:
    """The whole page; every name in it is escaped."""
    warning = f'<p class="generated">{GENERATED}</p>' if board.generated else ""
    return "\n".join(
        [
            '<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>HIS2LIP leaderboard</title>',
            f"<style>{_STYLE}</style><h1>Zero-shot leaderboard</h1>{warning}",
            "<h2>Macro F1, %</h2>" + _table(board, "macro_f1"),
            "<h2>Accuracy, %</h2>" + _table(board, "accuracy"),
            f'<p class="note">{html.escape(_domain_note(board))} '
            "Click a head to sort; "
            "hold the pointer over a figure for its n, interval and published value.</p>",
            *_drawn(draw_plots(board)),
            "<h2>The paper's Table 2: accuracy / macro F1, %</h2>" + _published_table(published),
            f'<p class="note">Marked figures: {NOT_COMPARABLE}. The paper publishes no n; compare by '
            "difference, with the <i>paper</i> protocol on the real datasets alone.</p>",
            f"<script>{_SORT}</script></html>",
        ]
    )


def _figures(board: Board, figure: str) -> Iterable[tuple[str, list[float | None]]]:
    for model in board.models:
        cells = [board.cell(model, column) for column in board.columns]
        values = [None if cell is None else float(getattr(cell, figure)) for cell in cells]
        yield model, [*values, board.mean(model, figure)]


def _table(board: Board, figure: str) -> str:
    rows = list(_figures(board, figure))
    if not rows:
        return '<p class="note">No cell was scored.</p>'
    places = range(len(rows[0][1]))
    best = [max((v for _, values in rows if (v := values[i]) is not None), default=None) for i in places]
    head = "".join(_head(name, board) for name in ("model", *board.columns, _MEAN))
    body = []
    for model, values in rows:
        hints = [*(_hint(board.cell(model, column), figure) for column in board.columns), ""]
        cells = "".join(_figure(*of) for of in zip(values, best, hints, strict=True))
        kind = ' class="baseline"' if model.startswith("baseline:") else ""
        body.append(f"<tr{kind}><td>{html.escape(model)}</td>{cells}</tr>")
    return _scrolled(head, body)


def _head(name: str, board: Board) -> str:
    """A column's head: its name, and below it in small what must not be overlooked."""
    title, _, marks = name.partition(" (")
    notes = [marks.rstrip(")")] if marks else []
    notes += ["in-domain"] if name in board.in_domain() else []
    small = f"<small>{html.escape(', '.join(notes))}</small>" if notes else ""
    return f"<th>{html.escape(title)}{small}</th>"


def _figure(value: float | None, best: float | None, hint: str) -> str:
    if value is None:
        return '<td data-value=""></td>'
    kind = " class=best" if value == best else ""
    return f'<td data-value="{value}"{kind} title="{html.escape(hint)}">{_percent(value)}</td>'


def _hint(row: Row | None, figure: str) -> str:
    """What stands behind a figure: n, its interval, and the paper's figure with the difference."""
    if row is None:
        return ""
    parts = [f"n = {row.n}"]
    if (interval := row.interval(figure)) is not None:
        parts.append("interval {} to {}".format(*map(_percent, interval)))
    if (published := row.published(figure)) is not None:
        parts.append(
            f"paper {_percent(published)}, difference {100 * (getattr(row, figure) - published):+.2f}"
        )
    return "; ".join(parts)


def _published_table(published: Sequence[PublishedRow]) -> str:
    datasets = list(dict.fromkeys(row.dataset for row in published))
    by_place = {(row.model, row.dataset): row for row in published}
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("model", *datasets))
    body = []
    for model in dict.fromkeys(row.model for row in published):
        cells = "".join(_published_cell(by_place.get((model, dataset))) for dataset in datasets)
        body.append(f"<tr><td>{html.escape(model)}</td>{cells}</tr>")
    return _scrolled(head, body)


def _published_cell(row: PublishedRow | None) -> str:
    if row is None:
        return "<td></td>"
    mark = "" if row.comparable else f' class="odd" title="{NOT_COMPARABLE}"'
    return f"<td{mark}>{_percent(row.accuracy)} / {_percent(row.macro_f1)}</td>"


def _scrolled(head: str, body: Iterable[str]) -> str:
    rows = "".join(body)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _drawn(plots: Sequence[tuple[str, Figure]]) -> Iterable[str]:
    """plotly.js stands in the page once, before the first plot."""
    for i, (title, figure) in enumerate(plots):
        yield f"<h2>{html.escape(title)}</h2>" + figure.to_html(full_html=False, include_plotlyjs=i == 0)


def _domain_note(board: Board) -> str:
    own = board.in_domain()
    if not own:
        return "No column is any model's training distribution."
    return f"Left out of the {_MEAN}, as some models' training distribution: {', '.join(own)}."


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(text: str) -> str:
    """A name as a Markdown cell: no bars, no tags, one line."""
    return html.escape(" ".join(text.split()).replace("|", "\\|"), quote=False)
