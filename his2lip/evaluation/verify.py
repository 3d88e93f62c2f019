"""Verification of a board: its files are computed again from the stored predictions, and compared."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pydantic

from his2lip.config import resolved
from his2lip.errors import ConfigError, first_line
from his2lip.evaluation.cell_files import DamagedCellError, cell_folder, read_tree
from his2lip.evaluation.config import PREFIX, PROBE_PREFIX
from his2lip.evaluation.leaderboard import FRAME, GIVEN, Frame, leaderboard_files, row_name, rows_of
from his2lip.evaluation.results import DIGESTS, CellResult, fields
from his2lip.evaluation.retrieval_task import RetrievalPlan, retrieval_of
from his2lip.evaluation.robustness import robustness_of
from his2lip.evaluation.stored_cell import COUNTED, StoredCell, read_cell
from his2lip.evaluation.task_results import Estimate, TaskCell, TaskRow, read_tasks, task_csv
from his2lip.evaluation.tasks import check_task, read_evidence
from his2lip.files import filesystem, read_file
from his2lip.parquet import read_parquet

_Digests = pydantic.TypeAdapter(dict[Annotated[str, pydantic.Field(pattern=r"^[\w-]+\.\w+$")], str])
_ROUNDING = 1e-9  # of figures of tasks, whose terms may be added in another order
# Fields of a row that follow from its model's record and its dataset's card, as they are now. A grid cell has
# them as they were when it was scored.
OF_RECORDS = ("in_domain", "generated", "role", "basis", *COUNTED)
_SHOWN = 60  # characters of a value that a mismatch shows


@dataclass(frozen=True)
class Mismatch:
    """Something that is not what the stored predictions give.

    row     model, dataset and protocol; "" where it concerns a whole file
    column  "" where it concerns a whole row
    """

    file: str
    row: str
    column: str
    what: str

    def __str__(self) -> str:
        return f"{', '.join(filter(None, (self.file, self.row, self.column)))}: {self.what}"


@dataclass(frozen=True)
class Verified:
    """What was computed again.

    cells       the rows, with the figures that follow from the stored predictions, and the tasks
    files       the files that were compared
    mismatches  what is different
    notes       what is not different, and should be known
    """

    cells: Sequence[CellResult | TaskCell]
    files: Sequence[str] = ()
    mismatches: Sequence[Mismatch] = ()
    notes: Sequence[str] = field(default_factory=tuple)


def verify_board(folder: str) -> Verified:
    """Computes every row of a board again from its stored predictions, and compares its files to the byte.

    Raises ConfigError for a folder without board.json.
    """
    frame = Frame.read(folder)
    known = _digests(folder)
    found = [
        Mismatch(name, "", "", "its bytes are not those of its sha256")
        for name, wanted in known.items()
        if (data := _read(folder, name)) is None or hashlib.sha256(data).hexdigest() != wanted
    ]
    stored: dict[str, StoredCell] = {}
    damaged = []
    for given in frame.rows:
        try:
            stored[given["cell"]] = read_cell(folder, given["cell"], given)
        except DamagedCellError as error:
            damaged.append(Mismatch(f"cells/{given['cell']}", row_name(given), "", str(error)))
    if damaged:
        return Verified([], (), [*found, *damaged])
    rows = rows_of(folder, frame, stored)
    for row in rows:
        found += _different_fields(row, stored[row.cell].result)
        found += _other_kind(row, _scored(folder, row))
    expected = leaderboard_files(folder, rows, frame)
    notes = []
    for name, data in expected.items():
        on_disk = _read(folder, name)
        if on_disk == data:
            continue
        own, note = _different(name, on_disk, data)
        found += own
        notes += [note] if note else []
    tasks, of_tasks, more = _verify_tasks(folder)
    cells: list[CellResult | TaskCell] = [*rows, *tasks]
    found = list(dict.fromkeys([*found, *of_tasks]))
    return Verified(cells, list(expected), found, [*notes, *more, *_not_checked(folder, cells)])


def _verify_tasks(folder: str) -> tuple[list[TaskCell], list[Mismatch], list[str]]:
    """The tasks of a board, what of them is not what their grid cells have, and what was not compared."""
    cells = read_tasks(folder)
    found: list[Mismatch] = []
    notes: list[str] = []
    for cell in cells:
        try:
            check_task(folder, cell)
        except DamagedCellError as error:
            found.append(Mismatch(f"cells/{cell.cell}", row_name(cell), "", str(error)))
            continue
        again = _refigured(cell, read_evidence(folder, cell))
        if again is None:
            notes.append(f"not computed again: {row_name(cell)}, whose evidence is of an earlier version")
        else:
            found += _different_rows(cell, again)
    for task in dict.fromkeys(cell.task for cell in cells):
        data = task_csv([cell for cell in cells if cell.task == task]).encode()
        if (on_disk := _read(folder, f"{task}.csv")) != data:
            found += _different(f"{task}.csv", on_disk, data)[0]
    return cells, found, notes


def _refigured(cell: TaskCell, evidence: pa.Table) -> Sequence[TaskRow] | None:
    """The rows of a task, with what follows from its evidence computed again; None as `robustness_of`."""
    if cell.task == RetrievalPlan.task:
        return retrieval_of(cell.rows, evidence, random=cell.is_baseline)
    return robustness_of(cell.rows, evidence)


def _different_rows(cell: TaskCell, again: Sequence[TaskRow]) -> Iterator[Mismatch]:
    """The figures and sizes of a task that do not follow from its evidence."""
    for row, ours in zip(cell.rows, again, strict=True):
        pairs: list[tuple[str, Any, Any]] = [
            *((name, row.figures.get(name), figure) for name, figure in ours.figures.items()),
            ("clusters", row.clusters, ours.clusters),
            ("sizes", row.sizes, ours.sizes),
        ]
        for name, stored, found in pairs:
            if not alike(_plain(stored), _plain(found), within=_ROUNDING):
                what = f"{_short(str(stored))} stored, {_short(str(found))} from the evidence"
                yield Mismatch(f"cells/{cell.cell}/cell.json", row_name(cell), f"{row.name}, {name}", what)


def _plain(value: Any) -> Any:
    return resolved(value) if isinstance(value, Estimate) else value


def alike(a: Any, b: Any, *, within: float) -> bool:
    """Equal, or numbers that differ by at most `within`, relative or absolute; also in lists and mappings."""
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=within, abs_tol=within)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(alike(a[key], b[key], within=within) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(alike(x, y, within=within) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def _digests(folder: str) -> dict[str, str]:
    """File -> its digest. Raises ConfigError where they cannot be read."""
    try:
        found: dict[str, str] = _Digests.validate_python(json.loads(_read(folder, DIGESTS) or b""))
    except (ValueError, RecursionError) as error:
        what = f"{DIGESTS} cannot be read: {first_line(error)}"
        raise ConfigError(what, where=folder, key=DIGESTS, fix="run his2lip benchmark again") from None
    return found


def _read(folder: str, name: str) -> bytes | None:
    system, path = filesystem(folder)
    try:
        return read_file(system, f"{path}/{name}")
    except FileNotFoundError:
        return None


def _different_fields(row: CellResult, stored: CellResult) -> Iterator[Mismatch]:
    """The figures of a cell.json that do not follow from its predictions.

    The fields that `rows_of` adds are not in cell.json, and those that the board gives a row may differ
    there: rows of the same weights share one grid cell.
    """
    ours, theirs = resolved(row), resolved(stored)
    for name in fields():
        if name not in (*_OF_BOARD, *GIVEN) and ours[name] != theirs[name]:
            what = f"{_short(theirs[name])} stored, {_short(ours[name])} from the predictions"
            yield Mismatch(f"cells/{row.cell}/cell.json", row_name(row), name, what)


# Fields that compare a row with others, or pool it with them.
_OF_BOARD = (
    *("prompt_order", "prompt_order_least", "order_depends_on_prompts", "over_seeds"),
    *("reference", "margin", "compared"),
)


def _scored(folder: str, cell: CellResult | TaskCell) -> Mapping[str, Any]:
    """The record of a grid cell as it was when it was scored; empty where it has none."""
    tree = read_tree(cell_folder(folder, cell.cell)) or {}
    record: Mapping[str, Any] = tree.get("record", tree)
    return record


def _other_kind(row: CellResult, scored: Mapping[str, Any]) -> Iterator[Mismatch]:
    """A probe or baseline that the board has under the name of a model, or the other way round.

    Other names are not compared: rows of the same weights share one grid cell.
    """
    kinds = [
        [str(name).startswith(start) for start in (PREFIX, PROBE_PREFIX)]
        for name in (row.model, scored.get("model", row.model))
    ]
    if kinds[0] != kinds[1]:
        what = f"its grid cell is of {_short(scored['model'])}, which is no row of this kind"
        yield Mismatch(FRAME, row_name(row), "model", what)


def _not_checked(folder: str, cells: Sequence[CellResult | TaskCell]) -> list[str]:
    """A note on the fields `OF_RECORDS` that are others than when their grid cells were scored.

    They may have changed since, and rows that share a grid cell may differ in them.
    """
    names: dict[str, str] = {}  # field -> the first row where it is another one
    rows = set()
    for cell in cells:
        ours, theirs = resolved(cell), _scored(folder, cell)
        for name in OF_RECORDS:
            if name in ours and name in theirs and ours[name] != theirs[name]:
                names.setdefault(name, f"{_short(ours[name])}, and {_short(theirs[name])} when it was scored")
                rows.add(row_name(cell))
    if not names:
        return []
    first = next(row_name(c) for c in cells if row_name(c) in rows)
    what = "; ".join(f"{name} ({values})" for name, values in names.items())
    many = f"{first} and {len(rows) - 1} more" if len(rows) > 1 else first
    return [f"not checked, since it is not as in the grid cells of {many}: {what}; --verify images does so"]


def _different(name: str, on_disk: bytes | None, data: bytes) -> tuple[list[Mismatch], str | None]:
    """The mismatches of a file, or else a note on why its bytes differ."""
    if on_disk is None:
        return [Mismatch(name, "", "", "the file is missing")], None
    try:
        if name.endswith(".csv"):
            return _different_csv(name, on_disk, data), None
        if name.endswith(".parquet"):
            return _different_parquet(name, on_disk, data)
    except (pa.ArrowException, OSError, ValueError, csv.Error) as error:
        return [Mismatch(name, "", "", f"it cannot be read: {first_line(error)}")], None
    return [Mismatch(name, "", "", "its bytes are not those that follow from the board")], None


def _different_csv(name: str, on_disk: bytes, data: bytes) -> list[Mismatch]:
    ours, theirs = (list(csv.reader(io.StringIO(text.decode()), strict=True)) for text in (data, on_disk))
    head = ours[0]
    if theirs[:1] != [head]:
        return [Mismatch(name, "", "", "its columns are others")]
    found = []
    for i, (mine, other) in enumerate(zip(ours[1:], theirs[1:], strict=False), start=1):
        row = f"row {i} ({row_name({'protocol': '', **dict(zip(head, mine, strict=True))})})"
        if len(other) != len(head):
            found.append(Mismatch(name, row, "", f"it has {len(other)} values for {len(head)} columns"))
            continue
        found += [
            Mismatch(name, row, column, f"{_short(b)} on disk, {_short(a)} from the predictions")
            for column, a, b in zip(head, mine, other, strict=True)
            if a != b
        ]
    if len(ours) != len(theirs):
        what = f"it has {len(theirs) - 1} rows, and the board {len(ours) - 1}"
        found.append(Mismatch(name, "", "", what))
    return found or [Mismatch(name, "", "", "its bytes differ, and its values do not")]


def _different_parquet(name: str, on_disk: bytes, data: bytes) -> tuple[list[Mismatch], str | None]:
    ours, theirs = (read_parquet(raw) for raw in (data, on_disk))
    if ours.column_names != theirs.column_names or len(ours) != len(theirs):
        return [Mismatch(name, "", "", "its columns or its number of rows are others")], None
    found = []
    for column in ours.column_names:
        mine, other = ours[column].to_pylist(), theirs[column].to_pylist()
        for i, (a, b) in enumerate(zip(mine, other, strict=True)):
            if a != b and not (a != a and b != b):
                what = f"{_short(b)} on disk, {_short(a)} from the predictions"
                key = {k: ours[k][i].as_py() for k in ("model", "dataset", "protocol")}
                found.append(Mismatch(name, f"row {i + 1} ({row_name(key)})", column, what))
                break  # a column of predictions has a value per patch; the first that differs names it
    written = [pq.read_metadata(pa.BufferReader(raw)).created_by for raw in (on_disk, data)]
    if found or written[0] == written[1]:
        return found or [Mismatch(name, "", "", "its bytes differ, and its values do not")], None
    return [], f"{name}: the same values, written by {written[0]}, not {written[1]}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
