"""An object store that is away, refuses, or comes back: fsspec's memory with made-up faults."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

AWAY = "AWS Error NETWORK_CONNECTION during HeadObject operation: Could not connect to server"


class BrokenStore(MemoryFileSystem):
    """Addresses broken://…, whose requests raise `fault` as Arrow does: an OSError that has no number.

    requests  of the kind that `fault` answered so far
    spared    requests that are answered before that
    patience  requests that it answers before the store is there again; None: for good
    """

    protocol = "broken"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    fault: ClassVar[str | None] = None
    requests: ClassVar[int] = 0
    spared: ClassVar[int] = 0
    patience: ClassVar[int | None] = None
    cachable = False

    def _answer(self) -> None:
        kind = BrokenStore
        if kind.fault is None or (kind.patience is not None and kind.requests >= kind.patience):
            return
        if kind.spared:
            kind.spared -= 1
            return
        kind.requests += 1
        raise OSError(kind.fault)

    def info(self, path: str, **more: Any) -> Any:
        self._answer()
        return super().info(path, **more)

    def ls(self, path: str, detail: bool = True, **more: Any) -> Any:
        self._answer()
        return super().ls(path, detail=detail, **more)

    def find(self, path: str, *given: Any, **more: Any) -> Any:
        self._answer()
        return super().find(path, *given, **more)

    def exists(self, path: str, **more: Any) -> bool:  # fsspec takes any error for a no here, and below
        self._answer()
        return bool(super().exists(path, **more))

    def isdir(self, path: str) -> bool:
        self._answer()
        return bool(super().isdir(path))

    def isfile(self, path: str) -> bool:
        self._answer()
        return bool(super().isfile(path))

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        self._answer()
        super().makedirs(path, exist_ok=exist_ok)

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        self._answer()
        super().rm(path, recursive=recursive, maxdepth=maxdepth)

    def rm_file(self, path: str) -> None:
        self._answer()
        super().rm_file(path)

    def _open(self, path: str, *given: Any, **more: Any) -> Any:
        self._answer()
        return super()._open(path, *given, **more)


@contextmanager
def broken_store() -> Iterator[type[BrokenStore]]:
    """The store behind broken://, empty and in order until its `fault` is set."""
    fsspec.register_implementation("broken", BrokenStore, clobber=True)
    BrokenStore.fault, BrokenStore.patience = None, None
    BrokenStore.requests = BrokenStore.spared = 0
    try:
        yield BrokenStore
    finally:
        BrokenStore.store.clear()
        BrokenStore.pseudo_dirs[:] = [""]
        BrokenStore.fault = None
