"""`his2lip report`: the leaderboard of a benchmark as pages."""

from __future__ import annotations

from pathlib import Path

from his2lip.commands.console import say
from his2lip.errors import ConfigError


def run_report(benchmark: Path, out: Path | None) -> None:
    """Writes the pages and says where."""
    say(f"leaderboard: {write_report(benchmark, out)}")


def write_report(benchmark: Path, out: Path | None = None) -> Path:
    """Writes HTML, CSV and Markdown from a benchmark's folder; the HTML page's path."""
    from his2lip.report import write_pages

    board = benchmark / "leaderboard.csv"
    if not board.is_file():
        raise ConfigError(
            "no benchmark has been run here (there is no leaderboard.csv)",
            where=benchmark,
            fix="his2lip benchmark benchmarks/zero_shot.yaml",
        )
    return write_pages(board, out or benchmark / "report")
