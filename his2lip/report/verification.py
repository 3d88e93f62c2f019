"""Verification of the pages of a board: they are written again from its rows, and compared to the byte."""

from __future__ import annotations

import csv
import io
import tempfile
from itertools import zip_longest
from pathlib import Path

from his2lip.evaluation import Mismatch
from his2lip.report.board import read_board
from his2lip.report.pages import write_pages


def verify_pages(folder: Path, out: Path) -> tuple[list[str], list[Mismatch]]:
    """(files that were compared, what is different) of the pages in `out` of the board in `folder`.

    The pages are written into a temporary folder beside `out`, since their links depend on the place.
    """
    table = out / "leaderboard.csv"
    cells = read_board(table).cells if table.is_file() else []
    reference = next((cell.reference for cell in cells), None)
    own = read_board(folder / "leaderboard.csv").reference
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".verify-") as place:
        again = Path(place)
        write_pages(folder / "leaderboard.csv", again, reference=None if reference == own else reference)
        names = sorted(path.name for path in again.iterdir())
        found = [m for name in names for m in _different(out / name, again / name)]
    return names, found


def _different(on_disk: Path, expected: Path) -> list[Mismatch]:
    name = f"{on_disk.parent.name}/{on_disk.name}"
    if not on_disk.is_file():
        return [Mismatch(name, "", "", "the file is missing")]
    theirs, ours = on_disk.read_bytes(), expected.read_bytes()
    if theirs == ours:
        return []
    texts = [data.decode("utf-8", errors="replace") for data in (theirs, ours)]
    if on_disk.suffix == ".csv":
        tables = [list(csv.reader(io.StringIO(text))) for text in texts]
        head = tables[1][0]
        found = [
            Mismatch(name, f"row {i}", column, f"{a} on disk, {b} from the board")
            for i, (mine, other) in enumerate(zip_longest(*tables, fillvalue=[]))
            for column, a, b in zip_longest(head, mine, other, fillvalue="nothing")
            if a != b
        ]
        return found or [Mismatch(name, "", "", "its bytes differ, and its values do not")]
    lines = enumerate(zip_longest(*(text.splitlines() for text in texts)), start=1)
    line = next((i for i, (a, b) in lines if a != b), None)
    return [Mismatch(name, "" if line is None else f"line {line}", "", "it is not what the board gives")]
