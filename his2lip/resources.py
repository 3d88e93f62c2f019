"""Where things are: the cards, prompts, tables and sweeps that the project carries, and the MLflow store."""

from __future__ import annotations

import os
from pathlib import Path

from his2lip.errors import ConfigError

DEFAULT_STORE = "sqlite:///runs/mlflow.db"

_PACKAGE = Path(__file__).resolve().parent


def root() -> Path:
    """The folder that holds `benchmarks/`, `tune/` and `cluster.yaml`."""
    packaged = _PACKAGE / "_resources"
    return packaged if packaged.is_dir() else _PACKAGE.parent


def find(name: str | Path) -> Path:
    """`name` as the user gave it where that exists, else the file of that name that the project carries.

    Raises ConfigError where neither exists.
    """
    given = Path(name)
    if given.exists():
        return given
    carried = root() / given
    if not given.is_absolute() and carried.exists():
        return carried
    raise ConfigError("no such file here or among those that his2lip carries", where=str(name))


def store_uri(uri: str | None = None) -> str:
    """The MLflow store at `uri`, else at MLFLOW_TRACKING_URI, else `runs/mlflow.db` below this folder."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_STORE


def sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite store; None of any other."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None
