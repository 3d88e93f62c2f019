"""What can be removed from a storage without losing a result: found here, removed only on request."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR, S_ISLNK
from typing import Any, Literal

from his2lip.config import read_yaml
from his2lip.errors import ConfigError, His2lipError, RunError
from his2lip.evaluation import read_results, read_tasks
from his2lip.files import below, discard, is_locked, set_aside
from his2lip.models import folder_of, previous_folder
from his2lip.training import RunDir

Kind = Literal["features", "checkpoint", "run", "copy", "leftover"]
DEFAULT: tuple[Kind, ...] = ("checkpoint", "run", "leftover")
KINDS: tuple[Kind, ...] = (*DEFAULT, "features", "copy")  # the last two cost work or a download to have again
_OURS = ("train", "tune", "benchmark", "shards", "captions", "registered")  # of a storage, beside its cache
# Names that we write: of files, and of the folders of checkpoints that were being written or fetched.
_SET_ASIDE = r"^\..+\.[0-9a-f]{8}\.old\.tmp$"
_LEFT = re.compile(rf"{_SET_ASIDE}|\.[0-9a-f]{{32}}\.tmp$|^part-[0-9a-f]{{32}}\.parquet\.damaged$")
_LEFT_FOLDER = re.compile(rf"{_SET_ASIDE}|^\..+\.[0-9a-f]{{8}}\.tmp$|^\.fetch-")
_LOCK = ".lock"  # of a run
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
    storage: Path,
    *,
    days: float,
    needed: Collection[str] | None,
    cache: Path | None = None,
    shared_with: Collection[Path] = (),
    now: float | None = None,
) -> list[Item]:
    """What no result of `storage` needs, the largest first.

    days    a run, features and a copy are listed where they were not touched for so long
    needed  the paths of models that MLflow refers to; None where the store cannot be asked, and only
            leftovers and features are listed then
    cache   the folder of cached features; default: `cache` of the storage
    shared_with  further storages whose boards use this cache
    now     seconds since 1970; default: the present time

    Kept are also the models that a board, a run or a sweep of the storage names, what a command has locked,
    and everything behind a symbolic link.
    """
    at = time.time() if now is None else now
    named = _named(storage)
    kept = None if needed is None or named is None else {_resolved(path) for path in (*needed, *named)}
    cache = storage / "cache" if cache is None else cache
    found = [*_features(cache, (storage, *shared_with), at), *_leftovers(storage, cache, at)]
    if kept is not None:
        found += [*_checkpoints(storage, kept, at), *_unfinished(storage, kept, at)]
        copies = (path for path in _folders(storage / "registered") if path.resolve() not in kept)
        found += [_item("copy", path, at, "copied from MLflow") for path in copies]
    aged = ("run", "features", "copy")
    found = [item for item in found if item.kind not in aged or item.age_s >= days * 86_400]
    return sorted(found, key=lambda item: -item.size)


def remove(item: Item) -> None:
    """Removes an item. Raises RunError where a command uses it, or has used it since it was listed."""
    if item.kind not in ("run", "checkpoint"):
        discard(item.path)
        return
    run = RunDir(item.path if item.kind == "run" else item.path.parent)
    with run.locked():
        state = run.read()
        if state is None or (state["status"] == "finished") != (item.kind == "checkpoint"):
            raise RunError("a command has used this meanwhile", where=item.path, fix="run gc again")
        taken = set_aside(item.path)
        (taken / _LOCK).unlink(missing_ok=True)  # of a run: who opened it meanwhile sees that it is gone
    discard(taken)


def _named(storage: Path) -> set[str] | None:
    """Every text of the boards, runs and sweeps of a storage, models' paths among them.

    None where one is damaged.
    """
    found: set[str] = set()
    for pattern in ("benchmark/*/board.json", "train/*/run.json", "tune/*/sweep.yaml"):
        for file in storage.glob(pattern):
            try:
                if file.suffix == ".json":
                    found |= _texts(json.loads(file.read_text(encoding="utf-8")))
                else:
                    found |= _texts(read_yaml(file))
            except (OSError, ValueError, ConfigError):
                return None
    return found


def _texts(tree: Any) -> set[str]:
    if isinstance(tree, str):
        return {tree} if len(tree) < 4096 and "\n" not in tree and "\0" not in tree else set()
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return {text for part in parts for text in _texts(part)}


def _resolved(path: str) -> Path:
    try:
        return Path(folder_of(path)).resolve()
    except (OSError, ValueError):  # a text that is no path
        return Path("/nowhere")


def caches_of(storage: Path) -> list[str]:
    """The caches that the storage's boards name, without its own folder `cache`."""
    named = set()
    for file in storage.glob("benchmark/*/board.json"):
        with contextlib.suppress(OSError, ValueError, AttributeError, KeyError):
            named.add(str((json.loads(file.read_text(encoding="utf-8"))["config"] or {})["cache"]))
    return sorted(cache for cache in named if _resolved(cache) != (storage / "cache").resolve())


def _features(cache: Path, storages: Sequence[Path], now: float) -> Iterator[Item]:
    """Cached features of encoders that scored no row of a leaderboard; none where one cannot be read."""
    used: set[str] = set()
    for folder in (folder for storage in storages for folder in _folders(storage / "benchmark")):
        try:
            used |= {row.encoder for row in read_results(folder / "leaderboard.csv")}
            used |= {key for task in read_tasks(folder) for key in (task.encoder, *task.further_encoders)}
        except (His2lipError, OSError):  # unfinished or damaged: it may need any of them
            return
    for folder in _folders(cache / "images"):
        if folder.name not in used:
            yield _item("features", folder, now, "no row of a board was scored with them")


def _checkpoints(storage: Path, needed: Collection[Path], now: float) -> Iterator[Item]:
    for run, state in _runs(storage):
        if "result" not in state or not run.best.is_dir() or is_locked(run.path / _LOCK):
            continue
        for path in (run.last, *map(previous_folder, (run.last, run.best))):  # a kill in a save leaves these
            if path.is_dir() and not path.is_symlink() and path.resolve() not in needed:
                yield _item("checkpoint", path, now, "its run is finished, and `best` is kept")


def _unfinished(storage: Path, needed: Collection[Path], now: float) -> Iterator[Item]:
    for run, state in _runs(storage):
        inside = any(path.is_relative_to(run.path.resolve()) for path in needed)
        if state.get("status") != "finished" and not inside and not is_locked(run.path / _LOCK):
            yield _item("run", run.path, now, "unfinished")


def _leftovers(storage: Path, cache: Path, now: float) -> Iterator[Item]:
    """What killed commands left of files and checkpoints, and damaged parts that were set aside."""
    for folder in (*(storage / name for name in _OURS), cache):
        for path, stat in below(folder):
            left = _LEFT_FOLDER if S_ISDIR(stat.st_mode) else _LEFT
            if left.search(path.name) and not S_ISLNK(stat.st_mode):
                item = _item("leftover", path, now, "not whole, and never read")
                if item.age_s >= _BEING_WRITTEN_S:
                    yield item


def _runs(storage: Path) -> Iterator[tuple[RunDir, dict[str, Any]]]:
    for folder in _folders(storage / "train"):
        run = RunDir(folder)
        try:
            state = run.read()
        except RunError:  # damaged: the command of the run says what to do
            continue
        if state is not None:
            yield run, state


def _folders(parent: Path) -> list[Path]:
    """The folders in `parent`, without hidden ones and links."""
    if not parent.is_dir():
        return []
    found = (path for path in parent.iterdir() if not path.name.startswith("."))
    return sorted(path for path in found if path.is_dir() and not path.is_symlink())


def _item(kind: Kind, path: Path, now: float, why: str) -> Item:
    # Some versions of filelock change the time of a lock that is only tried.
    found = [stat for file, stat in below(path) if file.name != _LOCK]
    with contextlib.suppress(FileNotFoundError):
        found.append(path.lstat())
    size = sum(stat.st_size for stat in found if not S_ISDIR(stat.st_mode))
    latest = max((stat.st_mtime for stat in found), default=now)
    return Item(kind, path, size, max(0.0, now - latest), why)
