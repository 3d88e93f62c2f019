"""Append-only files of records, one sealed JSON object per line, that survive a crash in mid-write."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Generic, TypeVar

import pydantic

from his2lip.config import SEAL, Config, sealed, unsealed
from his2lip.errors import DatasetError

R = TypeVar("R", bound=Config)


class LineFile(Generic[R]):
    """The records of one file, read as far as it has grown.

    A line is whole when it ends in a newline and its digest is right. What follows the last whole line was
    torn by a crash: readers ignore it, and the next `append` removes it. A damaged line that others follow
    was not torn, so it is an error.
    """

    def __init__(self, path: Path, kind: type[R]) -> None:
        self.path, self._kind = path, kind
        self.records: list[R] = []
        self._end = 0  # bytes that were read as whole lines

    def refresh(self) -> list[R]:
        """Reads the lines that were added since the last call, and returns their records.

        Raises DatasetError where the file became shorter, or where a line before the last one is damaged.
        """
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                if size < self._end:
                    what = "this log became shorter while it was in use: lines were removed from it"
                    raise DatasetError(what, where=self.path, fix="restore the file, and start again")
                file.seek(self._end)
                data = file.read()
        except FileNotFoundError:
            return []
        lines = data.split(b"\n")[:-1]  # the last one has no newline: it is empty, or not whole
        new: list[R] = []
        for i, line in enumerate(lines):
            record = self._parse(line)
            if record is None and i + 1 < len(lines):
                what = f"line {len(self.records) + len(new) + 1} of this log is damaged or was edited"
                raise DatasetError(what, where=self.path, key="line", fix="restore the file from a copy")
            if record is None:
                break
            new.append(record)
            self._end += len(line) + 1
        self.records += new
        return new

    def append(self, records: Iterable[R]) -> int:
        """Adds records at the end, on the disk before this returns; the bytes of a torn end that it removed.

        Only one process at a time may append: the caller holds a lock.
        """
        self.refresh()
        records = list(records)
        data = b"".join(_line(record) for record in records)
        fresh = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab", buffering=0) as file:
            torn = file.seek(0, os.SEEK_END) - self._end
            if torn:
                file.truncate(self._end)
            written = 0
            while written < len(data):
                written += file.write(data[written:])
            os.fsync(file.fileno())
        if fresh:
            _sync_folder(self.path.parent)
        self._end += len(data)
        self.records += records
        return torn

    @property
    def torn(self) -> int:
        """Bytes after the last whole line: what a crash left of a line, or a line that is being written."""
        try:
            return max(self.path.stat().st_size - self._end, 0)
        except FileNotFoundError:
            return 0

    def _parse(self, line: bytes) -> R | None:
        try:
            tree = json.loads(line)
            return self._kind.model_validate(unsealed(tree)) if SEAL in tree else None
        except (ValueError, TypeError, AttributeError, pydantic.ValidationError):
            return None


def _line(record: Config) -> bytes:
    return (json.dumps(sealed(record.model_dump(mode="json")), ensure_ascii=False) + "\n").encode()


def _sync_folder(folder: Path) -> None:
    """Makes the name of a new file last, too; file systems that cannot do that are left as they are."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
