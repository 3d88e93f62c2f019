"""The folder of a run, or its objects on an object store: its state (run.json), and its two checkpoints."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from his2lip.config import digest, sealed, unsealed
from his2lip.errors import CheckpointError, RunError
from his2lip.files import (
    discard,
    fetch_file,
    filesystem,
    locked,
    own_folder,
    remove_file,
    store_file,
    writing,
)
from his2lip.models import current_folder, fetch_stored, read_steady, store_checkpoint
from his2lip.runtime import session_folder

_STATE, _LOCK = "run.json", ".lock"


@dataclass(frozen=True)
class RunDir:
    """storage/train/NAME: run.json, and the checkpoints `best` and `last`."""

    path: Path

    @property
    def best(self) -> Path:
        return self.path / "best"

    @property
    def last(self) -> Path:
        return self.path / "last"

    @property
    def saved(self) -> bool:
        """Whether a checkpoint is there, also one that a killed process was about to replace."""
        return any(current_folder(folder).exists() for folder in (self.best, self.last))

    @property
    def shared(self) -> str:
        """The path or URI that all nodes see."""
        return str(self.path)

    def address(self, name: str) -> str:
        """The name by which other commands load the checkpoint `name`."""
        return str(self.path / name)

    def keep(self, name: str) -> None:
        """Stores the checkpoint `name`, which was just written, where the run is; here, it is there."""

    def fetch(self) -> None:
        """Brings the run's checkpoints to this process; here, it sees them."""

    def copy_best(self, to: Path) -> None:
        """Copies the present checkpoint `best` to `to`, which does not exist."""
        from his2lip.models import copy_checkpoint  # imports open_clip, which Ray's controller does not need

        copy_checkpoint(self.best, to)

    @contextmanager
    def in_worker(self, rank: int) -> Iterator[RunDir]:
        """The run as the worker of a rank works on it, on any node."""
        yield self

    def read(self) -> dict[str, Any] | None:
        """The content of run.json, or None without the file. Raises RunError where it is damaged."""
        try:
            tree = unsealed(json.loads((self.path / _STATE).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, AttributeError):
            tree = {}
        if not tree.keys() >= {"id", "status", "code_version"}:
            raise RunError("run.json is damaged", where=self.path / _STATE, fix="start again with --fresh")
        return tree

    def write(self, tree: Mapping[str, Any]) -> None:
        """Replaces run.json atomically. Raises StorageError where the disk is full."""
        new = self.path / f"{_STATE}.tmp"
        with writing("the state of this run", self.path / _STATE):
            with new.open("w", encoding="utf-8") as file:
                file.write(json.dumps(sealed(tree), indent=1, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, self.path / _STATE)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the folder against a second command. Raises RunError where another one has the lock.

        The system releases the lock when the process ends, also when it is killed.
        """
        busy = RunError(
            "another command is running this run",
            where=self.path,
            fix="wait for it, or give this run another name",
        )
        with locked(self.path / _LOCK, busy=busy):
            yield

    def clear(self) -> None:
        """Removes the files of earlier runs. Raises RunError where the folder is not that of a run.

        A worker that outlives its command may give the checkpoint that it was writing its name meanwhile, so
        the folder is looked at twice.
        """
        others = [path.name for path in self.path.iterdir() if not path.name.startswith((".", _STATE))]
        if others and not (self.path / _STATE).exists():
            what = f"this folder has no run, but {min(others)}, which --fresh would remove"
            raise RunError(what, where=self.path, key="name", fix="give this run another name or storage")
        for _ in range(2):
            for path in sorted(self.path.iterdir(), key=lambda path: path.name == _STATE):  # run.json last
                if path.name != _LOCK:
                    discard(path)

    def remove_unfinished(self) -> None:
        """Removes what a killed process had not finished writing or removing.

        A worker that outlives its driver may be about to give a checkpoint its name. It is renamed first: the
        worker then fails, or has its whole checkpoint, which is left alone.
        """
        for path in self.path.glob(".*.tmp"):
            with suppress(OSError):
                discard(path)


@dataclass(frozen=True)
class StoredRun(RunDir):
    """A run on an object store: run.json, best.tar and last.tar below `place`, each replaced as a whole.

    `path` is a folder of this process for its work, which is removed when the process ends. There is no lock.
    """

    place: str

    @classmethod
    def open(cls, place: str) -> StoredRun:
        """The run at a URI, with a folder of this process."""
        path = own_folder() / place.rpartition("/")[2]
        path.mkdir()
        return cls(path, place)

    @property
    def shared(self) -> str:
        return self.place

    def address(self, name: str) -> str:
        return f"{self.place}/{name}.tar"

    def keep(self, name: str) -> None:
        store_checkpoint(self.path / name, self.address(name))

    def fetch(self) -> None:
        for folder in (self.best, self.last):
            self._fetch(folder)

    def copy_best(self, to: Path) -> None:
        fetch_stored(self.address(self.best.name), to)

    def _fetch(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        fetch_stored(self.address(folder.name), folder)

    @contextmanager
    def in_worker(self, rank: int) -> Iterator[RunDir]:
        """Works in a folder of Ray's session. What a killed worker of the rank left there is removed."""
        base = session_folder() / "his2lip" / digest(self.place)[:16]
        for left in base.glob(f"{rank}-*"):
            shutil.rmtree(left, ignore_errors=True)
        folder = base / f"{rank}-{uuid.uuid4().hex[:8]}"
        try:
            run = StoredRun(folder / self.path.name, self.place)
            run.path.mkdir(parents=True)
            run._fetch(run.last)
            yield run
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def read(self) -> dict[str, Any] | None:
        system, root = filesystem(self.place)
        with suppress(FileNotFoundError):
            fetch_file(system, f"{root}/{_STATE}", self.path / _STATE)
        return super().read()

    def write(self, tree: Mapping[str, Any]) -> None:
        super().write(tree)
        system, root = filesystem(self.place)
        store_file(system, self.path / _STATE, f"{root}/{_STATE}")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Fetches the run. An object store has no locks: a second command of the same run is not refused."""
        self.fetch()
        yield

    def clear(self) -> None:
        system, root = filesystem(self.place)
        for name in ("best.tar", "last.tar", _STATE):
            remove_file(system, f"{root}/{name}")
        for path in self.path.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def open_run(storage: str, name: str) -> RunDir:
    """The run STORAGE/train/NAME, where `storage` is a folder or the URI of an object store."""
    if "://" in storage:
        return StoredRun.open(f"{storage.rstrip('/')}/train/{name}")
    return RunDir(Path(storage) / "train" / name)


def start_or_resume(
    run: RunDir, *, identity: Mapping[str, Any], fresh: bool, say: Callable[[str], None]
) -> dict[str, Any]:
    """The content of run.json: new, or of an earlier run that is unfinished or finished (its `status`).

    `identity` has the run's inputs (`made_of`), their digest (`id`) and the code version. The caller has the
    lock. Raises RunError where a run of this name has other inputs and has saved a checkpoint, and for
    checkpoints without run.json; a run without any checkpoint is replaced. Raises CheckpointError for a
    `last` from which an unfinished run cannot resume.
    """
    if fresh:
        run.clear()
    state = run.read()
    if state is not None and state["id"] != identity["id"] and not run.saved:
        run.clear()
        state = None
    if state is None and run.saved:  # of whatever inputs
        what = f"this folder has checkpoints, but no {_STATE} that says of which run"
        fix = "give this run another name (name=…), or remove the checkpoints"
        raise RunError(what, where=run.shared, key="name", fix=fix)
    if state is None:
        state = {**identity, "status": "running"}
        run.write(state)
        return state
    if state["id"] != identity["id"]:
        raise RunError(
            f"the name '{run.path.name}' is in use by a run with other {_difference(state, identity)}",
            where=run.path,
            key="name",
            fix="give this run another name (name=…), or start again with --fresh",
        )
    if state["status"] == "finished":
        say(f"run '{run.path.name}' was finished before; nothing was run (--fresh starts again)")
        return state
    run.remove_unfinished()
    _check_last(run, say)
    if state["code_version"] != identity["code_version"]:
        say(
            f"run '{run.path.name}' was started with code version {state['code_version']} and is resumed "
            f"with {identity['code_version']}"
        )
    return state


def _check_last(run: RunDir, say: Callable[[str], None]) -> None:
    """Raises CheckpointError where the run would resume from a `last` that lacks what resuming needs.

    This is also the `best` that the run has chosen so far. Without any `last` it starts at step 0, such as
    after a kill before the first one; a note says so where there is a `best`, which it will replace.
    """
    from his2lip.models import check_resumable  # imports torch, which Ray's controller does not need

    extra = read_steady(run.last, lambda: check_resumable(run.last))
    has_best = current_folder(run.best).exists()
    if (chosen := extra.get("run", {}).get("best_step")) and not has_best:
        what = f"the checkpoint 'best' of this unfinished run, of step {chosen}, is missing"
        fix = "put it back, or start over with --fresh or another name"
        raise CheckpointError(what, where=run.best, key="best", fix=fix)
    if has_best and not current_folder(run.last).exists():
        name = run.path.name
        say(f"run '{name}' has no checkpoint 'last' to resume from: it starts at step 0 and replaces 'best'")


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What differs between two identities: dotted keys of the configuration, data or captions."""
    before, after = _leaves(old.get("made_of", {})), _leaves(new["made_of"])
    keys = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
    names = [k.removeprefix("config.") for k in keys]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "inputs"


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= _leaves(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = value
    return leaves
