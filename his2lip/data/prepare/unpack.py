"""Unpacks the archives under a dataset's root, each once, and resumes an interrupted unpacking."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path, PurePosixPath
from typing import Any

from his2lip.data.prepare.archives import (
    Archive,
    Budget,
    Entry,
    clashes,
    is_archive,
    named_as_archive,
    open_archive,
    stem,
)
from his2lip.errors import DatasetError, first_line
from his2lip.files import is_litter, locked, printable

DEPTH = 4  # how deep archives may lie in archives
RESERVE = 256 << 20  # bytes that stay free on the disk
_SAMPLE = 16  # files of a tar that are looked for to find out whether it was unpacked by hand
_SUFFIX = ".unpacked"  # of the folder that a root is unpacked to
_BUILDING, _RECORD, _LOCK = ".building", ".unpacked.json", ".lock"

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Unpacked:
    """The folder to read, and the entries of archives that were refused: (ARCHIVE!PATH, reason).

    `only` is the folder of the archive where there is one archive and no other file.
    `notes` has a line for each archive of which files were unpacked by hand.
    """

    root: Path
    refused: list[tuple[str, str]]
    only: Path | None = None
    notes: list[str]


def unpack(root: str | Path, to: str | Path | None = None, *, tell: Tell = lambda text: None) -> Unpacked:
    """The folder to read: `root` where it holds no archive, else `to`, by default ROOT.unpacked.

    `root` may be an archive itself. Plain files beside archives are linked into `to`. Each archive becomes
    the folder of its name, nested archives too. An archive that was unpacked before is not unpacked again,
    and an interrupted unpacking resumes. Entries that lead out of their folder, links, devices and repeated
    names are refused one by one. `tell` is called with lines about the progress. Raises DatasetError for an
    archive that is broken, encrypted, a bomb, nested too deeply, or too large for the disk.
    """
    root = Path(os.path.abspath(root))
    work = Path(os.path.abspath(to or f"{root}{_SUFFIX}"))
    if work == root:
        raise DatasetError(
            "archives cannot be unpacked into the folder that they lie in",
            where=root,
            key="--unpack-to",
            fix="give another folder with --unpack-to",
        )
    base, keys, plain, notes = _listed(root, work)
    if not keys:
        return Unpacked(root=root, refused=[], notes=notes)
    with _claimed(work):
        job = _Job(work, tell)
        refused: list[tuple[str, str]] = []
        for key in keys:
            if is_archive(base / key):
                refused += job.outermost(base / key, key)
            else:
                refused.append((key, "it has an archive's name but is none"))
        shutil.rmtree(work / _BUILDING, ignore_errors=True)
        refused += [
            (key, "a file of an archive has its place") for key in plain if not _link(base, work, key)
        ]
        only = job.folder(keys[0]) if len(keys) == 1 and not plain else None
    refused = [(printable(place), why) for place, why in refused]
    return Unpacked(root=work, only=only, refused=refused, notes=notes)


def _listed(root: Path, work: Path) -> tuple[Path, list[str], list[str], list[str]]:
    """(folder, archives under it that were not unpacked by hand, its other files, notes of `Unpacked`).

    Hidden files are left out. A folder that an earlier command unpacked from an archive beside it is skipped:
    it would be read twice.
    """
    if root.is_file():
        if not named_as_archive(root.name):
            raise DatasetError(
                "this is neither a folder nor an archive", where=root, fix="give one of these as --root"
            )
        return root.parent, [root.name], [], []
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
    keys: list[str] = []
    notes: list[str] = []
    for path in archives:
        key = path.relative_to(root).as_posix()
        by_hand, note = _unpacked_by_hand(path) if is_archive(path) else (False, None)
        if not by_hand:
            keys.append(key)
        if note is not None:
            notes.append(f"{printable(key)} is {note}")
    return root, keys, [p.relative_to(root).as_posix() for p in plain], notes


def _is_unpacked(folder: Path) -> bool:
    """Whether `unpack` made this folder of the archive beside it."""
    archive = folder.with_name(folder.name.removesuffix(_SUFFIX))
    return os.path.isfile(folder / _RECORD) and archive != folder and archive.is_file()  # False where closed


def _unpacked_by_hand(path: Path) -> tuple[bool, str | None]:
    """(whether all files of an archive lie beside it or in the folder of its name, a note where any do).

    All files of a zip are compared by name and size. A tar has no table of contents, so only its first files
    are. Files of file managers are not compared, since some programs do not unpack them.
    """
    with open_archive(path) as archive:
        is_zip = archive.size is not None
        entries = (e for e in archive.entries() if not e.is_folder and not e.fault)
        compared = (e for e in entries if not any(map(is_litter, e.path.parts)))
        files = list(compared if is_zip else islice(compared, _SAMPLE))
    which, note = "files" if is_zip else "first files", None
    for words, place in (
        ("beside it", path.parent),
        (f"in {stem(path.name)}/", path.parent / stem(path.name)),
    ):
        there = sum(_is_there(place / f.path, f) for f in files)
        if files and there == len(files):
            return True, f"taken as unpacked, since its {there:,} {which} lie {words}"
        if there:
            note = f"unpacked, although {there:,} of its {len(files):,} {which} lie {words}"
    return False, note


def _is_there(place: Path, entry: Entry) -> bool:
    return os.path.isfile(place) and place.stat().st_size == entry.size


class _Job:
    """Unpacks into `work`; a record of the archives that are there keeps any from being unpacked twice."""

    def __init__(self, work: Path, tell: Tell) -> None:
        self._work, self._tell = work, tell
        self._record: dict[str, Any] = {}
        try:
            self._record = json.loads((work / _RECORD).read_text())
        except FileNotFoundError:
            pass
        except (OSError, ValueError):
            fix = "remove that folder, or give another with --unpack-to"
            raise DatasetError("the record of unpacked archives is broken", where=work, fix=fix) from None

    def folder(self, key: str) -> Path | None:
        """The folder that an archive was unpacked to, or None."""
        known = self._record.get(key)
        return self._work / known["folder"] if known else None

    def outermost(self, archive: Path, key: str) -> list[tuple[str, str]]:
        """Unpacks an archive unless it is there already; returns its refused entries with reasons."""
        stamp = [archive.stat().st_size, archive.stat().st_mtime_ns]
        known = self._record.get(key)
        if known is not None and known["stamp"] != stamp:  # it was downloaded again
            shutil.rmtree(self._work / known["folder"], ignore_errors=True)
            self._record = {name: note for name, note in self._record.items() if not _within(name, key)}
        self._unpack(
            archive, key, into=self._work, at=PurePosixPath(key), budget=Budget(archive), stamp=stamp
        )
        return [
            (place, why)
            for name, note in self._record.items()
            if _within(name, key)
            for place, why in note["refused"]
        ]

    def _unpack(
        self, archive: Path, key: str, *, into: Path, at: PurePosixPath, budget: Budget, stamp: list[int]
    ) -> None:
        """Unpacks `archive`, known as `key`, into the folder of its name, beside `at` under `into`."""
        if key.count("!") >= DEPTH:
            fix = "unpack it by hand, and give that folder as --root"
            what = f"archives lie more than {DEPTH} deep in one another"
            raise DatasetError(what, where=printable(key), key="depth", fix=fix)
        name = hashlib.sha256(f"{key} {stamp}".encode("utf-8", "surrogateescape")).hexdigest()[:16]
        built = self._work / _BUILDING / name
        if key not in self._record:
            refused = self._fill(built, archive, key, budget)
            for inner in sorted(p for p in built.rglob("[!.]*") if p.is_file() and named_as_archive(p.name)):
                if is_archive(inner):
                    below = PurePosixPath(inner.relative_to(built))
                    self._unpack(inner, f"{key}!{below}", into=built, at=below, budget=budget, stamp=stamp)
                    inner.unlink()
            self._record[key] = {"stamp": stamp, "folder": _free(into, at), "refused": refused}
            waiting = self._work / _BUILDING / _RECORD
            waiting.write_text(json.dumps(self._record, indent=1))
            os.replace(waiting, self._work / _RECORD)
        _settle(built, into / self._record[key]["folder"], stem(at.name))

    def _fill(self, built: Path, path: Path, key: str, budget: Budget) -> list[tuple[str, str]]:
        """Writes all files of an archive to the folder `built`; returns the refused ones with reasons."""
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
                    fault = "its name repeats in the archive" if entry.path in seen else None
                    seen.add(entry.path)
                if fault is None:
                    fault = self._save(archive, entry, built / entry.path, f"{key}!{entry.path}")
                if fault is not None:
                    refused.append((f"{key}!{entry.name}", fault))
                if len(seen) % 100 == 1:
                    self._tell(f"unpacking {printable(key)}: {len(seen):,} files")
        return refused

    def _save(self, archive: Archive, entry: Entry, place: Path, key: str) -> str | None:
        """Writes one file, unless an interrupted call wrote it; returns what prevents it, or None."""
        if key in self._record or _is_there(place, entry):
            return None
        try:
            archive.save(entry, place, waiting=self._work / _BUILDING / "file.part")
        except OSError as error:
            if clashes(error):
                return "its name is too long, or a folder has it"
            raise
        return None

    def _make_room(self, built: Path, archive: Archive, path: Path) -> None:
        """Makes the folder to fill. Raises DatasetError where the disk has no room for a new one."""
        begun = built.exists()
        built.mkdir(parents=True, exist_ok=True)
        need, free = archive.size or path.stat().st_size, shutil.disk_usage(built).free
        self._tell(f"unpacking {need / 1e9:,.1f} GB to {self._work}, where {free / 1e9:,.0f} GB are free")
        if not begun and need + RESERVE > free:
            what = (
                f"unpacked it takes {need / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free in {self._work}"
            )
            fix = "free some space, or give another place with --unpack-to"
            raise DatasetError(what, where=path, key="--unpack-to", fix=fix)


def _free(into: Path, at: PurePosixPath) -> str:
    """The folder, relative to `into`, for an archive at `at`: its name, with a number where that is taken."""
    name = stem(at.name)
    names = chain([name], (f"{name}-{n}" for n in count(2)))
    return str(next(at.parent / name for name in names if not (into / at.parent / name).exists()))


def _settle(built: Path, folder: Path, name: str) -> None:
    """Moves a filled folder to its place. If its only content is a folder of `name`, that folder is moved."""
    if not built.exists():
        return
    if not folder.exists():
        inside = list(built.iterdir())
        only = len(inside) == 1 and inside[0].is_dir() and inside[0].name == name
        folder.parent.mkdir(parents=True, exist_ok=True)
        os.replace(inside[0] if only else built, folder)
    shutil.rmtree(built, ignore_errors=True)


def _link(base: Path, work: Path, key: str) -> bool:
    """Shows a plain file in the work folder too; False where something else stands there."""
    place = work / key
    if not place.is_symlink() and not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(base / key)
    return place.is_symlink() and Path(os.readlink(place)) == base / key


def _within(name: str, key: str) -> bool:
    """Whether `name` is the archive `key` or one nested in it."""
    return name == key or name.startswith(f"{key}!")


@contextmanager
def _claimed(work: Path) -> Iterator[None]:
    """Makes the work folder and locks it. Raises DatasetError where it cannot, or another command has it."""
    try:
        (work / _BUILDING).mkdir(parents=True, exist_ok=True)
        (work / _LOCK).touch()
    except OSError as error:
        what, fix = (
            f"nothing can be unpacked here: {first_line(error)}",
            "give another place with --unpack-to",
        )
        raise DatasetError(what, where=work, key="--unpack-to", fix=fix) from None
    busy = DatasetError("another command is unpacking here", where=work, fix="wait for it")
    with locked(work / _LOCK, busy=busy):
        yield
