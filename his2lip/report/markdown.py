"""The leaderboard as Markdown: the tables of the sections, then the notes."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from his2lip.report.notes import GENERATED, notes
from his2lip.report.section import Inputs, Section
from his2lip.report.table import Table


def markdown(inputs: Inputs, sections: Sequence[Section]) -> str:
    """The page as Markdown, with one table per metric and block of columns."""
    parts = ["# Leaderboard", ""]
    if inputs.generated:
        parts += [f"> {GENERATED}", ""]
    for section in sections:
        for table in section.tables:
            parts += [f"## {plain(table.caption)}", "", *_lines(table), ""]
        parts += [f"{plain(remark)}\n" for remark in section.remarks]
    return "\n".join([*parts, *(f"{plain(note)}\n" for note in notes(inputs.board))])


_MARKS = re.compile(r"[\\`*\[\]$~]|(?<![^\W_])_|_(?![^\W_])")  # what Markdown may read as a format


def _lines(table: Table) -> list[str]:
    head = [table.corner, *(head.name for head in table.heads)]
    rows = [[_name(row.model), *(plain(figure.text) for figure in row.figures)] for row in table.rows]
    return [_line(map(_name, head)), _line(["---", *["---:"] * len(table.heads)]), *map(_line, rows)]


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _name(text: str) -> str:
    """A name as it is written: what would format it is escaped."""
    return plain(_MARKS.sub(r"\\\g<0>", text))


def plain(text: str) -> str:
    """Text for a Markdown table: on one line, with bars and HTML escaped."""
    return html.escape(" ".join(text.split()).replace("|", "\\|"), quote=False)
