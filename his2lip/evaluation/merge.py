"""Boards of several machines as one: the grid cells of all, and a leaderboard of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow.fs import FileSelector

from his2lip.errors import ConfigError
from his2lip.evaluation.cell_files import DamagedCellError, cell_folder
from his2lip.evaluation.leaderboard import FRAME, Frame, row_name, rows_of, write_board
from his2lip.evaluation.results import CellFailure, CellResult
from his2lip.evaluation.stored_cell import StoredCell, read_cell
from his2lip.evaluation.task_results import TaskCell, read_tasks, write_tasks
from his2lip.evaluation.tasks import check_task
from his2lip.files import answers, filesystem, read_file, write_file

Key = tuple[str, str, str]  # model, dataset, protocol

_OF_DATA = {
    "units and labels": "split_sha256",
    "images": "images_sha256",
    "cases and groups": "groups_sha256",
}
_OF_CELL = {
    **_OF_DATA,
    "protocol version": "protocol_version",
    "prompts": "prompts_sha256",
    "weights": "weights_sha256",
    "encoder": "encoder",
}
_OF_TASK_COLUMN = ("split_sha256", "images_sha256", "settings_sha256")
_OF_TASK = (*_OF_TASK_COLUMN, "weights_sha256", "encoder", "cell")
_MOST = 5  # refusals that an error shows


@dataclass(frozen=True)
class Merged:
    """A merged board: the path of its leaderboard.csv, its number of rows, and what should be known of it."""

    leaderboard: str
    rows: int
    notes: Sequence[str]


def merge_boards(folders: Sequence[str], out: str) -> Merged:
    """Writes the board of all grid cells below `folders` into `out`, with their predictions.

    A grid cell that several boards have is taken from the first. Raises ConfigError, with the digest as
    `key`, where a row of the same model, dataset and protocol was scored from other data, prompts, weights or
    code, where a model has other weights on another dataset, and where models would be in one column that
    were scored on other units or with other prompts.
    """
    _check_out(folders, out)
    frames = {folder: Frame.read(folder) for folder in folders}
    given: dict[Key, dict[str, Any]] = {}
    kept: dict[Key, tuple[str, StoredCell]] = {}
    refused: list[tuple[str, str]] = []  # (field, sentence)
    notes: list[str] = []
    for folder, frame in frames.items():
        for row in frame.rows:
            key = (row["model"], row["dataset"], row["protocol"])
            stored = _stored(folder, row)
            if key not in kept:
                given[key], kept[key] = row, (folder, stored)
                continue
            first, other = kept[key]
            differ = _other_inputs(other, stored)
            refused += [
                (name, f"{row_name(row)}: {what} in {folder} than in {first}") for name, what in differ
            ]
            notes += [] if differ else _other_predictions(row, other, stored, folder=folder, first=first)
    refused += _mixed_columns(kept)
    tasks, of_tasks = _tasks(folders)
    refused += of_tasks
    refused += _other_weights([*((folder, stored.result) for folder, stored in kept.values()), *tasks])
    if refused:
        shown = "; ".join(what for _, what in refused[:_MOST])
        more = f"; and {len(refused) - _MOST} more" if len(refused) > _MOST else ""
        fix = "score them from the same inputs, or leave the row out of one benchmark"
        raise ConfigError(
            f"these boards cannot be merged: {shown}{more}", where=out, key=refused[0][0], fix=fix
        )
    references = list(dict.fromkeys(f.reference for f in frames.values() if f.reference is not None))
    if len(references) > 1:
        notes.append(f"differences are from {references[0]}, and not from {', '.join(references[1:])}")
    margins = list(dict.fromkeys(f.margin for f in frames.values() if f.margin is not None))
    if len(margins) > 1:
        others = ", ".join(f"{margin:g}" for margin in margins[1:])
        notes.append(f"non-inferiority is by a margin of {margins[0]:g}, and not of {others}")
    scored = {*kept, *((cell.model, cell.dataset, cell.task) for _, cell in tasks)}
    failures = (f for frame in frames.values() for f in frame.failed if _key(f) not in scored)
    failed = {(_key(f), f.reason): f for f in failures}  # traces of one failure may differ
    whole = Frame(
        rows=list(given.values()),
        failed=list(failed.values()),
        reference=references[0] if references else None,
        margin=margins[0] if margins else None,
        merged_from=list(folders),
    )
    for folder, stored in kept.values():
        _copy(folder, stored.result.cell, out)
    for folder, cell in tasks:
        _copy(folder, cell.cell, out)
    write_tasks(out, [cell for _, cell in tasks])
    rows = rows_of(out, whole, {stored.result.cell: stored for _, stored in kept.values()})
    return Merged(write_board(out, rows, whole), len(rows) + len(tasks), notes)


def _tasks(folders: Sequence[str]) -> tuple[list[tuple[str, TaskCell]], list[tuple[str, str]]]:
    """((folder, cell) of each task, (field, what is different) of those that cannot be merged)."""
    kept: dict[Key, tuple[str, TaskCell]] = {}
    columns: dict[tuple[str, str], tuple[str, TaskCell]] = {}
    refused = []
    for folder in folders:
        for cell in read_tasks(folder):
            try:
                check_task(folder, cell)
            except DamagedCellError as error:
                what, fix = f"{row_name(cell)} cannot be used: {error}", "run his2lip benchmark there again"
                raise ConfigError(what, where=folder, key=cell.cell, fix=fix) from None
            first, other = kept.setdefault((cell.model, cell.dataset, cell.task), (folder, cell))
            place, same_column = columns.setdefault((cell.dataset, cell.task), (folder, cell))
            pairs = [(first, other, _OF_TASK), (place, same_column, _OF_TASK_COLUMN)]
            refused += [
                (name, f"{row_name(cell)}: another {name} in {folder} than in {where}")
                for where, known, names in pairs
                for name in names
                if getattr(known, name) != getattr(cell, name) and where != folder
            ]
    return list(kept.values()), list(dict.fromkeys(refused))


def _check_out(folders: Sequence[str], out: str) -> None:
    """Raises ConfigError where `out` has a board that is not a merged one, which would be lost."""
    system, path = filesystem(out)
    with answers(out):
        files = system.get_file_info([f"{path}/leaderboard.csv", f"{path}/{FRAME}"])
    is_board = any(found.is_file for found in files)
    if is_board and (Path(out) in map(Path, folders) or not Frame.read(out).merged_from):
        what = "this folder has the board of a benchmark, which would be replaced"
        raise ConfigError(what, where=out, key="--out", fix="name another folder with --out")


def _key(failure: CellFailure) -> Key:
    return failure.model, failure.dataset, failure.protocol


def _stored(folder: str, row: Mapping[str, Any]) -> StoredCell:
    try:
        return read_cell(folder, row["cell"], row)
    except DamagedCellError as error:
        what = f"the grid cell of {row_name(row)} cannot be used: {error}"
        fix = "run his2lip benchmark there again"
        raise ConfigError(what, where=folder, key=row["cell"], fix=fix) from None


def _other_inputs(one: StoredCell, other: StoredCell) -> list[tuple[str, str]]:
    """(field, what is different) of two grid cells of one model, dataset and protocol."""
    if one.result.split != other.result.split:
        return [("split", f"another split ({other.result.split}, not {one.result.split})")]
    found = [
        (name, f"another digest of {what} ({name})" if name.endswith("sha256") else f"another {what}")
        for what, name in _OF_CELL.items()
        if getattr(one.result, name) != getattr(other.result, name)
    ]
    versions = one.evidence.code_version, other.evidence.code_version
    if versions[0] != versions[1]:
        found.append(("code_version", f"another code version ({versions[1]}, not {versions[0]})"))
    if one.evidence.fit != other.evidence.fit:
        found.append(("calibration", "another calibration"))
    if not found and one.result.cell != other.result.cell:
        found.append(("cell", "another protocol or further prompts (cell)"))
    return found


def _other_predictions(
    row: Mapping[str, Any], one: StoredCell, other: StoredCell, *, folder: str, first: str
) -> list[str]:
    """A note where the same inputs gave other predictions, as rounding on another machine can."""
    by_unit = (cell.predictions.sort_by("patch_id")["predicted"].to_pylist() for cell in (one, other))
    pairs = zip(*by_unit, strict=True)
    changed = sum(a != b for a, b in pairs)
    if not changed:
        return []
    what = f"{changed} of {len(one.predictions)} units are predicted otherwise in {folder}"
    return [f"{row_name(row)}: {what}; those of {first} are used"]


def _other_weights(rows: Sequence[tuple[str, CellResult | TaskCell]]) -> list[tuple[str, str]]:
    """(field, what is different) of models whose mean over datasets would be that of several models."""
    found = []
    first: dict[str, tuple[str, CellResult | TaskCell]] = {}
    for folder, row in rows:
        where, known = first.setdefault(row.model, (folder, row))
        if folder != where and row.weights_sha256 != known.weights_sha256:
            what = "another digest of weights (weights_sha256)"
            what += f" in {folder} than for {row_name(known)} in {where}"
            found.append(("weights_sha256", f"{row_name(row)}: {what}"))
    return found


def _mixed_columns(kept: Mapping[Key, tuple[str, StoredCell]]) -> list[tuple[str, str]]:
    """(field, what is different) of models that would share a column without sharing its data and prompts."""
    found = []
    first: dict[tuple[str, str, str], tuple[str, CellResult]] = {}  # dataset, protocol, field
    for folder, stored in kept.values():
        result = stored.result
        names = _OF_DATA | {"protocol version": "protocol_version"}
        # Baselines and probes read no prompts, and a control has its own.
        if result.prompts_sha256 is not None and not result.is_baseline:
            names["prompts"] = "prompts_sha256"
        for what, name in names.items():
            where, other = first.setdefault((result.dataset, result.protocol, name), (folder, result))
            if getattr(result, name) != getattr(other, name) and folder != where:
                different = f"another digest of {what}" if name.endswith("sha256") else f"another {what}"
                found.append(
                    (
                        name,
                        f"{result.dataset} ({result.protocol}): {different} ({name}) for {result.model} in "
                        f"{folder} than for {other.model} in {where}",
                    )
                )
    return found


def _copy(folder: str, identity: str, out: str) -> None:
    """Copies a stored grid cell; cell.json is last, which marks it as finished."""
    source, base = filesystem(cell_folder(folder, identity))
    target, place = filesystem(cell_folder(out, identity))
    with answers(folder):
        names = [found.base_name for found in source.get_file_info(FileSelector(base))]
    names = [name for name in names if not name.endswith(".tmp")]  # of a write at work, or that was killed
    for name in sorted(names, key=lambda name: name == "cell.json"):
        data = read_file(source, f"{base}/{name}")
        with answers(out):
            write_file(target, f"{place}/{name}", data)
