"""Writes the results of the tests of faults into the table of docs/reliability.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import results_table

Record = Callable[[str, str, int, str], None]  # fault, how it is injected, times, outcome


class Row(NamedTuple):
    fault: str
    how: str
    times: int
    outcome: str


def update(page: Path, rows: Iterable[Row]) -> None:
    """Replaces the rows of the same faults, and adds those of new ones; the others stay."""
    start = "<!-- results: written by `make faults` -->"
    results_table.update(page, start, ("fault", "how it is injected", "times", "outcome"), rows)
