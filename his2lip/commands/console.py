"""What a person sees while a command works: headings, progress, tables; plain lines off a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from types import TracebackType

from rich.console import Console
from rich.table import Table

# Off a terminal (a log, a pipe) lines and tables are as long as they are, not wrapped at 80 columns.
_WIDE = None if Console().is_terminal else 200
console = Console(highlight=False, width=_WIDE)


def heading(text: str) -> None:
    """A line that opens a part of the work."""
    console.print(f"\n[bold]{text}[/bold]")


def say(text: str) -> None:
    """One plain line; brackets in it are not markup."""
    console.print(text, markup=False, soft_wrap=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> None:
    """A table; columns of numbers stand right."""
    drawn = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    cells = [["" if c is None else str(c) for c in row] for row in rows]
    for i, name in enumerate(columns):
        numbers = all(_is_number(row[i]) for row in cells)
        drawn.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for row in cells:
        drawn.add_row(*row)
    console.print(drawn, markup=False)


class Progress:
    """Progress of one piece of work: a line redrawn on a terminal, a line every few seconds elsewhere."""

    def __init__(self, label: str, *, every: float = 10.0) -> None:
        self._label, self._every = label, every
        self._started = self._shown = time.monotonic()
        self._last = ""

    def __enter__(self) -> Progress:
        return self

    def update(self, text: str) -> None:
        """Shows `text` as where the work stands now."""
        self._last, now = text, time.monotonic()
        if console.is_terminal:
            console.print(
                f"  {self._label}: {text}", end="\r", markup=False, overflow="ellipsis", no_wrap=True
            )
        elif now - self._shown >= self._every:
            self._shown, self._last = now, "done"
            say(f"  {self._label}: {text}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if console.is_terminal:
            console.print(" " * (console.width - 1), end="\r")
        if error is None:
            seconds = time.monotonic() - self._started
            detail = f"{self._last}, " if self._last else ""
            say(f"  {self._label}: {detail}{seconds:.0f} s")


def percent(value: float | None) -> str:
    """A fraction as percent with two decimals, as published tables print it; an absent one as a dash."""
    return "–" if value is None else f"{100 * value:.2f}"


def _is_number(text: str) -> bool:
    try:
        float(text.rstrip("%"))
    except ValueError:
        return text in ("", "–")
    return True
