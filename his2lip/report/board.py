"""The leaderboard as rows and means, out of a benchmark's leaderboard.csv."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from his2lip.data.cards import list_cards, load_card
from his2lip.errors import ConfigError
from his2lip.evaluation import plain, published
from his2lip.report.comparability import comparable

BASELINE = "baseline:"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One cell of the grid; figures are fractions in [0, 1]."""

    model: str
    dataset: str
    protocol: str
    n: int
    accuracy: float
    macro_f1: float
    balanced_accuracy: float
    in_domain: bool
    generated: bool
    basis: str
    accuracy_lo: float | None = None
    accuracy_hi: float | None = None
    macro_f1_lo: float | None = None
    macro_f1_hi: float | None = None
    published_accuracy: float | None = None
    published_f1: float | None = None
    blend: str | None = None  # the sweep of alpha that the model is a point of
    alpha: float | None = None

    @property
    def column(self) -> str:
        """What its column is called: dataset, protocol unless the default one, whether generated."""
        marks = [self.protocol] if self.protocol != "default" else []
        marks += ["generated"] if self.generated else []
        return f"{self.dataset} ({', '.join(marks)})" if marks else self.dataset

    def interval(self, figure: str) -> tuple[float, float] | None:
        """The interval of `accuracy` or `macro_f1`, where the benchmark computed one."""
        low, high = getattr(self, f"{figure}_lo"), getattr(self, f"{figure}_hi")
        return None if low is None or high is None else (low, high)

    def published(self, figure: str) -> float | None:
        """The paper's figure for this model, dataset and protocol; None beside a generated twin."""
        if self.generated:
            return None
        return self.published_accuracy if figure == "accuracy" else self.published_f1

    @property
    def baseline(self) -> bool:
        return self.model.startswith(BASELINE)


@dataclass(frozen=True)
class Board:
    """All rows of one benchmark."""

    rows: Sequence[Row]

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(row.column for row in self.rows))

    @property
    def models(self) -> list[str]:
        """Models, the best zero-shot mean first; baselines behind them."""
        names = dict.fromkeys(row.model for row in self.rows)
        return sorted(names, key=lambda name: (name.startswith(BASELINE), -(self.mean(name) or -1.0)))

    @property
    def generated(self) -> bool:
        """Whether any column is a generated twin, whose figures say nothing of the real dataset."""
        return any(row.generated for row in self.rows)

    def cell(self, model: str, column: str) -> Row | None:
        return next((r for r in self.rows if r.model == model and r.column == column), None)

    def in_domain(self) -> list[str]:
        """Columns that are some model's training distribution."""
        seen = {row.column for row in self.rows if row.in_domain}
        return [column for column in self.columns if column in seen]

    def zero_shot(self) -> list[str]:
        """The columns of every model's mean: no model's training distribution, and twins only among twins."""
        left_out = set(self.in_domain())
        if not all(row.generated for row in self.rows):
            left_out |= {row.column for row in self.rows if row.generated}
        return [column for column in self.columns if column not in left_out]

    def mean(self, model: str, figure: str = "macro_f1") -> float | None:
        """A model's mean over the zero-shot columns; None where it lacks one of them."""
        cells = [self.cell(model, column) for column in self.zero_shot()]
        if not cells or any(cell is None for cell in cells):
            return None
        return statistics.fmean(getattr(cell, figure) for cell in cells)


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """One pair of the paper's Table 2, and whether it can come from the classes that its protocol names."""

    model: str
    dataset: str
    accuracy: float
    macro_f1: float
    comparable: bool


def read_board(path: Path) -> Board:
    """The rows of a leaderboard.csv. Raises ConfigError for a file that is none."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return Board([_row(line) for line in csv.DictReader(file)])
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise ConfigError(f"this is not a leaderboard: {error}", where=path) from None


def published_rows() -> list[PublishedRow]:
    """The paper's Table 2, each pair checked against the classes of our `paper` protocol."""
    cards = {plain(name): load_card(name) for name in list_cards()}
    return [
        PublishedRow(
            model=row.model,
            dataset=row.dataset,
            accuracy=row.accuracy,
            macro_f1=row.macro_f1,
            comparable=comparable(
                row.accuracy, row.macro_f1, len(cards[plain(row.dataset)].protocols["paper"].classes)
            ),
        )
        for row in published()
    ]


def _row(line: dict[str, str]) -> Row:
    def optional(name: str) -> float | None:
        return float(line[name]) if line.get(name) else None

    return Row(
        model=line["model"],
        dataset=line["dataset"],
        protocol=line["protocol"],
        n=int(line["n"]),
        accuracy=float(line["accuracy"]),
        macro_f1=float(line["macro_f1"]),
        balanced_accuracy=float(line["balanced_accuracy"]),
        in_domain=line["in_domain"] == "True",
        generated=line["generated"] == "True",
        basis=line["basis"],
        accuracy_lo=optional("accuracy_lo"),
        accuracy_hi=optional("accuracy_hi"),
        macro_f1_lo=optional("macro_f1_lo"),
        macro_f1_hi=optional("macro_f1_hi"),
        published_accuracy=optional("published_accuracy"),
        published_f1=optional("published_f1"),
        blend=line.get("blend") or None,
        alpha=optional("alpha"),
    )
