"""Verification of the pages of a board: they are written again from its rows, and compared."""

from __future__ import annotations

import csv
import io
import tempfile
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from his2lip.evaluation import Mismatch
from his2lip.files import answers
from his2lip.report.board import read_board
from his2lip.report.page import writer, writer_of
from his2lip.report.pages import PAGE, write_pages


@dataclass(frozen=True)
class VerifiedPages:
    """The files that were compared, what is different, and what should be known besides."""

    files: list[str]
    mismatches: list[Mismatch]
    notes: list[str]


def verify_pages(folder: Path, out: Path) -> VerifiedPages:
    """Compares the pages in `out` of the board in `folder` with what the board gives.

    To the byte, where this version of the code wrote them. Otherwise only the values of the tables, in the
    columns that both versions have, and a note names the version.
    The pages are written into a temporary folder beside `out`, since their links depend on the place.
    """
    table, page = out / "leaderboard.csv", out / PAGE
    cells = read_board(table).cells if table.is_file() else []
    reference = next((cell.reference for cell in cells), None)
    own = read_board(folder / "leaderboard.csv").reference
    by = writer_of(_read(page).decode("utf-8", errors="replace")) if page.is_file() else None
    same = by == writer() or not page.is_file()
    notes: list[str] = []
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".verify-") as place:
        again = Path(place)
        write_pages(folder / "leaderboard.csv", again, reference=None if reference == own else reference)
        names = sorted(path.name for path in again.iterdir())
        if not same:
            names = [name for name in names if name.endswith(".csv") and (out / name).is_file()]
            notes = [_of_another_version(out, by, names)]
        found = [m for name in names for m in _different(out / name, again / name, same_version=same)]
    return VerifiedPages(names, found, notes)


def _of_another_version(out: Path, by: str | None, names: list[str]) -> str:
    told = by or "an earlier version that does not name itself"
    return (
        f"{out.name}/{PAGE} was written by {told}, and this is {writer()}: only that version gives the same "
        f"bytes, so only values were compared, of {', '.join(names) or 'no table'}; "
        "his2lip report writes the pages again"
    )


def _read(path: Path) -> bytes:
    with answers(str(path)):
        return path.read_bytes()


def _different(on_disk: Path, expected: Path, *, same_version: bool) -> list[Mismatch]:
    name = f"{on_disk.parent.name}/{on_disk.name}"
    if not on_disk.is_file():
        return [Mismatch(name, "", "", "the file is missing")]
    theirs, ours = _read(on_disk), expected.read_bytes()
    if theirs == ours:
        return []
    texts = [data.decode("utf-8", errors="replace") for data in (theirs, ours)]
    if on_disk.suffix == ".csv":
        found = _different_values(name, *(list(csv.DictReader(io.StringIO(text))) for text in texts))
        if found or not same_version:
            return found
        return [Mismatch(name, "", "", "its bytes differ, and its values do not")]
    lines = enumerate(zip_longest(*(text.splitlines() for text in texts)), start=1)
    line = next((i for i, (a, b) in lines if a != b), None)
    return [Mismatch(name, "" if line is None else f"line {line}", "", "it is not what the board gives")]


Rows = list[dict[str | Any, str | Any]]


def _different_values(name: str, theirs: Rows, ours: Rows) -> list[Mismatch]:
    """What differs in the columns that both tables have."""
    if len(theirs) != len(ours):
        return [Mismatch(name, "", "", f"{len(theirs)} rows on disk, {len(ours)} from the board")]
    return [
        Mismatch(name, f"row {i}", column, f"{mine[column]} on disk, {other[column]} from the board")
        for i, (mine, other) in enumerate(zip(theirs, ours, strict=True), start=1)
        for column in other
        if column in mine and mine[column] != other[column]
    ]
