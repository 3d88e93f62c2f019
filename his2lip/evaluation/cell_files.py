"""The files of a stored grid cell: cell.json, sealed by a digest, and the table behind its figures."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from his2lip.config import digest
from his2lip.errors import ConfigError, first_line
from his2lip.files import answers, filesystem, in_folder, read_file, write_file
from his2lip.parquet import read_parquet

_JSON = "cell.json"


class DamagedCellError(Exception):
    """A stored result whose content is not what was written."""


def cell_folder(folder: str, identity: str) -> str:
    """Where the grid below `folder` stores the grid cell of this identity."""
    return f"{folder}/cells/{identity}"


def finished_cells(folder: str) -> set[str]:
    """The identities of the grid cells that are stored below `folder`; their content is not read.

    Raises StorageError, as `answers`; so do all functions here.
    """
    system, path = filesystem(f"{folder}/cells")
    files = [info.path for info in in_folder(system, path, recursive=True) if info.base_name == _JSON]
    return {file.split("/")[-2] for file in files}


def write_cell(place: str, tree: Mapping[str, Any], table: pa.Table, *, name: str, key: str) -> None:
    """Writes the table as the file `name`, then `tree` with its sha256 as `key`, sealed.

    A grid cell is finished when its cell.json exists.
    """
    system, path = filesystem(place)
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    data = out.getvalue()
    with answers(place):
        write_file(system, f"{path}/{name}", data, what="the result of a grid cell")
    sealed = {**tree, key: hashlib.sha256(data).hexdigest()}
    sealed["sha256"] = digest(sealed)
    text = json.dumps(sealed, indent=1, ensure_ascii=False) + "\n"
    with answers(place):
        write_file(system, f"{path}/{_JSON}", text.encode(), what="the result of a grid cell")


def read_tree(place: str) -> dict[str, Any] | None:
    """The content of cell.json, not checked; None where there is no such file.

    Raises DamagedCellError where it is no mapping.
    """
    system, path = filesystem(place)
    try:
        tree = json.loads(read_file(system, f"{path}/{_JSON}"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DamagedCellError(first_line(error)) from None
    if not isinstance(tree, dict):
        raise DamagedCellError(f"{_JSON} is no mapping")
    return tree


def check_seal(tree: Mapping[str, Any]) -> None:
    """Raises DamagedCellError where the content of cell.json is not what its digest names."""
    if tree.get("sha256") != digest({key: value for key, value in tree.items() if key != "sha256"}):
        raise DamagedCellError(f"{_JSON} is not what was written")


def read_table(place: str, name: str, sha256: str) -> pa.Table:
    """The table of a grid cell. Raises DamagedCellError where its file is missing or another one."""
    system, path = filesystem(place)
    try:
        data = read_file(system, f"{path}/{name}")
    except FileNotFoundError as error:
        raise DamagedCellError(first_line(error)) from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DamagedCellError(f"{name} is not what was written")
    return read_parquet(data)


def read_unchecked(place: str, name: str, *, columns: Sequence[str] | None = None) -> pa.Table:
    """The table of a grid cell, with all or some of its columns, whose digest is not known here.

    Raises FileNotFoundError where its file is missing, and ConfigError where it is no such table.
    """
    system, path = filesystem(place)
    data = read_file(system, f"{path}/{name}")
    try:
        return read_parquet(data, columns=columns)
    except (pa.ArrowException, OSError) as error:
        what, fix = f"this table is damaged: {first_line(error)}", "run his2lip benchmark again"
        raise ConfigError(what, where=f"{place}/{name}", key=name, fix=fix) from None
