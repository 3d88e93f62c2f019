"""Terminal output of the commands: lines, tables and progress; plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING

from his2lip.errors import redact

if TYPE_CHECKING:
    from rich.console import Console

# Seconds between two updates of a progress bar on a terminal, and between two progress lines elsewhere.
TERMINAL_EVERY_S, LINES_EVERY_S = 0.1, 10.0
# Characters per line where there is no terminal (a log or a pipe), so that lines are not wrapped at 80.
_WIDE = 200
_GAP = 2  # characters between two columns of a table


@cache
def console() -> Console:
    """The console that all output goes to. Rich is imported here, so that `--help` need not wait for it."""
    from rich.console import Console

    return Console(highlight=False, width=None if Console().is_terminal else _WIDE)


def heading(text: str) -> None:
    """Prints the title of a part of the work."""
    console().print(f"\n[bold]{text}[/bold]")


def say(text: str) -> None:
    """Prints one plain line; brackets in it are not markup."""
    console().print(redact(text), markup=False, soft_wrap=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> None:
    """Prints a table; columns of numbers are aligned right."""
    from rich.table import Table

    drawn = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    texts = [["" if value is None else redact(str(value)) for value in row] for row in rows]
    for i, name in enumerate(columns):
        numbers = all(_is_number(row[i]) for row in texts)
        drawn.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for row in texts:
        drawn.add_row(*row)
    console().print(drawn, markup=False)


def wide_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table as several, each with the first column, where it is wider than the terminal."""
    from rich.cells import cell_len

    widths = [
        max(cell_len(line) for text in column for line in text.splitlines() or [""])
        for column in zip(columns, *rows, strict=True)
    ]
    groups: list[list[int]] = [[]]
    room = console().width - widths[0]
    for i, width in enumerate(widths[1:], start=1):
        if groups[-1] and sum(widths[k] + _GAP for k in groups[-1]) + width + _GAP > room:
            groups.append([])
        groups[-1].append(i)
    for group in groups:
        places = [0, *group]
        table([columns[i] for i in places], [[row[i] for i in places] for row in rows])


class ProgressBar:
    """Progress of one piece of work: a bar on a terminal, one line every 10 seconds elsewhere.

    Where the work ends without an error, one line with the last state and the elapsed time remains.
    """

    def __init__(self, label: str) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._label, self._text = label, ""
        self._every = TERMINAL_EVERY_S if console().is_terminal else LINES_EVERY_S
        self._started = self._shown = time.monotonic()
        # Refreshed by `update` only: no thread takes time from the work, or holds a lock while it forks.
        self._bar = Progress(
            TextColumn("  {task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}", markup=False),
            TimeElapsedColumn(),
            console=console(),
            auto_refresh=False,
            transient=True,
            disable=not console().is_terminal,
        )
        self._task = self._bar.add_task(label, total=None, text="")

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def update(self, text: str, *, done: int | None = None, total: int | None = None) -> None:
        """Shows `text` as the present state, and the share `done` of `total` where both are given."""
        self._text, now = redact(text), time.monotonic()
        if now - self._shown < self._every:
            return
        self._shown = now
        if console().is_terminal:
            self._bar.update(self._task, completed=done, total=total, text=self._text, refresh=True)
        else:
            say(f"  {self._label}: {self._text}")

    def counter(self, unit: str) -> Callable[[int, int], None]:
        """A callback that takes (done, total) of `unit`, such as images."""
        return lambda done, total: self.update(f"{done:,} of {total:,} {unit}", done=done, total=total)

    def adder(self) -> Callable[[int], None]:
        """A callback that takes the number of items finished since the last call."""
        count = 0

        def add(new: int) -> None:
            nonlocal count
            count += new
            self.update(f"{count:,}")

        return add

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if error is None:
            text = f"{self._text}, " if self._text else ""
            say(f"  {self._label}: {text}{time.monotonic() - self._started:.0f} s")


def percent(value: float | None) -> str:
    """A fraction as percent with two decimals, as published tables print it; None as a dash."""
    return "–" if value is None else f"{100 * value:.2f}"


def _is_number(text: str) -> bool:
    first = text.partition("\n")[0]
    try:
        float(first.rstrip("%"))
    except ValueError:
        return first in ("", "–")
    return True
