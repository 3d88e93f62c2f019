"""`models:/NAME@ALIAS`: the checkpoint that `his2lip models promote` put into MLflow's registry."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

from his2lip.config import digest
from his2lip.errors import CheckpointError, ModelError, first_line
from his2lip.models.provenance import META, is_checkpoint, read_meta
from his2lip.resources import sqlite_file, store_uri

SCHEME = "models:/"
CHECKPOINT = "checkpoint"  # the artifact's name inside the MLflow model
_INSIDE = f"artifacts/{CHECKPOINT}"  # where MLflow puts an artifact of that name
_FORM = re.compile(r"models:/[^/@]+(@[^/@]+|/\d+)")
_FIX = "his2lip models list shows what it has; MLFLOW_TRACKING_URI names another store"


def fetch_checkpoint(uri: str, folder: str | Path) -> Path:
    """A copy of the checkpoint that `uri` names, inside `folder`, named by what it says of itself.

    Raises ModelError where MLflow has no such model, CheckpointError where it is none of ours.
    """
    with _scratch(folder) as scratch:
        identity = digest(read_meta(_download(uri, META, scratch).parent))
    place = Path(folder) / identity[:16]
    if not is_checkpoint(place):
        with _scratch(folder) as scratch:
            os.rename(_download(uri, "", scratch), place)
    return place


def local_name(name: str, storage: str) -> str:
    """What other processes load: of a registered model a copy of its checkpoint in `storage`, else `name`.

    Pins what an alias means now. A `storage` that is no folder leaves the fetching to each process.
    """
    if not name.startswith(SCHEME) or "://" in storage:
        return name
    return str(fetch_checkpoint(name, Path(storage).absolute() / "registered"))


def meta_of(name: str) -> dict[str, Any]:
    """`his2lip.json` of the checkpoint that a model's name stands for; empty for one that is none of ours."""
    if name.startswith(SCHEME):
        with tempfile.TemporaryDirectory(prefix="his2lip-") as scratch:
            return read_meta(_download(name, META, scratch).parent)
    folder = name.removeprefix("local-dir:")
    return read_meta(folder) if is_checkpoint(folder) else {}


def _scratch(folder: str | Path) -> tempfile.TemporaryDirectory[str]:
    Path(folder).mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder)


def _download(uri: str, path: str, scratch: str) -> Path:
    """A file of the checkpoint inside a registered model, or all of it for an empty `path`."""
    if not _FORM.fullmatch(uri):
        raise ModelError(
            f"'{uri}' names no registered model", fix="write models:/NAME@ALIAS or models:/NAME/3"
        )
    store = store_uri()
    file = sqlite_file(store)
    if file is not None and not file.is_file():
        raise ModelError(f"'{uri}' is in MLflow, and there is no MLflow store here", where=store, fix=_FIX)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow

    # An alias is looked up in MLflow's current store, whichever one the call below is given.
    mlflow.set_tracking_uri(store)
    inside = f"{uri}/{_INSIDE}/{path}".rstrip("/")
    try:
        return Path(mlflow.artifacts.download_artifacts(inside, dst_path=scratch))
    except mlflow.exceptions.MlflowException as error:
        raise ModelError(f"MLflow has no such model: {first_line(error)}", where=uri, fix=_FIX) from error
    except OSError:
        raise CheckpointError("this registered model carries no his2lip checkpoint", where=uri) from None
