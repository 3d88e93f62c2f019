"""One archive (zip, or tar plain or compressed) read safely: what it holds, and files taken out of it."""

from __future__ import annotations

import errno
import hashlib
import json
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path, PurePosixPath
from typing import IO, Any

from his2lip.errors import DatasetError, first_line
from his2lip.files import locked, printable

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
            raise DatasetError(said, where=self._where, fix="fetch it again from its authors")


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
            fix = "unpack it by hand with its password, and give that folder as --root"
            raise DatasetError("this archive is encrypted", where=self._path, fix=fix)
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
        fix = "fetch it again, or unpack it by hand and give that folder as --root"
        raise DatasetError(said, where=path, fix=fix) from None
    except OSError as error:
        raise DatasetError(
            f"this archive cannot be unpacked: {first_line(error)}",
            where=path,
            fix="make room, or name another place with --unpack-to" if error.errno == errno.ENOSPC else None,
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


DEPTH = 4  # archives within archives
RESERVE = 256 << 20  # bytes that stay free on the disk
_SAMPLE = 16  # files of an archive that are looked for, to see whether it was unpacked by hand
_SUFFIX = ".unpacked"  # of the folder that a root is unpacked into
_BUILDING, _JOURNAL, _LOCK = ".building", ".unpacked.json", ".lock"

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Unpacked:
    """Where a reader finds the files, and what archives held that was refused: (ARCHIVE!PATH, reason)."""

    root: Path
    refused: list[tuple[str, str]]


def unpack(root: str | Path, to: str | Path | None = None, *, tell: Tell = lambda text: None) -> Unpacked:
    """The folder to read: `root` where it holds no archive, else `to`, by default ROOT.unpacked.

    `root` may be an archive itself. Plain files beside archives are linked into `to`. Each archive becomes
    the folder of its name, nested ones likewise; one that is there already is not unpacked again, one that
    was interrupted goes on. Entries that lead out of their folder, links, devices and names that stand twice
    are refused one by one. `tell` hears where the work stands. Raises DatasetError for an archive that is
    broken, encrypted, a bomb, nested too deeply, or that the disk has no room for.
    """
    root = Path(os.path.abspath(root))
    work = Path(os.path.abspath(to or f"{root}{_SUFFIX}"))
    if work == root:
        raise DatasetError("archives are unpacked elsewhere than beside themselves", where=root)
    base, keys, plain = _listed(root, work)
    if not keys:
        return Unpacked(root=root, refused=[])
    with _claimed(work):
        job = _Job(work, tell)
        refused: list[tuple[str, str]] = []
        for key in keys:
            if is_archive(base / key):
                refused += job.outermost(base / key, key)
            else:
                refused.append((key, "named as an archive, but it is none"))
        shutil.rmtree(work / _BUILDING, ignore_errors=True)
        refused += [
            (key, "a file of an archive stands in its place") for key in plain if not _link(base, work, key)
        ]
    return Unpacked(root=work, refused=[(printable(place), why) for place, why in refused])


def _listed(root: Path, work: Path) -> tuple[Path, list[str], list[str]]:
    """(folder, archives under it that were not unpacked by hand, its other files), without hidden ones.

    What a command unpacked before, of one archive that still stands beside it, is left aside: it would be
    read twice.
    """
    if root.is_file():
        if not named_as_archive(root.name):
            raise DatasetError("this is neither a folder nor an archive", where=root)
        return root.parent, [root.name], []
    archives: list[Path] = []
    plain: list[Path] = []
    for folder, folders, files in os.walk(root):
        below = (Path(folder, name) for name in sorted(folders) if not name.startswith("."))
        folders[:] = [path.name for path in below if path != work and not _is_unpacked(path)]
        links = [name for name in folders if Path(folder, name).is_symlink()]
        for name in sorted(files + links):
            path = Path(folder, name)
            if not name.startswith("."):
                (archives if named_as_archive(name) else plain).append(path)
    keys = [p.relative_to(root).as_posix() for p in archives if not (is_archive(p) and _unpacked_by_hand(p))]
    return root, keys, [p.relative_to(root).as_posix() for p in plain]


def _is_unpacked(folder: Path) -> bool:
    """Whether this is what `unpack` made of the archive beside it."""
    archive = folder.with_name(folder.name.removesuffix(_SUFFIX))
    return (folder / _JOURNAL).is_file() and archive != folder and archive.is_file()


def _unpacked_by_hand(path: Path) -> bool:
    """Whether the first files that an archive holds stand beside it, or in the folder of its name."""
    with open_archive(path) as archive:
        files = list(islice((e for e in archive.entries() if not e.is_folder and not e.fault), _SAMPLE))
    places = (path.parent, path.parent / stem(path.name))
    return bool(files) and any(all(_stands(place / f.path, f) for f in files) for place in places)


def _stands(place: Path, entry: Entry) -> bool:
    return place.is_file() and place.stat().st_size == entry.size


class _Job:
    """Unpacks into `work`; a journal says which archives are there, so that none is unpacked twice."""

    def __init__(self, work: Path, tell: Tell) -> None:
        self._work, self._tell = work, tell
        self._journal: dict[str, Any] = {}
        try:
            self._journal = json.loads((work / _JOURNAL).read_text())
        except FileNotFoundError:
            pass
        except (OSError, ValueError):
            fix = "remove that folder, or name another with --unpack-to"
            raise DatasetError("what is unpacked here cannot be told", where=work, fix=fix) from None

    def outermost(self, archive: Path, key: str) -> list[tuple[str, str]]:
        """Unpacks a downloaded archive, unless this very one is there already; what was refused of it."""
        stamp = [archive.stat().st_size, archive.stat().st_mtime_ns]
        known = self._journal.get(key)
        if known is not None and known["stamp"] != stamp:  # it was fetched again
            shutil.rmtree(self._work / known["folder"], ignore_errors=True)
            self._journal = {name: note for name, note in self._journal.items() if not _within(name, key)}
        self._unpack(
            archive, key, into=self._work, at=PurePosixPath(key), budget=Budget(archive), stamp=stamp
        )
        return [
            (place, why)
            for name, note in self._journal.items()
            if _within(name, key)
            for place, why in note["refused"]
        ]

    def _unpack(
        self, archive: Path, key: str, *, into: Path, at: PurePosixPath, budget: Budget, stamp: list[int]
    ) -> None:
        """Unpacks `archive`, known as `key`, into the folder of its name, beside `at` under `into`."""
        if key.count("!") >= DEPTH:
            raise DatasetError(f"archives lie more than {DEPTH} deep in one another", where=printable(key))
        name = hashlib.sha256(f"{key} {stamp}".encode("utf-8", "surrogateescape")).hexdigest()[:16]
        built = self._work / _BUILDING / name
        if key not in self._journal:
            refused = self._fill(built, archive, key, budget)
            for inner in sorted(p for p in built.rglob("[!.]*") if p.is_file() and named_as_archive(p.name)):
                if is_archive(inner):
                    below = PurePosixPath(inner.relative_to(built))
                    self._unpack(inner, f"{key}!{below}", into=built, at=below, budget=budget, stamp=stamp)
                    inner.unlink()
            self._journal[key] = {"stamp": stamp, "folder": _free(into, at), "refused": refused}
            waiting = self._work / _BUILDING / _JOURNAL
            waiting.write_text(json.dumps(self._journal, indent=1))
            os.replace(waiting, self._work / _JOURNAL)
        _settle(built, into / self._journal[key]["folder"], stem(at.name))

    def _fill(self, built: Path, path: Path, key: str, budget: Budget) -> list[tuple[str, str]]:
        """Writes all that an archive holds into the folder `built`; what was refused, and why."""
        seen: set[PurePosixPath] = set()
        refused = []
        with open_archive(path) as archive:
            self._make_room(built, archive, path)
            for entry in archive.entries():
                if entry.is_folder:
                    continue
                budget.take(entry.size)
                fault = entry.fault
                if fault is None:
                    fault = "its name stands twice in the archive" if entry.path in seen else None
                    seen.add(entry.path)
                if fault is None:
                    fault = self._save(archive, entry, built / entry.path, f"{key}!{entry.path}")
                if fault is not None:
                    refused.append((f"{key}!{entry.name}", fault))
                if len(seen) % 100 == 1:
                    self._tell(f"unpacking {printable(key)}: {len(seen):,} files")
        return refused

    def _save(self, archive: Archive, entry: Entry, place: Path, key: str) -> str | None:
        """Writes one file, unless an interrupted call did; what stands in its way, if anything."""
        if key in self._journal or _stands(place, entry):
            return None
        try:
            archive.save(entry, place, waiting=self._work / _BUILDING / "file.part")
        except OSError as error:
            if clashes(error):
                return "its name is too long, or that of a folder"
            raise
        return None

    def _make_room(self, built: Path, archive: Archive, path: Path) -> None:
        """Makes the folder to fill; refuses to begin what the disk has no room for."""
        begun = built.exists()
        built.mkdir(parents=True, exist_ok=True)
        need, free = archive.size or path.stat().st_size, shutil.disk_usage(built).free
        self._tell(f"unpacking {need / 1e9:,.1f} GB to {self._work}, where {free / 1e9:,.0f} GB are free")
        if not begun and need + RESERVE > free:
            said = (
                f"unpacked it takes {need / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free in {self._work}"
            )
            raise DatasetError(said, where=path, fix="make room, or name another place with --unpack-to")


def _free(into: Path, at: PurePosixPath) -> str:
    """The folder, relative to `into`, that an archive at `at` becomes: its name, or that with a number."""
    name = stem(at.name)
    names = chain([name], (f"{name}-{n}" for n in count(2)))
    return str(next(at.parent / name for name in names if not (into / at.parent / name).exists()))


def _settle(built: Path, folder: Path, name: str) -> None:
    """Gives a filled folder its place; one of the archive's own name, alone in it, is that folder."""
    if not built.exists():
        return
    if not folder.exists():
        inside = list(built.iterdir())
        alone = len(inside) == 1 and inside[0].is_dir() and inside[0].name == name
        folder.parent.mkdir(parents=True, exist_ok=True)
        os.replace(inside[0] if alone else built, folder)
    shutil.rmtree(built, ignore_errors=True)


def _link(base: Path, work: Path, key: str) -> bool:
    """Shows a plain file in the work folder too; False where something else stands there."""
    place = work / key
    if not place.is_symlink() and not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(base / key)
    return place.is_symlink() and Path(os.readlink(place)) == base / key


def _within(name: str, key: str) -> bool:
    """Whether a journal's name is that of an archive or of one nested in it."""
    return name == key or name.startswith(f"{key}!")


@contextmanager
def _claimed(work: Path) -> Iterator[None]:
    """Makes the work folder and locks it. Raises DatasetError where it cannot, or another command has it."""
    try:
        (work / _BUILDING).mkdir(parents=True, exist_ok=True)
        (work / _LOCK).touch()
    except OSError as error:
        fix = "name a place for it with --unpack-to"
        raise DatasetError(
            f"nothing can be unpacked here: {first_line(error)}", where=work, fix=fix
        ) from None
    busy = DatasetError("another command is unpacking here", where=work, fix="wait for it")
    with locked(work / _LOCK, busy=busy):
        yield
