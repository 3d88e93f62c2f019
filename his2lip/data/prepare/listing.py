"""The files that a prepare reads: found, named once, assigned to splits by groups, and cut into parts."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from his2lip.data.cards import Carve
from his2lip.data.readers import Item, PassedOver, Reader
from his2lip.data.shards import id_key
from his2lip.errors import DatasetError, His2lipError
from his2lip.files import is_utf8, printable


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All files found: those to read (key -> split), and the others with reasons."""

    wanted: dict[str, str] = field(default_factory=dict)
    quarantined: list[tuple[str, str]] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Part:
    """Files that become one Parquet file of one split."""

    name: str
    split: str
    keys: list[str]


def carve(items: dict[str, set[str]], rules: list[Carve]) -> dict[tuple[str, str], str]:
    """(split, group) -> split for the groups that move; `items` is split -> its groups.

    Groups are ranked by a seeded hash, and the first share of them moves, whatever the order of files.
    """
    moved: dict[tuple[str, str], str] = {}
    for rule in rules:
        left = [g for g in items.get(rule.source, set()) if (rule.source, g) not in moved]
        ranked = sorted(left, key=lambda g: _rank(rule.seed, g))
        share = round(rule.fraction * len(ranked))
        if len(ranked) > 1:
            share = min(max(share, 1), len(ranked) - 1)
        moved |= {(rule.source, group): rule.into for group in ranked[:share]}
    return moved


def list_files(reader: Reader, limit: int | None) -> Listing:
    """Finds all files, lets the reader interpret each, and assigns each to a split."""
    listing = Listing()
    names: set[int] = set()
    groups: dict[str, set[str]] = {}
    group_of: dict[str, str] = {}
    by = {rule.source: rule.by for rule in reader.card.carve}
    for key in _limited(reader, limit):
        try:
            item = _item(reader, key)
            name = id_key(item.name)
            if name in names or key in listing.wanted:
                raise DatasetError("another file has the same patch id")
        except PassedOver as over:
            listing.passed_over[over.what] += 1
            continue
        except DatasetError as error:
            listing.quarantined.append((printable(key), error.what))
            continue
        names.add(name)
        listing.wanted[key] = item.split
        if item.split in by:
            group_of[key] = item.group(by[item.split])
            groups.setdefault(item.split, set()).add(group_of[key])
    moved = carve(groups, reader.card.carve)
    for key, group in group_of.items():
        listing.wanted[key] = moved.get((listing.wanted[key], group), listing.wanted[key])
    return listing


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
        return "a folder that is a link, or may not be listed: nothing in it is read"
    regular = stat.S_ISREG(mode)
    return None if regular else "a pipe, socket or device, which cannot be read as a file"


def _limited(reader: Reader, limit: int | None) -> Iterator[str]:
    if limit is None:
        yield from reader.find()
    else:
        yield from sorted(reader.find(), key=lambda key: _rank(0, key))[:limit]


def deal(reader: Reader, wanted: dict[str, str], part_bytes: int) -> list[Part]:
    """Files split by split, in a seeded order, in parts of about `part_bytes`."""
    parts: list[Part] = []
    for split in sorted(set(wanted.values())):
        keys = sorted((k for k, s in wanted.items() if s == split), key=lambda key: _rank(0, key))
        number, size, waiting = 0, 0, []
        for key in keys:
            waiting.append(key)
            size += _size(reader.root / key)
            if size >= part_bytes:
                parts.append(Part(f"{split}/part-{number:05d}.parquet", split, waiting))
                number, size, waiting = number + 1, 0, []
        if waiting:
            parts.append(Part(f"{split}/part-{number:05d}.parquet", split, waiting))
    return parts


def _rank(seed: int, key: str) -> bytes:
    return hashlib.blake2b(f"{seed}/{key}".encode("utf-8", "surrogateescape"), digest_size=16).digest()


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
