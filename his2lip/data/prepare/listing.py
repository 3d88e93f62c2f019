"""The files that a prepare reads: found, named once, assigned to splits by groups, and cut into parts."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from his2lip.data.cards import Carve, Grouping
from his2lip.data.readers import Item, PassedOver, Reader
from his2lip.data.shards import id_key
from his2lip.errors import DatasetError, His2lipError
from his2lip.files import is_utf8, printable


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All files found: those to read (key -> split, key -> stamp), and the others with reasons.

    A stamp changes whenever the patches of its file may change.
    """

    wanted: dict[str, str] = field(default_factory=dict)
    stamps: dict[str, bytes] = field(default_factory=dict)
    quarantined: list[tuple[str, str]] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Part:
    """Files that become one Parquet file of one split; `content` is a digest of their stamps."""

    name: str
    split: str
    keys: list[str]
    content: str


def carve(split: str, group: Callable[[Grouping], str], rules: list[Carve]) -> str:
    """The split of a file that `split` was given to: itself, or the one that a rule moves the file into.

    group  the name of the file's group, by the kind of group that a rule moves

    Each rule moves a group by a hash of its name, keyed by the seed. So the split of a group does not depend
    on the other groups: more patients may be added later, and none changes its split. A rule moves its
    fraction of groups on average, not exactly.
    """
    for rule in rules:
        if rule.source == split:
            key = f"{rule.seed}/{rule.source}/{rule.into}/{group(rule.by)}"
            if _uniform(key) < rule.fraction:
                return rule.into
    return split


def _uniform(key: str) -> float:
    """A number in [0, 1) from a hash of `key`."""
    hashed = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(hashed, "big") / 2**64


def list_files(reader: Reader, limit: int | None) -> Listing:
    """Finds all files, lets the reader interpret each, and assigns each to a split."""
    listing = Listing()
    names: set[int] = set()
    for key in _limited(reader, limit):
        try:
            item = _item(reader, key)
            name = id_key(item.name)
            if name in names or key in listing.wanted:
                raise DatasetError("another file has the same patch id")
            split = carve(item.split, item.group, reader.card.carve)
        except PassedOver as over:
            listing.passed_over[over.what] += 1
            continue
        except DatasetError as error:
            listing.quarantined.append((printable(key), error.what))
            continue
        names.add(name)
        listing.stamps[key] = _stamp(reader, item)
        listing.wanted[key] = split
    listing.passed_over.update(reader.passed_over)  # what `find` counted and did not yield
    return listing


def _stamp(reader: Reader, item: Item) -> bytes:
    """A digest of what decides the patches of a file: path, row in a table, size and time of its files.

    It changes where a manifest, a picture or an annotation is corrected.
    """
    whole = hashlib.blake2b(repr(item).encode("utf-8", "surrogateescape"), digest_size=16)
    for path in reader.sources(item):
        try:
            found = os.stat(path)
        except OSError:
            continue  # the reader will report it
        whole.update(f"{path.name}/{found.st_size}/{found.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return whole.digest()


def _item(reader: Reader, key: str) -> Item:
    if not is_utf8(key):
        raise DatasetError("the name is not UTF-8")
    if (special := _special(reader.root / key)) is not None:
        raise DatasetError(special)
    try:
        return reader.item(key)
    except His2lipError:
        raise
    except Exception as error:  # a fault of one file does not stop the others
        raise DatasetError(f"{type(error).__name__}: {error}"[:200]) from error


def _special(path: Path) -> str | None:
    """The kind of a path that is not a regular file, in words; None for a file or where nothing is."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return None
    if stat.S_ISDIR(mode):
        return "a folder, a link to one, or one that may not be listed: nothing in it is read"
    regular = stat.S_ISREG(mode)
    return None if regular else "a pipe, socket or device, which cannot be read as a file"


def _limited(reader: Reader, limit: int | None) -> Iterator[str]:
    if limit is None:
        yield from reader.find()
    else:
        yield from sorted(reader.find(), key=lambda key: _rank(0, key))[:limit]


def deal(reader: Reader, listing: Listing, part_bytes: int) -> list[Part]:
    """Files split by split, in a seeded order, in parts of about `part_bytes`."""
    parts: list[Part] = []
    for split in sorted(set(listing.wanted.values())):
        keys = sorted((k for k, s in listing.wanted.items() if s == split), key=lambda key: _rank(0, key))
        size, first = 0, len(parts)
        waiting: list[str] = []
        for key in keys:
            waiting.append(key)
            size += _size(reader.root / key)
            if size >= part_bytes:
                parts.append(_part(split, len(parts) - first, waiting, listing))
                size, waiting = 0, []
        if waiting:
            parts.append(_part(split, len(parts) - first, waiting, listing))
    return parts


def _part(split: str, number: int, keys: list[str], listing: Listing) -> Part:
    content = hashlib.blake2b(b"".join(listing.stamps[key] for key in keys), digest_size=16).hexdigest()
    return Part(f"{split}/part-{number:05d}.parquet", split, keys, content)


def _rank(seed: int, key: str) -> bytes:
    return hashlib.blake2b(f"{seed}/{key}".encode("utf-8", "surrogateescape"), digest_size=16).digest()


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
