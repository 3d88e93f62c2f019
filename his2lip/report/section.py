"""A section of the leaderboard page, and what sections are filled from."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from his2lip.evaluation import CellResult, TaskCell
from his2lip.report.board import Board, heading
from his2lip.report.columns import Columns, anchors
from his2lip.report.seeds import pooled
from his2lip.report.table import Table


@dataclass(frozen=True)
class Inputs:
    """What a section may show.

    every   the board with a row for each training
    folder  of the benchmark: it has the predictions of each grid cell; None where only the board is known
    out     where the page is written, so that links can be relative to it
    tasks   the grid cells of tasks beside zero-shot classification
    """

    every: Board
    folder: Path | None = None
    out: Path | None = None
    tasks: Sequence[TaskCell] = ()

    @cached_property
    def board(self) -> Board:
        """The board with one row for all trainings of a model that differ only in their seed."""
        return Board(pooled(self.every.cells))

    @property
    def generated(self) -> bool:
        """Whether any figure is of a generated twin."""
        return self.board.generated or any(cell.generated for cell in self.tasks)

    @cached_property
    def columns(self) -> Columns:
        return Columns(self.board)

    @cached_property
    def models_scored(self) -> frozenset[str]:
        """The models that have predictions; a mean of several trainings has none of its own."""
        return frozenset(cell.model for cell in self.every.cells)

    @cached_property
    def cell_ids(self) -> Mapping[tuple[str, ...], str]:
        """(model, column) -> the id of its evidence on the page."""
        cells = {(c.model, heading(c)): None for c in (*self.board.cells, *self.every.cells)}
        return anchors(list(cells), "cell")

    @cached_property
    def column_ids(self) -> Mapping[tuple[str, ...], str]:
        """(column,) -> the id of its evidence on the page."""
        return anchors([(column,) for column in self.board.columns], "column")

    def evidence(self, cell: CellResult | None) -> str:
        """The address of a grid cell's evidence; empty without one."""
        return "" if cell is None else f"#{self.cell_ids[cell.model, heading(cell)]}"

    def is_written(self, name: str) -> bool:
        """Whether a file is beside the page."""
        return self.out is not None and (self.out / name).is_file()

    def link(self, *parts: str) -> str:
        """The relative address of a file below the benchmark's folder; empty where it is not there."""
        if self.folder is None or self.out is None or not self.folder.joinpath(*parts).is_file():
            return ""
        relative = os.path.relpath(self.folder.joinpath(*parts).absolute(), self.out.absolute())
        return quote(Path(relative).as_posix())


@dataclass(frozen=True)
class Section:
    """One section of the page.

    name      its id on the page, and the template: templates/sections/NAME.html
    title     its heading and its entry in the contents
    values    what the template shows
    tables    the same in Markdown and LaTeX; empty: it is only on the page
    remarks   what stands below the tables there, one paragraph each
    """

    name: str
    title: str
    values: Mapping[str, Any] = field(default_factory=dict)
    tables: Sequence[Table] = ()
    remarks: Sequence[str] = ()


# Fills a section; None where the board has nothing to show in it.
Fill = Callable[[Inputs], Section | None]
