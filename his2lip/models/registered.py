"""Checkpoints that are elsewhere: promoted ones in MLflow (`models:/NAME@ALIAS`), and stored objects."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from his2lip.config import digest
from his2lip.errors import CheckpointError, ModelError, first_line
from his2lip.files import absolute, disk_full
from his2lip.mlflow_store import relocate_store, sqlite_file, store_uri
from his2lip.models.catalogue import BACKBONES
from his2lip.models.naming import LOCAL, folder_of
from his2lip.models.provenance import (
    META,
    current_folder,
    is_checkpoint,
    read_exported,
    read_meta,
    read_steady,
)
from his2lip.models.stored import fetch_stored, is_stored
from his2lip.models.trained_on import RECORD, RECORDED, TrainingRecord
from his2lip.resources import STORAGE

CHECKPOINT_ARTIFACT = "checkpoint"  # the name of a checkpoint's folder among an MLflow model's artifacts

_SCHEME = "models:/"
_URI = re.compile(r"models:/(?P<name>[^/@]+)(@[^/@]+|/\d+)")
_FIX = "his2lip models list shows what it has; MLFLOW_TRACKING_URI names another store"


def is_registered(name: str) -> bool:
    """Whether a model's name has the scheme of MLflow's registry."""
    return name.startswith(_SCHEME)


def is_elsewhere(name: str) -> bool:
    """Whether a model's name is that of a checkpoint that has to be fetched: registered, or one object."""
    return is_registered(name) or is_stored(name)


def registered_name(uri: str) -> str:
    """NAME of `models:/NAME@ALIAS` or `models:/NAME/VERSION`. Raises ModelError for another form."""
    found = _URI.fullmatch(uri)
    if found is None:
        fix = "write models:/NAME@ALIAS or models:/NAME/3"
        raise ModelError(f"'{uri}' does not name a registered model", key=uri, fix=fix)
    return found["name"]


def fetch_checkpoint(uri: str, folder: str | Path) -> Path:
    """A copy of the checkpoint at `uri`, inside `folder`, named by the digest of its provenance.

    Raises ModelError where MLflow has no such model, CheckpointError where that model has no checkpoint.
    """

    def place_of(checkpoint: Path) -> Path:
        return Path(folder) / digest(read_meta(checkpoint))[:16]

    if not is_stored(uri):  # of an object, no part can be read alone
        with _scratch(folder) as scratch:
            place = place_of(_download(uri, META, scratch).parent)
        if is_checkpoint(place):
            return place
    with _scratch(folder) as scratch:
        whole = _download(uri, "", scratch)
        place = place_of(whole)  # an alias or an object may have been replaced since
        try:
            os.rename(whole, place)
        except OSError:  # it is there, or another process was faster
            if not is_checkpoint(place):
                raise
    return place


def absolute_name(name: str) -> str:
    """The name of the same model in other folders: a folder by its absolute path, other names as they are."""
    folder = folder_of(name)
    if name in BACKBONES or not (name.startswith(LOCAL) or Path(folder).is_dir() or is_checkpoint(folder)):
        return name
    return name.removesuffix(folder) + absolute(folder)


def local_name(name: str, storage: str) -> str:
    """The name by which other processes load a model: one that is elsewhere is copied into `storage` first.

    An alias is thereby fixed to its present version. Where `storage` is the URI of an object store, the copy
    is in the default storage.
    """
    if not is_elsewhere(name):
        return absolute_name(name)
    folder = STORAGE if "://" in storage else storage
    return str(fetch_checkpoint(name, Path(folder).absolute() / "registered"))


@contextmanager
def checkpoint_folder(name: str) -> Iterator[Path | None]:
    """The folder of the checkpoint behind a model's name; None for a model that is not a checkpoint.

    One that is elsewhere is copied into a temporary folder, which is removed at the end of the block. A run
    may replace another one meanwhile: what the block reads of it is read by `read_steady`.
    """
    if is_elsewhere(name):
        with tempfile.TemporaryDirectory(prefix="his2lip-") as scratch:
            yield fetch_checkpoint(name, scratch)
        return
    folder = Path(folder_of(name))
    yield current_folder(folder) if is_checkpoint(folder) else None


def meta_of(name: str) -> dict[str, Any]:
    """What is recorded of the model of this name: `his2lip.json` of a checkpoint, or what an export states.

    Empty for other models.
    """
    if is_elsewhere(name):
        with tempfile.TemporaryDirectory(prefix="his2lip-") as scratch:
            return read_meta(_download(name, META, scratch).parent)
    folder = folder_of(name)
    return read_meta(folder) if is_checkpoint(folder) else read_exported(Path(folder))


def training_record(name: str) -> TrainingRecord | None:
    """What the model of this name was trained on, as far as it is recorded; None where nothing is.

    A run may replace the checkpoint meanwhile. Raises CheckpointError for a checkpoint whose record is
    missing or damaged.
    """
    if is_elsewhere(name):
        with tempfile.TemporaryDirectory(prefix="his2lip-") as scratch:
            meta = read_meta(_download(name, META, scratch).parent)
            data = _download(name, RECORD, scratch).read_bytes() if RECORDED in meta else None
            return TrainingRecord.of_checkpoint(meta, data, where=name)
    folder = Path(folder_of(name))

    def read() -> TrainingRecord | None:
        file = current_folder(folder) / RECORD
        data = file.read_bytes() if file.is_file() else None
        if is_checkpoint(folder):
            return TrainingRecord.of_checkpoint(read_meta(folder), data, where=name)
        return None if data is None else TrainingRecord.from_bytes(data, where=name)  # of an export

    return read_steady(folder, read)


def _scratch(folder: str | Path) -> tempfile.TemporaryDirectory[str]:
    Path(folder).mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder)


def _download(uri: str, path: str, scratch: str) -> Path:
    """A file of the checkpoint inside a registered model, or the whole checkpoint for an empty `path`."""
    if is_stored(uri):
        if not fetch_stored(uri, Path(scratch, CHECKPOINT_ARTIFACT)):
            raise ModelError("there is no such checkpoint", where=uri, key=uri, fix="check the address")
        return Path(scratch, CHECKPOINT_ARTIFACT, path)
    registered_name(uri)
    store = store_uri()
    file = sqlite_file(store)
    if file is not None and not file.is_file():
        what = f"'{uri}' is in MLflow, and there is no MLflow store here"
        raise ModelError(what, where=store, key=uri, fix=_FIX)
    if file is not None:
        relocate_store(file)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow

    # An alias is looked up in MLflow's current store, whichever store the call below is given.
    mlflow.set_tracking_uri(store)
    inside = f"{uri}/artifacts/{CHECKPOINT_ARTIFACT}/{path}".rstrip("/")
    try:
        return Path(mlflow.artifacts.download_artifacts(inside, dst_path=scratch))
    except mlflow.exceptions.MlflowException as error:
        if (full := disk_full(error, what="a copy of this model", where=scratch)) is not None:
            raise full from None
        if "No such artifact" in str(error):
            raise _no_checkpoint(uri) from None
        if "failures occurred while downloading" in str(error):  # and which ones, in further lines
            reason = str(error).splitlines()[-1][:200]
            what, fix = (
                f"the files of this model cannot be fetched: {reason}",
                "check MLflow's artifact store",
            )
            raise ModelError(what, where=uri, key=uri, fix=fix) from error
        what = f"MLflow has no such model: {first_line(error)}"
        raise ModelError(what, where=uri, key=uri, fix=_FIX) from error
    except OSError as error:
        if (full := disk_full(error, what="a copy of this model", where=scratch)) is not None:
            raise full from None
        raise _no_checkpoint(uri) from None
    except Exception as error:  # of the database driver, about a file that is no database
        fix = "set MLFLOW_TRACKING_URI to a running server or to sqlite:///FILE"
        what = f"the MLflow store cannot be used: {first_line(error)}"
        raise ModelError(what, where=store, key=uri, fix=fix) from None


def _no_checkpoint(uri: str) -> CheckpointError:
    what = "this registered model contains no his2lip checkpoint, or its files are gone"
    return CheckpointError(what, where=uri, key=CHECKPOINT_ARTIFACT)
