"""Tables: reads CSV files with their own delimiter and decimal mark."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from his2lip.errors import DatasetError, first_line

_DELIMITERS = ",;\t"
_LINES = 50  # number of lines from which the delimiter is inferred
_EXPONENT = r"(?:[eE][-+]?\d+)?"
_NUMBER = {
    ".": re.compile(rf"[-+]?(?:\d+\.?\d*|\.\d+){_EXPONENT}"),
    ",": re.compile(rf"[-+]?(?:\d+,?\d*|,\d+){_EXPONENT}"),
}
_DECIMAL_POINT = re.compile(rf"[-+]?\d*\.\d+{_EXPONENT}")
_DECIMAL_COMMA = re.compile(rf"[-+]?\d*,\d+{_EXPONENT}")
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(?:\.\d{3})+,\d+")  # 1.234,5: one number, or a list of two
_BETWEEN = re.compile(r"[\s;|\[\]()]+")  # separators of the numbers in one field


@dataclass(frozen=True)
class Table:
    """The rows of a file and its decimal mark. Fields have no surrounding white space."""

    rows: list[list[str]]
    decimal: Literal[".", ","]

    def number(self, text: str) -> float:
        """The number in a field. Raises DatasetError for anything else, also for NaN and infinity."""
        if _NUMBER[self.decimal].fullmatch(text) is None:
            what = f"'{text}' is not a number (the decimal mark of this file is '{self.decimal}')"
            raise DatasetError(what, key=text)
        return float(text.replace(",", "."))

    def numbers(self, text: str) -> list[float]:
        """All numbers in a field such as `0.7 0.6`, `[0.7, 0.6]` or `0,7 0,6`.

        Raises DatasetError where a part is not a number, and where a comma may be the decimal mark or a
        separator.
        """
        found: list[float] = []
        for token in filter(None, _BETWEEN.split(text)):
            parts = [token.rstrip(",")] if self.decimal == "," else token.strip(",").split(",")
            is_list = "." in token and _THOUSANDS.fullmatch(token) is None and all(map(_is_plain, parts))
            if len(parts) > 1 and not is_list:
                raise DatasetError(f"'{token}' may be one number or several", key=token)
            found += [self.number(part) for part in parts if part]
        return found


def read_table(path: Path) -> Table:
    """Reads a table with commas, semicolons or tabs between its fields; empty rows are skipped.

    Raises DatasetError for a file that does not exist or cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        source = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text))
        rows = [[field.strip() for field in row] for row in source if any(map(str.strip, row))]
    except FileNotFoundError:
        raise DatasetError("the table does not exist", where=path) from None
    except UnicodeDecodeError as error:
        what = f"the table is not UTF-8: {first_line(error)}"
        raise DatasetError(what, where=path, fix="save it as CSV in UTF-8") from None
    except (OSError, csv.Error) as error:
        raise DatasetError(f"the table cannot be read: {first_line(error)}", where=path) from None
    return Table(rows, decimal_mark(rows))


def _delimiter(text: str) -> str:
    """The delimiter that is in every line. Of several, the one that comes first in the first line."""
    lines = [line for line in text.splitlines() if line.strip()][:_LINES]
    everywhere = [mark for mark in _DELIMITERS if lines and all(mark in line for line in lines)]
    return min(everywhere, key=lines[0].index) if everywhere else ","


def decimal_mark(rows: list[list[str]]) -> Literal[".", ","]:
    """The decimal mark: a comma if numbers are written with commas and none with a point."""
    tokens = {token.rstrip(",") for row in rows for field in row for token in _BETWEEN.split(field)}
    tokens = {token for token in tokens if _THOUSANDS.fullmatch(token) is None}
    points = any(_DECIMAL_POINT.fullmatch(part) for token in tokens for part in token.split(","))
    commas = any(_DECIMAL_COMMA.fullmatch(token) for token in tokens)
    return "," if commas and not points else "."


def _is_plain(part: str) -> bool:
    """Whether a part may be a number of a list; one such as `01` can only follow a decimal comma."""
    return re.match(r"[-+]?0\d", part) is None
