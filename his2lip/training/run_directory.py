"""The folder of a run: its state (run.json), its lock, and its two checkpoints."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from his2lip.config import sealed, unsealed
from his2lip.errors import RunError
from his2lip.files import locked, writing

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
        self.path.mkdir(parents=True, exist_ok=True)
        busy = RunError(
            "another command is running this run",
            where=self.path,
            fix="wait for it, or give this run another name",
        )
        with locked(self.path / _LOCK, busy=busy):
            yield

    def clear(self) -> None:
        """Removes the files of earlier runs. Raises RunError where the folder is not that of a run."""
        others = [path.name for path in self.path.iterdir() if not path.name.startswith((".", _STATE))]
        if others and not (self.path / _STATE).exists():
            what = f"this folder has no run, but {min(others)}, which --fresh would remove"
            raise RunError(what, where=self.path, key="name", fix="give this run another name or storage")
        for path in sorted(self.path.iterdir(), key=lambda path: path.name == _STATE):  # run.json last
            if path.name != _LOCK:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def remove_unfinished(self) -> None:
        """Removes checkpoints that a killed process had not finished writing."""
        for path in self.path.glob(".*.tmp"):
            shutil.rmtree(path, ignore_errors=True)


def refuse_object_store(storage: str) -> None:
    """Raises RunError where `storage` is the URI of an object store, which runs and sweeps cannot use."""
    if "://" in storage:
        what = "runs and sweeps need a folder, because an object store has no locks against a second command"
        fix = "give a path that all nodes share; shards, caches and benchmarks can be on an object store"
        raise RunError(what, where=storage, key="storage", fix=fix)


def start_or_resume(
    run: RunDir, *, identity: Mapping[str, Any], fresh: bool, say: Callable[[str], None]
) -> dict[str, Any]:
    """The content of run.json: new, or of an earlier run that is unfinished or finished (its `status`).

    `identity` has the run's inputs (`made_of`), their digest (`id`) and the code version. The caller has the
    lock. Raises RunError where a run of this name has other inputs and has saved a checkpoint; a run without
    any checkpoint is replaced.
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
            key="name",
            fix="give this run another name (name=…), or start again with --fresh",
        )
    if state["status"] == "finished":
        say(f"run '{run.path.name}' was finished before; nothing was run (--fresh starts again)")
        return state
    run.remove_unfinished()
    if state["code_version"] != identity["code_version"]:
        say(
            f"run '{run.path.name}' was started with code version {state['code_version']} and is resumed "
            f"with {identity['code_version']}"
        )
    return state


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
