"""The leaderboard of a benchmark: its grid cells by model and column, and the means of models."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from his2lip.data.cards import list_cards, load_card
from his2lip.evaluation import CellResult, comparison_name, published_figures, read_results
from his2lip.report.comparability import is_possible


def heading(cell: CellResult) -> str:
    """Name of a grid cell's column: dataset, protocol unless it is `default`, and whether it is generated."""
    marks = [cell.protocol] if cell.protocol != "default" else []
    marks += ["generated"] if cell.generated else []
    return f"{cell.dataset} ({', '.join(marks)})" if marks else cell.dataset


@dataclass(frozen=True)
class Board:
    """All grid cells of one benchmark: a row per model, a column per dataset, protocol and origin."""

    cells: Sequence[CellResult]

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(heading(cell) for cell in self.cells))

    @property
    def models(self) -> list[str]:
        """Models by their zero-shot mean, the best first, then baselines."""
        baseline = {cell.model: cell.is_baseline for cell in self.cells}
        return sorted(baseline, key=lambda name: (baseline[name], -(self.mean(name) or -1.0)))

    @property
    def generated(self) -> bool:
        """Whether any column is a generated twin. Its figures say nothing about the real dataset."""
        return any(cell.generated for cell in self.cells)

    def cell(self, model: str, column: str) -> CellResult | None:
        return next((c for c in self.cells if c.model == model and heading(c) == column), None)

    def in_domain(self) -> list[str]:
        """Columns that are the training distribution of at least one model."""
        seen = {heading(cell) for cell in self.cells if cell.in_domain}
        return [column for column in self.columns if column in seen]

    def zero_shot(self) -> list[str]:
        """The columns of every model's mean.

        They are no model's training distribution. Generated twins count only where all columns are generated.
        """
        left_out = set(self.in_domain())
        if not all(cell.generated for cell in self.cells):
            left_out |= {heading(cell) for cell in self.cells if cell.generated}
        return [column for column in self.columns if column not in left_out]

    def mean(
        self, model: str, figure: str = "macro_f1", *, columns: Sequence[str] | None = None
    ) -> float | None:
        """A model's mean over `columns`, by default the zero-shot ones; None where one has no such figure."""
        cells = [self.cell(model, column) for column in (self.zero_shot() if columns is None else columns)]
        values = [value for c in cells if c is not None and (value := getattr(c, figure)) is not None]
        return statistics.fmean(values) if values and len(values) == len(cells) else None

    def empty_classes(self) -> dict[str, list[str]]:
        """Classes without a unit in the scored split, by column; columns that have none are left out."""
        found = {heading(cell): cell.empty_classes for cell in self.cells}
        return {column: names for column, names in found.items() if names}


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """One pair of the paper's Table 2, and whether it is possible for the classes of its protocol."""

    model: str
    dataset: str
    accuracy: float
    macro_f1: float
    is_possible: bool


def read_board(path: Path) -> Board:
    """The board of a leaderboard.csv or .parquet. Raises ConfigError for a file that is not one."""
    return Board(read_results(path))


def published_rows() -> list[PublishedRow]:
    """The paper's Table 2. Each pair is checked against the number of classes of our `paper` protocol."""
    cards = {comparison_name(name): load_card(name) for name in list_cards()}
    classes = {name: len(card.protocols["paper"].classes) for name, card in cards.items()}
    return [
        PublishedRow(
            model=row.model,
            dataset=row.dataset,
            accuracy=row.accuracy,
            macro_f1=row.macro_f1,
            is_possible=is_possible(row.accuracy, row.macro_f1, classes[comparison_name(row.dataset)]),
        )
        for row in published_figures()
    ]
