"""What can be removed from a storage without losing a result: found here, removed only on request."""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from his2lip.errors import His2lipError, RunError
from his2lip.evaluation import read_results, read_tasks
from his2lip.files import locked
from his2lip.resources import ARTIFACTS
from his2lip.training import RunDir

Kind = Literal["features", "checkpoint", "run", "copy", "leftover"]
MEANINGS: dict[Kind, str] = {
    "features": "cached embeddings of models that are on no leaderboard of this storage",
    "checkpoint": "the state to resume from of finished runs",
    "run": "training runs that are unfinished and were not touched for some days",
    "copy": "copies of registered models, which a benchmark makes again when it needs them",
    "leftover": "files that a killed process was writing",
}
_BEING_WRITTEN_S = 3600.0  # younger temporary files may belong to a process at work


@dataclass(frozen=True)
class Item:
    """A file or folder that can be removed.

    size    bytes, of all files below it
    age_s   seconds since a file below it was last written
    why     what makes it superfluous
    """

    kind: Kind
    path: Path
    size: int
    age_s: float
    why: str


def superfluous(
    storage: Path, *, days: float, needed: Collection[Path] | None, now: float | None = None
) -> list[Item]:
    """What no result of `storage` needs, the largest first.

    days    an unfinished run is listed where it was not touched for so long
    needed  checkpoints that a model in MLflow refers to, which are kept; None where the store cannot be
            asked, and no checkpoint and no run is listed then
    now     seconds since 1970; default: the present time

    What a command at work has locked is not listed.
    """
    at = time.time() if now is None else now
    kept = None if needed is None else {path.resolve() for path in needed}
    found = [
        *_features(storage, at),
        *(() if kept is None else _checkpoints(storage, kept, at)),
        *(() if kept is None else _unfinished(storage, kept, days, at)),
        *(_item("copy", path, at, "copied from MLflow") for path in _folders(storage / "registered")),
        *_leftovers(storage, at),
    ]
    return sorted(found, key=lambda item: -item.size)


def remove(item: Item) -> None:
    """Removes an item. Raises RunError where a command has begun to use it meanwhile."""
    lock = item.path / ".lock" if item.kind == "run" else item.path.parent / ".lock"
    busy = RunError("a command is using this now", where=item.path, fix="run gc again later")
    if item.kind in ("run", "checkpoint") and lock.exists():
        with locked(lock, busy=busy):
            _delete(item.path)
    else:
        _delete(item.path)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _features(storage: Path, now: float) -> Iterator[Item]:
    """Cached features of encoders that scored no row of a leaderboard; of all where one cannot be read."""
    used: set[str] = set()
    for board in storage.glob("benchmark/*/leaderboard.csv"):
        try:
            used |= {row.encoder for row in read_results(board)}
            tasks = read_tasks(board.parent)
            used |= {key for cell in tasks for key in (cell.encoder, *cell.further_encoders)}
        except His2lipError:  # a board that cannot be read may use any of them
            return
    for folder in _folders(storage / "cache/images"):
        if folder.name not in used:
            yield _item("features", folder, now, "its model is on no leaderboard")


def _checkpoints(storage: Path, needed: Collection[Path], now: float) -> Iterator[Item]:
    for run, state in _runs(storage):
        last = run.last
        if state.get("status") != "finished" or not last.is_dir() or not run.best.is_dir():
            continue
        if last.resolve() not in needed and not _busy(run):
            yield _item("checkpoint", last, now, "its run is finished, and `best` is kept")


def _unfinished(storage: Path, needed: Collection[Path], days: float, now: float) -> Iterator[Item]:
    for run, state in _runs(storage):
        inside = any(path.is_relative_to(run.path.resolve()) for path in needed)
        if state.get("status") == "finished" or inside or _busy(run):
            continue
        item = _item("run", run.path, now, f"unfinished, and not touched for {days:g} days")
        if item.age_s >= days * 86_400:
            yield item


def _leftovers(storage: Path, now: float) -> Iterator[Item]:
    """Temporary files and damaged parts that were set aside; MLflow's artifacts are not ours."""
    for pattern in ("**/*.tmp", "**/*.damaged"):
        for path in storage.glob(pattern):
            if path.relative_to(storage).parts[0] == ARTIFACTS:
                continue
            item = _item("leftover", path, now, "not whole, and never read")
            if item.age_s >= _BEING_WRITTEN_S:
                yield item


def _runs(storage: Path) -> Iterator[tuple[RunDir, dict]]:
    for folder in _folders(storage / "train"):
        run = RunDir(folder)
        try:
            state = run.read()
        except RunError:  # damaged: the command of the run says what to do
            continue
        if state is not None:
            yield run, state


def _busy(run: RunDir) -> bool:
    lock = run.path / ".lock"
    if not lock.exists():
        return False
    try:
        with locked(lock, busy=RunError("in use")):
            return False
    except RunError:
        return True


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []


def _item(kind: Kind, path: Path, now: float, why: str) -> Item:
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    size, latest = 0, 0.0
    for file in files:
        try:
            stat = file.lstat()
        except OSError:  # removed meanwhile
            continue
        size += 0 if file.is_dir() else stat.st_size
        latest = max(latest, stat.st_mtime)
    return Item(kind, path, size, max(0.0, now - latest), why)
