"""The columns of the board on the page: short names with a legend, blocks that fit, and anchors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from his2lip.evaluation import CellResult, TaskCell, metric_fields
from his2lip.report.board import Board, heading, qualifiers
from his2lip.report.table import FRACTION, Head, Scale

WIDEST = 10  # columns of one table, which fit on 1,280 px beside the names of the models
_LONGEST = 14  # letters of a name at the head of a column
CHANCE = "baseline:chance"


@dataclass(frozen=True)
class Columns:
    """The columns of a board, and what the page calls them."""

    board: Board

    @cached_property
    def cells(self) -> dict[str, CellResult]:
        """Column -> one of its grid cells, for what all of them have in common."""
        return {heading(cell): cell for cell in reversed(self.board.cells)}

    @cached_property
    def short(self) -> dict[str, str]:
        """Dataset -> its name at the head of a column."""
        return abbreviations(dict.fromkeys(cell.dataset for cell in self.board.cells))

    @property
    def legend(self) -> dict[str, str]:
        """Abbreviated name -> dataset; only those that are abbreviated."""
        return {short: name for name, short in self.short.items() if short != name}

    @property
    def datasets(self) -> list[str]:
        return list(dict.fromkeys(self.cells[column].dataset for column in self.board.columns))

    @property
    def protocols(self) -> list[str]:
        return list(dict.fromkeys(self.cells[column].protocol for column in self.board.columns))

    def blocks(self) -> list[tuple[str, list[str]]]:
        """(title, columns) of each block of the tables: the columns of a protocol, as many as fit."""
        found = []
        for protocol in self.protocols:
            own = [c for c in self.board.columns if self.cells[c].protocol == protocol]
            title = f"protocol {protocol}" if len(self.protocols) > 1 else ""
            found += [(title, own[i : i + WIDEST]) for i in range(0, len(own), WIDEST)]
        return found

    def head(self, column: str, figure: str | None = None, scale: Scale | None = None) -> Head:
        """The head of a column: its marks, its size, and the difference of `figure` that it can show."""
        cell = self.cells[column]
        notes = [qualifiers(cell)] if qualifiers(cell) else []
        notes += ["in-domain"] if column in self.board.in_domain() else []
        for size in self.board.sizes(column):
            notes += size.split(", ", 1)
        if figure is not None:
            notes += self._detectable(column, figure)
        chance = self.board.cell(CHANCE, column)
        return Head(
            self.short[cell.dataset],
            notes,
            cell.dataset,
            cell.protocol,
            column,
            scale,
            None if chance is None or figure is None else getattr(chance, figure),
        )

    def _detectable(self, column: str, figure: str) -> list[str]:
        """The smallest difference of two models that the cases of a column show."""
        found = self.board.detectable(column, figure)
        if found is None:
            return []
        if metric_fields()[figure].unit != FRACTION:
            return [f"shows {found:.2f}"]
        return ["shows no difference"] if found >= 1 else [f"shows {100 * found:.1f} points"]


def by_column(tasks: Sequence[TaskCell], task: str) -> dict[str, list[TaskCell]]:
    """The grid cells of a task by dataset."""
    cells = [cell for cell in tasks if cell.task == task]
    return {name: [c for c in cells if c.column == name] for name in dict.fromkeys(c.column for c in cells)}


def abbreviations(names: Iterable[str]) -> dict[str, str]:
    """Name -> a name of at most 14 letters that no other one has; short names are kept."""
    found: dict[str, str] = {}
    for name in names:
        short, number = _shortened(name, ""), 2
        while short in found.values():
            short, number = _shortened(name, str(number)), number + 1
        found[name] = short
    return found


def _shortened(name: str, number: str) -> str:
    if len(name) <= _LONGEST and not number:
        return name
    return f"{name[: _LONGEST - 1 - len(number)].rstrip(' -_.')}…{number}"


def anchors(names: Sequence[tuple[str, ...]], prefix: str) -> Mapping[tuple[str, ...], str]:
    """Names -> the id of their place on the page, of letters, digits and hyphens, and each once."""
    found: dict[tuple[str, ...], str] = {}
    for name in names:
        plain = re.sub(r"[^a-z0-9]+", "-", " ".join(name).lower()).strip("-")
        anchor, number = f"{prefix}-{plain}", 2
        while anchor in found.values():
            anchor, number = f"{prefix}-{plain}-{number}", number + 1
        found[name] = anchor
    return found
