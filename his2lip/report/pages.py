"""The files of a leaderboard: the page, Markdown, LaTeX, and tables as CSV."""

from __future__ import annotations

from pathlib import Path

from his2lip.errors import ConfigError, did_you_mean, first_line
from his2lip.evaluation import read_tasks, to_csv, with_differences
from his2lip.report.alpha import curve_csv, curve_points
from his2lip.report.board import Board, read_board
from his2lip.report.breakdown import breakdown_csv
from his2lip.report.calibration import calibration_csv, risk_coverage_csv
from his2lip.report.differences import differences_csv
from his2lip.report.errors import errors_page
from his2lip.report.latex import latex
from his2lip.report.markdown import markdown
from his2lip.report.page import html_page, sections
from his2lip.report.paper import against_paper_csv
from his2lip.report.prompt_order import pairs, pairs_csv
from his2lip.report.robustness import ERRORS
from his2lip.report.section import Inputs
from his2lip.report.seeds import pooled

PAGE = "index.html"


def write_pages(leaderboard: Path, out: Path, *, reference: str | None = None) -> Path:
    """Writes index.html, leaderboard.md, .tex and .csv into `out`, and further tables where they apply.

    alpha.csv has the curve of a sweep of alpha. prompt_order.csv has every pair of models on a column with
    the share of the prompt draws that keep their order. differences.csv has the difference of each figure
    from that of `reference` (default: the benchmark's). breakdown.csv has figures by organ, biomarker, stain,
    slide and case. against_paper.csv has the paper's figures beside ours. errors.html has the most confident
    errors with thumbnails. Returns the path of index.html.
    """
    board = read_board(leaderboard)
    if reference is not None:
        board = _compared_with(board, leaderboard.parent, reference)
    out.mkdir(parents=True, exist_ok=True)
    tables = {
        "alpha.csv": curve_csv(curve_points(board)),
        "prompt_order.csv": pairs_csv(pairs(board)),
        "differences.csv": differences_csv(board),
        "breakdown.csv": breakdown_csv(board),
        "against_paper.csv": against_paper_csv(Board(pooled(board.cells))),
        "calibration.csv": calibration_csv(board),
        "risk_coverage.csv": risk_coverage_csv(board),
    }
    for name, text in tables.items():
        _write_or_remove(out / name, text)
    (out / "leaderboard.csv").write_text(to_csv(board.cells), encoding="utf-8", newline="")
    # The page is last, because it links to the files beside it that are there.
    tasks = read_tasks(leaderboard.parent)
    _write_or_remove(out / ERRORS, errors_page(leaderboard.parent, tasks))
    inputs = Inputs(board, leaderboard.parent, out, tasks)
    shown, page = sections(inputs), out / PAGE
    (out / "leaderboard.md").write_text(markdown(inputs, shown), encoding="utf-8")
    (out / "leaderboard.tex").write_text(latex(inputs, shown), encoding="utf-8")
    page.write_text(html_page(inputs, shown), encoding="utf-8")
    return page


def _compared_with(board: Board, folder: Path, reference: str) -> Board:
    """The board with differences from another model, computed from the stored predictions."""
    models = dict.fromkeys(cell.model for cell in board.cells)
    if reference not in models:
        what = f"no row is called '{reference}'"
        raise ConfigError(what, where=folder, key="--baseline", fix=did_you_mean(reference, models))
    try:
        return Board(with_differences(str(folder), board.cells, reference=reference, margin=board.margin))
    except FileNotFoundError as error:
        what = f"the predictions behind the board are not here: {first_line(error)}"
        raise ConfigError(what, where=folder, fix="run his2lip benchmark again") from None


def _write_or_remove(path: Path, text: str | None) -> None:
    """Writes a table or page; without one, removes that of an earlier call."""
    if text:
        path.write_text(text, encoding="utf-8")
    else:
        path.unlink(missing_ok=True)
