"""Fresh MLflow stores, copied from an empty one: MLflow takes seconds to create its tables."""

from __future__ import annotations

import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loopback import on_loopback

if TYPE_CHECKING:
    from his2lip.tracking import Tracker


def new_store(folder: Path) -> str:
    """The URI of an empty SQLite store in `folder`, which is created where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "mlflow.db"
    with closing(sqlite3.connect(_empty())) as empty, closing(sqlite3.connect(file)) as copy:
        empty.backup(copy)
    return f"sqlite:///{file}"


def without_patience(tracker: Tracker) -> Tracker:
    """The SQLite store, whose sessions wait 0.1 s for another process's lock; MLflow makes them wait 20 s."""
    from sqlalchemy import event

    def shortened(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> tuple[str, Any]:
        return statement.replace("busy_timeout = 20000", "busy_timeout = 100"), parameters

    event.listen(
        tracker.client._tracking_client.store.engine, "before_cursor_execute", shortened, retval=True
    )
    return tracker


@contextmanager
def mlflow_on_loopback(folder: Path) -> Iterator[str]:
    """The URL of an `mlflow server` with a new SQLite store in `folder`, on a free loopback port."""
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
    command += ["--backend-store-uri", new_store(folder)]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with on_loopback(command, cwd=folder) as url:
        yield url


@cache
def _empty() -> Path:
    """The file of a store that Tracker.open has created, one per process."""
    import mlflow

    from his2lip.tracking import Tracker

    file = Path(_FOLDER.name, "mlflow.db")
    Tracker.open(f"sqlite:///{file}")
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # the process's own default again
    return file


_FOLDER = tempfile.TemporaryDirectory(prefix="his2lip-store-")
