"""A run's directory: what it is made of, whether it is finished, and who is at work in it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import his2lip
from his2lip.errors import RunError
from his2lip.files import locked

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

    def read(self) -> dict[str, Any] | None:
        """run.json, or None where no run has begun here. Raises RunError for a broken one."""
        try:
            tree = json.loads((self.path / _STATE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError:
            tree = None
        if not isinstance(tree, dict) or not tree.keys() >= {"id", "status", "code_version"}:
            raise RunError("run.json is broken", where=self.path, fix="start anew with --fresh")
        return tree

    def write(self, tree: Mapping[str, Any]) -> None:
        """Replaces run.json; a reader sees the old one or the new one, whole."""
        new = self.path / f"{_STATE}.tmp"
        with new.open("w", encoding="utf-8") as file:
            file.write(json.dumps(tree, indent=1, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self.path / _STATE)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps a second command out; the lock goes with its process, however that ends."""
        self.path.mkdir(parents=True, exist_ok=True)
        busy = RunError(
            "another command is at work on this run",
            where=self.path,
            fix="wait for it, or give this run another name",
        )
        with locked(self.path / _LOCK, busy=busy):
            yield

    def clear(self) -> None:
        """Removes all that earlier runs left here. Raises RunError where the folder is not a run's."""
        foreign = [path.name for path in self.path.iterdir() if not path.name.startswith((".", _STATE))]
        if foreign and not (self.path / _STATE).exists():
            said = f"this folder holds no run, but {min(foreign)}, which --fresh would remove"
            raise RunError(said, where=self.path, fix="give this run another name or storage")
        for path in sorted(self.path.iterdir(), key=lambda path: path.name == _STATE):  # the state last
            if path.name != _LOCK:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def sweep(self) -> None:
        """Removes checkpoints that a killed process was still writing."""
        for path in self.path.glob(".*.tmp"):
            shutil.rmtree(path, ignore_errors=True)


def refuse_object_store(storage: str) -> None:
    """Raises RunError where runs and sweeps were to be kept in an object store."""
    if "://" in storage:
        what, fix = "runs are kept in a folder so far", "give a path that all nodes share"
        raise RunError(what, where=storage, fix=fix)


def begin(
    run: RunDir, *, identity: Mapping[str, Any], fresh: bool, say: Callable[[str], None]
) -> dict[str, Any]:
    """The state to go on from: a new one, an unfinished one, or a finished one (its `status` says so).

    `identity` holds `id`, what it is the digest of (`made_of`), and the code version. Wants `run.locked()`.
    Raises RunError where the name is in use by a run that is made of something else and has saved anything:
    one that was refused, or stopped before its first checkpoint, leaves nothing to lose.
    """
    if fresh:
        run.clear()
    state = run.read()
    if state is not None and state["id"] != identity["id"] and not (run.best.exists() or run.last.exists()):
        run.clear()
        state = None
    if state is None:
        state = {**identity, "status": "running"}
        run.write(state)
        return state
    if state["id"] != identity["id"]:
        raise RunError(
            f"the name '{run.path.name}' is in use by a run with other {_difference(state, identity)}",
            where=run.path,
            fix="give this run another name (name=…), or start anew with --fresh",
        )
    if state["status"] == "finished":
        say(f"run '{run.path.name}' was finished before; nothing was run (--fresh starts anew)")
        return state
    run.sweep()
    if state["code_version"] != identity["code_version"]:
        say(
            f"going on with run '{run.path.name}', which began with code version {state['code_version']}; "
            f"this is {identity['code_version']}"
        )
    return state


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What differs between two identities, in the user's words: dotted keys of the config, or the data."""
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


@lru_cache(maxsize=1)
def code_version() -> str:
    """The package's version and a digest of its sources: an edited checkout is told from a release."""
    root = Path(his2lip.__file__).parent
    whole = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        whole.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return f"{his2lip.__version__}+{whole.hexdigest()[:12]}"
