"""Tables: the rows of a CSV file in its own dialect, and numbers as that dialect writes them."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from his2lip.errors import DatasetError, first_line

_DELIMITERS = ",;\t"
_LINES = 50  # from which the delimiter is inferred
_EXPONENT = r"(?:[eE][-+]?\d+)?"
_NUMBER = {
    ".": re.compile(rf"[-+]?(?:\d+\.?\d*|\.\d+){_EXPONENT}"),
    ",": re.compile(rf"[-+]?(?:\d+,?\d*|,\d+){_EXPONENT}"),
}
_DECIMAL_POINT = re.compile(rf"[-+]?\d*\.\d+{_EXPONENT}")
_DECIMAL_COMMA = re.compile(rf"[-+]?\d*,\d+{_EXPONENT}")
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(?:\.\d{3})+,\d+")  # 1.234,5: a list of two numbers, or one
_BETWEEN = re.compile(r"[\s;|\[\]()]+")  # between the numbers of one cell


@dataclass(frozen=True)
class Table:
    """The rows of a file, every cell without white space around it, and its decimal mark."""

    rows: list[list[str]]
    decimal: Literal[".", ","]

    def number(self, text: str) -> float:
        """The number that a cell holds. Raises DatasetError for anything else, NaN and infinity included."""
        if _NUMBER[self.decimal].fullmatch(text) is None:
            raise DatasetError(f"'{text}' is not a number (the decimal mark here is '{self.decimal}')")
        return float(text.replace(",", "."))

    def numbers(self, text: str) -> list[float]:
        """All numbers of a cell such as `0.7 0.6`, `[0.7, 0.6]` or `0,7 0,6`.

        Raises DatasetError where a part is not a number, or where a comma may be decimal mark or separator.
        """
        found: list[float] = []
        for token in filter(None, _BETWEEN.split(text)):
            parts = [token.rstrip(",")] if self.decimal == "," else token.strip(",").split(",")
            is_list = "." in token and _THOUSANDS.fullmatch(token) is None and all(map(_is_plain, parts))
            if len(parts) > 1 and not is_list:
                raise DatasetError(f"'{token}' may be one number or several")
            found += [self.number(part) for part in parts if part]
        return found


def read_table(path: Path) -> Table:
    """A table with commas, semicolons or tabs between cells. Raises DatasetError for an unreadable file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        source = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text))
        rows = [[cell.strip() for cell in row] for row in source if any(map(str.strip, row))]
    except FileNotFoundError:
        raise DatasetError("the table does not exist", where=path) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"the table cannot be read: {first_line(error)}", where=path) from None
    return Table(rows, _decimal(rows))


def _delimiter(text: str) -> str:
    """The character that every line has; of several, the one that comes first in the first line."""
    lines = [line for line in text.splitlines() if line.strip()][:_LINES]
    everywhere = [mark for mark in _DELIMITERS if lines and all(mark in line for line in lines)]
    return min(everywhere, key=lines[0].index) if everywhere else ","


def _decimal(rows: list[list[str]]) -> Literal[".", ","]:
    """A comma where numbers are written with commas and none with a point."""
    tokens = {token.rstrip(",") for row in rows for cell in row for token in _BETWEEN.split(cell)}
    tokens = {token for token in tokens if _THOUSANDS.fullmatch(token) is None}
    points = any(_DECIMAL_POINT.fullmatch(part) for token in tokens for part in token.split(","))
    commas = any(_DECIMAL_COMMA.fullmatch(token) for token in tokens)
    return "," if commas and not points else "."


def _is_plain(part: str) -> bool:
    """Not `01`, which is what follows a decimal comma."""
    return re.match(r"[-+]?0\d", part) is None
