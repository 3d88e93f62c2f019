"""Writes the results of the tests of faults into the table of docs/reliability.md."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

START, END = "<!-- results: written by `make faults` -->", "<!-- end of results -->"
_HEAD = ("fault", "how it is injected", "times", "outcome")


Record = Callable[[str, str, int, str], None]  # fault, how it is injected, times, outcome


class Row(NamedTuple):
    fault: str
    how: str
    times: int
    outcome: str


def update(page: Path, rows: Iterable[Row]) -> None:
    """Replaces the rows of the same faults, and adds those of new ones; the others stay."""
    text = page.read_text(encoding="utf-8")
    before, table, after = re.split(f"({re.escape(START)}.*?{re.escape(END)})", text, flags=re.DOTALL)
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    known = {fault: [fault, *rest] for fault, *rest in lines[2:]}
    known |= {row.fault: [str(part) for part in row] for row in rows}
    shown = [_HEAD, ["---"] * len(_HEAD), *known.values()]
    body = "\n".join(f"| {' | '.join(cells)} |" for cells in shown)
    page.write_text(f"{before}{START}\n\n{body}\n\n{END}{after}", encoding="utf-8")
