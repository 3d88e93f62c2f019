"""A checkpoint as one object of an object store, such as `s3://…/best.tar`, replaced as a whole."""

from __future__ import annotations

import os
import tarfile
import tempfile
from pathlib import Path

from pyarrow.fs import FileType

from his2lip.errors import CheckpointError, first_line
from his2lip.files import answers, fetch_file, filesystem, store_file, writing
from his2lip.models.provenance import current_folder

SUFFIX = ".tar"
_END = 1024  # zeros that end an archive


def is_stored(name: str) -> bool:
    """Whether a model's name is the address of a checkpoint that is one object."""
    return "://" in name and name.endswith(SUFFIX)


def store_checkpoint(folder: str | Path, uri: str) -> None:
    """Stores the checkpoint in `folder` as the object `uri`. Readers see the old or the new one, whole."""
    system, path = filesystem(uri)
    with tempfile.TemporaryDirectory(prefix="his2lip-") as scratch:
        packed = Path(scratch, "checkpoint.tar")
        with writing("a packed checkpoint", packed), tarfile.open(packed, "w") as archive:
            archive.add(current_folder(Path(folder)), arcname=".")
        store_file(system, packed, path)


def fetch_stored(uri: str, folder: str | Path) -> bool:
    """Unpacks the checkpoint `uri` into `folder`; False where there is no such object.

    Raises CheckpointError for an object that is not a whole archive, and as `answers`.
    """
    system, path = filesystem(uri)
    with answers(uri):
        if system.get_file_info(path).type != FileType.File:
            return False
    with tempfile.TemporaryDirectory(prefix="his2lip-") as scratch:
        packed = fetch_file(system, path, Path(scratch, "checkpoint.tar"))
        if _tail(packed) != bytes(_END):
            raise _damaged(uri, "it is cut short")
        try:
            with writing("a checkpoint", folder), tarfile.open(packed) as archive:
                archive.extractall(folder, filter="data")  # nothing outside of `folder`
        except tarfile.TarError as error:
            raise _damaged(uri, first_line(error)) from None
    return True


def _damaged(uri: str, why: str) -> CheckpointError:
    fix = "copy it again, or train again with --fresh"
    return CheckpointError(f"this checkpoint is damaged: {why}", where=uri, fix=fix)


def _tail(file: Path) -> bytes:
    with file.open("rb") as source:
        source.seek(-min(_END, file.stat().st_size), os.SEEK_END)
        return source.read()
