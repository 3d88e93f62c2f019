"""Where files are: those that his2lip carries, its default storage, and the MLflow store."""

from __future__ import annotations

import os
from pathlib import Path

from his2lip.errors import ConfigError

STORAGE = "runs"  # default folder of runs, sweeps, benchmarks, shards and caches, in the current folder
CACHE = f"{STORAGE}/cache"  # default folder of cached embeddings
DEFAULT_STORE = f"sqlite:///{STORAGE}/mlflow.db"

_PACKAGE = Path(__file__).resolve().parent


def root() -> Path:
    """The folder that holds `benchmarks/`, `tune/` and `cluster.yaml`."""
    packaged = _PACKAGE / "_resources"
    return packaged if packaged.is_dir() else _PACKAGE.parent


def find(name: str | Path) -> Path:
    """`name` itself where it exists, else the file of that name that his2lip carries.

    Raises ConfigError where neither exists.
    """
    given = Path(name)
    if given.exists():
        return given
    carried = root() / given
    if not given.is_absolute() and carried.exists():
        return carried
    what = "there is no such file here, and his2lip does not carry one of that name"
    raise ConfigError(what, where=str(name), fix="check the path")


def store_uri(uri: str | None = None) -> str:
    """`uri` where it is given, else MLFLOW_TRACKING_URI, else `runs/mlflow.db` in the current folder."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_STORE


def sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite store; None for any other store."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None
