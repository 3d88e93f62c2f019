"""One archive (zip, or tar plain or compressed): its entries checked, and files saved from it."""

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
RATIO = 200  # largest size unpacked over the archive's size: images hardly shrink, tables tenfold
SLACK = 64 << 20  # bytes that any archive may unpack to, whatever its ratio
MAX_FILES = 4_000_000  # of one archive and those nested in it; the largest of the ten datasets has 310,000
_NAME_BYTES = 255  # the longest file name that all common file systems allow
_MAGIC = {b"PK\x03\x04": "zip", b"PK\x05\x06": "zip", b"\x1f\x8b": "tar", b"BZh": "tar", b"\xfd7zXZ": "tar"}
_BROKEN = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError,
    UnicodeDecodeError,
)  # fmt: skip
_CLASHES = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY)


@dataclass(frozen=True)
class Entry:
    """A file or folder in an archive. `fault` is the reason why it must not be unpacked, if there is one."""

    name: str
    size: int
    is_folder: bool
    fault: str | None
    of: zipfile.ZipInfo | tarfile.TarInfo

    @property
    def path(self) -> PurePosixPath:
        """Its place below the archive's folder; only for an entry without a fault."""
        return PurePosixPath(*_parts(self.name))


class Budget:
    """Bytes and files that an archive and those nested in it may still unpack to: a bound on bombs."""

    def __init__(self, archive: Path) -> None:
        self._bytes, self._files = archive.stat().st_size * RATIO + SLACK, MAX_FILES
        self._where = archive

    def take(self, size: int) -> None:
        """Counts one file. Raises DatasetError where the archive has more than any dataset does."""
        self._bytes -= size
        self._files -= 1
        if min(self._bytes, self._files) < 0:
            what = f"this archive unpacks to over {RATIO} times its size or {MAX_FILES:,} files, like a bomb"
            fix = "download it again from its authors"
            raise DatasetError(what, where=self._where, key="size", fix=fix)


def named_as_archive(name: str) -> bool:
    """Whether a file has an archive's suffix."""
    return name.lower().endswith(SUFFIXES)


def stem(name: str) -> str:
    """An archive's name without its suffix."""
    return name[: -max(len(s) for s in SUFFIXES if name.lower().endswith(s))]


def is_archive(path: Path) -> bool:
    """Whether a path is a file that begins like an archive; a truncated archive does."""
    return path.is_file() and _kind(path) is not None


def _kind(path: Path) -> str | None:
    with path.open("rb") as source:
        head = source.read(512)
    if head[257:262] == b"ustar":
        return "tar"
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)


class Archive:
    """An open archive. Entries come in its own order; an entry can be saved until the next one is read."""

    def __init__(self, source: zipfile.ZipFile | tarfile.TarFile, path: Path) -> None:
        self._source, self._path = source, path

    @property
    def size(self) -> int | None:
        """Its size unpacked in bytes; None for a tar, which has no table of contents."""
        if isinstance(self._source, tarfile.TarFile):
            return None
        return sum(info.file_size for info in self._source.infolist())

    def entries(self) -> Iterator[Entry]:
        """All its files and folders. Their content is not read."""
        if isinstance(self._source, zipfile.ZipFile):
            yield from (self._of_zip(info) for info in self._source.infolist())
            return
        for info in self._source:
            yield _of_tar(info)
            self._source.members = []  # type: ignore[attr-defined]  # or it would keep a kilobyte for each entry

    def _of_zip(self, info: zipfile.ZipInfo) -> Entry:
        if info.flag_bits & 1:
            fix = "unpack it by hand with its password, and give that folder as --root"
            raise DatasetError("this archive is encrypted", where=self._path, key="password", fix=fix)
        kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the archive was not made on Unix
        plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
        fault = _fault(info.filename) if plain else "a link or a device: only files and folders are unpacked"
        return Entry(info.filename, info.file_size, info.is_dir(), fault, info)

    def save(self, entry: Entry, place: Path, *, waiting: Path) -> None:
        """Writes a file to `place`, whole or not at all, through the file `waiting` on the same disk.

        Raises OSError for which `clashes` is true where a folder has its name, or a file that of a parent.
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
    fault = _fault(info.name) if plain else "a link or a device: only files and folders are unpacked"
    return Entry(info.name, info.size, info.isdir(), fault, info)


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """The archive at `path`. Raises DatasetError, inside the block too, where it cannot be read."""
    kind = _kind(path)
    try:
        if kind == "zip":
            with zipfile.ZipFile(path) as zipped:
                yield Archive(zipped, path)
        else:
            with tarfile.open(path, "r|*") as tarred:
                yield Archive(tarred, path)
    except _BROKEN as error:
        what = f"this archive is truncated or broken: {first_line(error)}"
        fix = "download it again, or unpack it by hand and give that folder as --root"
        raise DatasetError(what, where=path, key="content", fix=fix) from None
    except OSError as error:
        raise DatasetError(
            f"this archive cannot be unpacked: {first_line(error)}",
            where=path,
            fix="free some space, or give another place with --unpack-to"
            if error.errno == errno.ENOSPC
            else None,
        ) from None


def clashes(error: OSError) -> bool:
    """Whether a file could not be written because another has its place, or its name is too long."""
    return error.errno in (*_CLASHES, errno.ENAMETOOLONG)


def _fault(name: str) -> str | None:
    """The fault of a name, or None."""
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
    """The parts of a path; archives made on Windows may have its separator."""
    return [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
