"""The files of a stored grid cell: cell.json, sealed by a digest, and the table behind its figures."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from his2lip.config import digest
from his2lip.errors import first_line
from his2lip.files import filesystem, write_file

_JSON = "cell.json"


class DamagedCellError(Exception):
    """A stored result whose content is not what was written."""


def cell_folder(folder: str, identity: str) -> str:
    """Where the grid below `folder` stores the grid cell of this identity."""
    return f"{folder}/cells/{identity}"


def finished_cells(folder: str) -> set[str]:
    """The identities of the grid cells that are stored below `folder`; their content is not read."""
    system, path = filesystem(f"{folder}/cells")
    selector = pafs.FileSelector(path, allow_not_found=True, recursive=True)
    files = [info.path for info in system.get_file_info(selector) if info.base_name == _JSON]
    return {file.split("/")[-2] for file in files}


def write_cell(place: str, tree: Mapping[str, Any], table: pa.Table, *, name: str, key: str) -> None:
    """Writes the table as the file `name`, then `tree` with its sha256 as `key`, sealed.

    A grid cell is finished when its cell.json exists.
    """
    system, path = filesystem(place)
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    data = out.getvalue()
    write_file(system, f"{path}/{name}", data, what="the result of a grid cell")
    sealed = {**tree, key: hashlib.sha256(data).hexdigest()}
    sealed["sha256"] = digest(sealed)
    text = json.dumps(sealed, indent=1, ensure_ascii=False) + "\n"
    write_file(system, f"{path}/{_JSON}", text.encode(), what="the result of a grid cell")


def read_tree(place: str) -> dict[str, Any] | None:
    """The content of cell.json, not checked; None where there is no such file.

    Raises DamagedCellError where it is no mapping.
    """
    system, path = filesystem(place)
    try:
        with system.open_input_stream(f"{path}/{_JSON}") as source:
            tree = json.loads(source.read())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
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
        with system.open_input_stream(f"{path}/{name}") as source:
            data = source.read()
    except OSError as error:
        raise DamagedCellError(first_line(error)) from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DamagedCellError(f"{name} is not what was written")
    return pq.read_table(io.BytesIO(data))
