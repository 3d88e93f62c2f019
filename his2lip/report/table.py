"""Tables of figures, from which the page, Markdown and LaTeX are made."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from his2lip.evaluation import PREFIX, Estimate
from his2lip.templates import percent

FRACTION = "fraction"


@dataclass(frozen=True)
class Figure:
    """One figure of a table.

    value    None where the model was not scored or has no such figure
    shown    the value as text
    limits   its interval as text, such as `30.1 to 52.3`
    drawn    its interval, as it is drawn; None without one
    is_best  whether it cannot be told from the best of its column
    marks    signs beside the value, which notes explain
    groups   letters that it shares with the figures from which it cannot be told
    beside   lines that are shown below the figure, such as the published value
    href     where the evidence of the figure is
    """

    value: float | None
    shown: str = ""
    limits: str = ""
    drawn: tuple[float, float] | None = None
    is_best: bool = False
    marks: str = ""
    groups: str = ""
    beside: tuple[str, ...] = ()
    href: str = ""

    @classmethod
    def of(cls, found: Estimate | None) -> Figure:
        """A figure of a task with its interval; an empty place for None."""
        if found is None or found.value is None:
            return cls(None)
        return cls(found.value, found.shown(found.value), limits(found.interval, found.unit), found.interval)

    @property
    def text(self) -> str:
        """The figure with its interval, on one line."""
        shown = (f"**{self.shown}**" if self.is_best else self.shown) + self.marks
        shown = f"{shown} {self.groups}" if self.groups else shown
        shown = f"{shown} ({self.limits})" if self.limits else shown
        return ", ".join([shown, *self.beside])


@dataclass(frozen=True)
class Scale:
    """The range over which the intervals of a column are drawn, from its left to its right end."""

    low: float
    high: float
    unit: str = FRACTION

    @property
    def text(self) -> str:
        """Its two ends."""
        if self.unit == FRACTION:
            return f"{100 * self.low:.0f} to {100 * self.high:.0f} %"
        return f"{self.low:.1f} to {self.high:.1f}"

    @classmethod
    def of(cls, figures: Iterable[Figure], unit: str) -> Scale:
        """The tenths around all figures and their limits; a coefficient's scale has 0, its chance."""
        shown = [f for f in figures if f.value is not None]
        values = [v for f in shown for v in (*(f.drawn or ()), f.value) if v is not None]
        values += [] if unit == FRACTION and values else [0.0]
        low, high = math.floor(10 * min(values) + 1e-9) / 10, math.ceil(10 * max(values) - 1e-9) / 10
        return cls(low, high if high > low else low + 0.1, unit)

    @classmethod
    def around_zero(cls, figures: Iterable[Figure], unit: str) -> Scale:
        """As wide to both sides of 0 as the widest limit."""
        values = [v for f in figures for v in (*(f.drawn or ()), f.value) if v is not None]
        reach = max([0.05, *map(abs, values)])
        return cls(-reach, reach, unit)

    def place(self, value: float) -> float:
        """Where a value lies, in percent of the range; values outside it are at its ends."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(max(share, 0.0), 1.0), 1)


@dataclass(frozen=True)
class Row:
    """The figures of a model: one per column of the table."""

    model: str
    figures: Sequence[Figure]

    @property
    def is_baseline(self) -> bool:
        return self.model.startswith(PREFIX)


@dataclass(frozen=True)
class Head:
    """The head of a column.

    title     as short as the page needs it
    notes     lines in small print below it
    dataset   what the filters of the page know the column by; empty: it is never filtered
    protocol  as `dataset`
    column    its name on the board, where it is one of the board's
    scale     on which its intervals are drawn; None: they are not drawn
    chance    the figure of the chance baseline in this column, which is drawn as a line
    """

    title: str
    notes: Sequence[str] = ()
    dataset: str = ""
    protocol: str = ""
    column: str = ""
    scale: Scale | None = None
    chance: float | None = None

    @property
    def name(self) -> str:
        """The name of the column in full."""
        return self.column or self.title


@dataclass(frozen=True)
class Table:
    """Figures of all models on some columns.

    key     what the page's choice of a table knows it by
    heads   of the columns of figures
    block   which columns of the board these are, such as `protocol paper`; empty: all
    corner  the head of the first column: what the rows are
    """

    key: str
    title: str
    heads: Sequence[Head]
    rows: Sequence[Row]
    block: str = ""
    corner: str = "model"

    @property
    def caption(self) -> str:
        """The title, with the block where there is one."""
        return f"{self.title}, {self.block}" if self.block else self.title

    @property
    def range(self) -> str:
        """The ends of the scale that all columns share, as `0 to 90 %`; empty without one."""
        scale = self.heads[0].scale if self.heads else None
        return scale.text if scale is not None and all(head.scale == scale for head in self.heads) else ""


def shown(value: float | None, unit: str) -> str:
    """A fraction in percent, a coefficient with three decimals; no text for None."""
    if value is None or unit == FRACTION:
        return percent(value)
    return f"{value:.3f}"


def limits(interval: tuple[float, float] | None, unit: str) -> str:
    """An interval in short: percent with one decimal, coefficients with two; no text for None."""
    if interval is None:
        return ""
    low, high = (f"{100 * limit:.1f}" if unit == FRACTION else f"{limit:.2f}" for limit in interval)
    return f"{low} to {high}"


def difference(value: float, unit: str) -> str:
    """A difference with its sign: points of percent, or a coefficient with three decimals."""
    return f"{100 * value:+.2f}" if unit == FRACTION else f"{value:+.3f}"
