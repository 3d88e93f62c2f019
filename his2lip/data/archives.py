"""One archive (zip, or tar plain or compressed) read safely: what it holds, and files taken out of it."""

from __future__ import annotations

import errno
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from his2lip.errors import DatasetError, first_line

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
RATIO = 200  # of what is unpacked to the archive's own size: images hardly shrink, tables tenfold
SLACK = 64 << 20  # bytes that a small archive may give whatever its ratio
MAX_FILES = 4_000_000  # of one archive with all that is nested in it; the largest of the ten holds 310,000
_NAME_BYTES = 255  # of a file's name, on every file system in use
_MAGIC = {b"PK\x03\x04": "zip", b"PK\x05\x06": "zip", b"\x1f\x8b": "tar", b"BZh": "tar", b"\xfd7zXZ": "tar"}
_BROKEN = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError,
    UnicodeDecodeError,
)  # fmt: skip
_CLASHES = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY)


@dataclass(frozen=True)
class Entry:
    """A file or folder in an archive. `fault` says why it must not be unpacked."""

    name: str
    size: int
    is_folder: bool
    fault: str | None
    of: zipfile.ZipInfo | tarfile.TarInfo

    @property
    def path(self) -> PurePosixPath:
        """Where it goes, below the archive's folder; only for an entry without a fault."""
        return PurePosixPath(*_parts(self.name))


class Budget:
    """What an archive may still give, with all that is nested in it: a bound against bombs."""

    def __init__(self, archive: Path) -> None:
        self._bytes, self._files = archive.stat().st_size * RATIO + SLACK, MAX_FILES
        self._where = archive

    def take(self, size: int) -> None:
        """Accounts for one file. Raises DatasetError where the archive holds more than any dataset does."""
        self._bytes -= size
        self._files -= 1
        if min(self._bytes, self._files) < 0:
            said = f"this archive unpacks to over {RATIO} times its size or {MAX_FILES:,} files: a bomb"
            raise DatasetError(said, where=self._where, mend="fetch it again from its authors")


def named_as_archive(name: str) -> bool:
    """Whether a file's name says that it is an archive."""
    return name.lower().endswith(SUFFIXES)


def stem(name: str) -> str:
    """An archive's name without its suffix."""
    return name[: -max(len(s) for s in SUFFIXES if name.lower().endswith(s))]


def is_archive(path: Path) -> bool:
    """Whether a file begins as an archive does (a truncated one too)."""
    return _kind(path) is not None


def _kind(path: Path) -> str | None:
    with path.open("rb") as source:
        head = source.read(512)
    if head[257:262] == b"ustar":
        return "tar"
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)


class Archive:
    """An open archive; entries come in its own order, and one is saved while it is the latest."""

    def __init__(self, source: zipfile.ZipFile | tarfile.TarFile, path: Path) -> None:
        self._source, self._path = source, path

    @property
    def size(self) -> int | None:
        """Bytes that it unpacks to; None for a tar, which has no table of contents."""
        if isinstance(self._source, tarfile.TarFile):
            return None
        return sum(info.file_size for info in self._source.infolist())

    def entries(self) -> Iterator[Entry]:
        """All that it holds, without pixels being read."""
        if isinstance(self._source, zipfile.ZipFile):
            yield from (self._of_zip(info) for info in self._source.infolist())
            return
        for info in self._source:
            yield _of_tar(info)
            self._source.members = []  # type: ignore[attr-defined]  # else it keeps a kilobyte for each, for ever

    def _of_zip(self, info: zipfile.ZipInfo) -> Entry:
        if info.flag_bits & 1:
            mend = "unpack it by hand with its password, and give that folder as --root"
            raise DatasetError("this archive is encrypted", where=self._path, mend=mend)
        kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the archive was not made on Unix
        plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
        fault = _fault(info.filename) if plain else "a link or a device, which no dataset needs"
        return Entry(info.filename, info.file_size, info.is_dir(), fault, info)

    def save(self, entry: Entry, place: Path, *, waiting: Path) -> None:
        """Writes a file to `place`, whole or not at all, by way of `waiting` on the same disk.

        Raises FileExistsError where its name is also that of a folder, or a part of its path a file's.
        """
        place.parent.mkdir(parents=True, exist_ok=True)
        with self._open(entry) as source, waiting.open("wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
        os.replace(waiting, place)

    def _open(self, entry: Entry) -> IO[bytes]:
        if isinstance(self._source, zipfile.ZipFile):
            return self._source.open(entry.of)  # type: ignore[arg-type]
        source = self._source.extractfile(entry.of)  # type: ignore[arg-type]
        assert source is not None  # a plain file, or it would have a fault
        return source


def _of_tar(info: tarfile.TarInfo) -> Entry:
    plain = info.isreg() or info.isdir()
    fault = _fault(info.name) if plain else "a link or a device, which no dataset needs"
    return Entry(info.name, info.size, info.isdir(), fault, info)


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """The archive at `path`. Raises DatasetError, within the block too, where it cannot be read whole."""
    kind = _kind(path)
    try:
        if kind == "zip":
            with zipfile.ZipFile(path) as zipped:
                yield Archive(zipped, path)
        else:
            with tarfile.open(path, "r|*") as tarred:
                yield Archive(tarred, path)
    except _BROKEN as error:
        said = f"this archive is truncated or broken: {first_line(error)}"
        mend = "fetch it again, or unpack it by hand and give that folder as --root"
        raise DatasetError(said, where=path, mend=mend) from None
    except OSError as error:
        raise DatasetError(
            f"this archive cannot be unpacked: {first_line(error)}",
            where=path,
            mend="make room, or name another place with --unpack-to" if error.errno == errno.ENOSPC else None,
        ) from None


def clashes(error: OSError) -> bool:
    """Whether a file could not be written because another stands in its way, or its name is too long."""
    return error.errno in (*_CLASHES, errno.ENAMETOOLONG)


def _fault(name: str) -> str | None:
    """What is wrong with a name, if anything."""
    if name.startswith(("/", "\\")) or name[1:2] == ":":
        return "an absolute path"
    parts = _parts(name)
    if ".." in parts:
        return "a path that leads out of the archive's folder"
    if not parts or "\0" in name:
        return "no name"
    if any(len(os.fsencode(part)) > _NAME_BYTES for part in parts):
        return f"a name of more than {_NAME_BYTES} bytes"
    return None


def _parts(name: str) -> list[str]:
    """A path's parts; archives made on Windows may hold its separator."""
    return [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
