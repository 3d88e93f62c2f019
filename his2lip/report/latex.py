r"""The leaderboard as LaTeX: one `table*` for each table, with the rules of booktabs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from his2lip.report.by_dataset import FIRST
from his2lip.report.notes import GENERATED, notes
from his2lip.report.section import Inputs, Section
from his2lip.report.table import Figure, Row, Table

_HEAD = r"""% The leaderboard of a benchmark. \input it into a document with \usepackage{booktabs,graphicx}.
% Below each figure is its 95 % interval; bold figures cannot be told from the best of their column.
"""
_ESCAPED = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{c: f"{{{c}}}" for c in "[*"},  # after the end of a line they would be options of it
    "†": r"\textsuperscript{\dag}",
    "‡": r"\textsuperscript{\ddag}",
    "§": r"\textsuperscript{\S}",
    "−": r"$-$",
    "–": "--",
    "µ": r"$\mu$",
    "…": r"\dots{}",
}  # fmt: skip


def latex(inputs: Inputs, sections: Sequence[Section]) -> str:
    """The mean and the leading metrics, the differences and prompts; other metrics are in leaderboard.csv."""
    known = [
        table
        for section in sections
        for table in section.tables
        if table.rows and (section.name != "datasets" or table.key in FIRST)
    ]
    remarks = [GENERATED] if inputs.generated else []
    remarks += [*notes(inputs.board), *(remark for section in sections for remark in section.remarks)]
    listed = "\n".join(rf"\par {escape(remark)}" for remark in remarks)
    return "\n".join([_HEAD, *(_table(table) for table in known), rf"{{\footnotesize{listed}\par}}", ""])


def _table(table: Table) -> str:
    heads = [rf"{{{escape(head.title)}}}" for head in table.heads]
    notes = zip_longest(*(head.notes for head in table.heads), fillvalue="")
    lines = [
        r"\begin{table*}",
        r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{escape(table.caption)}}}",
        r"\sbox0{%",
        rf"\begin{{tabular}}{{l{'r' * len(heads)}}}",
        r"\toprule",
        _line([escape(table.corner), *heads]),
        *(_line(["", *map(_small, line)]) for line in notes),
        r"\midrule",
        *(line for row in table.rows for line in _lines(row)),
        r"\bottomrule",
        r"\end{tabular}}",
        r"\ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\usebox0}\else\usebox0\fi",
        *_legend(table),
        r"\end{table*}",
    ]
    return "\n".join(lines) + "\n"


def _lines(row: Row) -> list[str]:
    """The figures of a model, and below them their intervals where one has any."""
    below = [_small(", ".join(filter(None, (f.limits, *f.beside)))) for f in row.figures]
    first = _line([escape(row.model), *(_figure(figure) for figure in row.figures)])
    return [first, _line(["", *below])] if any(below) else [first]


def _legend(table: Table) -> list[str]:
    """The full names of abbreviated columns."""
    short = {head.title: head.dataset for head in table.heads if head.dataset and head.title != head.dataset}
    text = "; ".join(f"{title}: {name}" for title, name in short.items())
    return [rf"\par\smallskip {_small(text)}"] if text else []


def _figure(figure: Figure) -> str:
    shown = escape(figure.shown)
    return (
        (rf"\textbf{{{shown}}}" if figure.is_best else shown) + escape(figure.marks) + _small(figure.groups)
    )


def _small(text: str) -> str:
    return rf"{{\scriptsize {escape(text)}}}" if text else ""


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def escape(text: str) -> str:
    """Text for LaTeX: on one line, with every sign that LaTeX reads as a command replaced."""
    return "".join(_ESCAPED.get(c, c) for c in " ".join(text.split()))
