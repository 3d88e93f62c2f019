"""The address of the MLflow store, and the paths in a SQLite store that was moved; without mlflow."""

from __future__ import annotations

import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from his2lip.resources import STORAGE

DEFAULT_STORE = f"sqlite:///{STORAGE}/mlflow.db"
ARTIFACTS = "artifacts"  # folder of a SQLite store's artifacts, beside its file
# Columns of MLflow's SQLite stores that contain absolute paths.
_PATH_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("logged_model_tags", "tag_value"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
_log = logging.getLogger(__name__)


def store_uri(uri: str | None = None) -> str:
    """`uri` where it is given, else MLFLOW_TRACKING_URI, else `runs/mlflow.db` in the current folder."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_STORE


def sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite store; None for any other store."""
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]) if uri.startswith("sqlite:///") else None


def relocate_store(file: Path) -> None:
    """Corrects the paths in a SQLite MLflow store whose folder was moved or copied.

    MLflow records absolute paths. Those in the folder where the store was before become paths in its present
    folder; all others stay. Does nothing for a store that was not moved, or that is not there yet.
    """
    if not file.is_file():
        return
    folder = file.resolve().parent  # of the file itself, where the store is reached through a link
    with closing(sqlite3.connect(file, timeout=60)) as database, database:
        try:
            locations = database.execute("SELECT name, artifact_location FROM experiments").fetchall()
        except sqlite3.DatabaseError:  # not a store, or one without tables yet
            return
        # Artifacts of our experiments are in FOLDER/artifacts/NAME.
        ends = [(location or "", f"/{ARTIFACTS}/{name}") for name, location in locations]
        befores = {location.removesuffix(end) for location, end in ends if location.endswith(end)}
        for before in sorted(befores - {folder.as_uri()}):
            old = _path_of(before)
            if old.exists() and old.samefile(folder):  # the same folder by another path
                continue
            _replace_paths(database, {before: folder.as_uri(), str(old): str(folder)})
            _log.warning("the MLflow store %s was in %s before; its paths are corrected", file, old)


def _path_of(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path)) if uri.startswith("file:") else Path(uri)


def _replace_paths(database: sqlite3.Connection, folders: dict[str, str]) -> None:
    for table, column in _PATH_COLUMNS:
        known = {row[1] for row in database.execute(f"PRAGMA table_info({table})")}
        for before, after in folders.items() if column in known else ():
            database.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                (after, len(before) + 1, len(before) + 1, f"{before}/"),
            )
