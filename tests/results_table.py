"""Tables of a page that test runs write: one row per first cell, replaced when it is measured again."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path


def update(page: Path, start: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Replaces the rows of the table after `start` that have the same first cell, and adds new ones.

    The other rows stay. The table ends at the comment "end of results".
    """
    end = "<!-- end of results -->"
    text = page.read_text(encoding="utf-8")
    before, table, after = re.split(f"({re.escape(start)}.*?{re.escape(end)})", text, flags=re.DOTALL)
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    known = {name: [name, *rest] for name, *rest in lines[2:]}
    for row in rows:
        cells = [str(cell) for cell in row]
        known[cells[0]] = cells
    shown = [head, ["---"] * len(head), *known.values()]
    body = "\n".join(f"| {' | '.join(cells)} |" for cells in shown)
    page.write_text(f"{before}{start}\n\n{body}\n\n{end}{after}", encoding="utf-8")
