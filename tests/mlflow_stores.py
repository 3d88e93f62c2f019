"""Fresh MLflow stores, copied from an empty one: MLflow takes seconds to create its tables."""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import closing
from functools import cache
from pathlib import Path


def new_store(folder: Path) -> str:
    """The URI of an empty SQLite store in `folder`, which is created where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "mlflow.db"
    with closing(sqlite3.connect(_empty())) as empty, closing(sqlite3.connect(file)) as copy:
        empty.backup(copy)
    return f"sqlite:///{file}"


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
