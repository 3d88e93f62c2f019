"""Removes what may identify a patient: names become pseudonyms, and images keep only their pixels."""

from __future__ import annotations

import csv
import hmac
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from his2lip.data.images import decode, encode_png
from his2lip.data.readers import Item
from his2lip.data.shards import Patch
from his2lip.errors import DatasetError, first_line
from his2lip.files import printable

LEAST_KEY = 16  # bytes
_COLUMNS = ("kind", "pseudonym", "name", "source", "reason")
_ELSEWHERE = "the reason is in the map of names"  # since a reason may quote a name
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")  # the chunks that decide pixels
_JPEG_DROPPED = {0xFE, *range(0xE1, 0xEE), 0xEF}  # comments, and all APPn but JFIF's and Adobe's (colours)
_EOI, _SOS = 0xD9, 0xDA


@dataclass(frozen=True)
class Key:
    """Makes pseudonyms: HMAC-SHA256 (RFC 2104) of kind and name, the same in every run and dataset."""

    secret: bytes = field(repr=False)

    @classmethod
    def load(cls, path: str | Path) -> Key:
        """The bytes of a file that only its owner may read. Raises DatasetError for any other file."""
        make = f"make one: (umask 077; head -c 32 /dev/urandom > {path})"
        try:
            secret, mode = Path(path).read_bytes(), os.stat(path).st_mode
        except OSError as error:
            what = f"the key cannot be read: {first_line(error)}"
            raise DatasetError(what, where=path, key="--pseudonymise", fix=make) from None
        if len(secret) < LEAST_KEY:
            what = f"a key must have {LEAST_KEY} bytes or more"
            raise DatasetError(what, where=path, key="length", fix=make)
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            what = "other users may read this key"
            raise DatasetError(what, where=path, key="mode", fix=f"chmod 600 {path}")
        return cls(secret)

    def name(self, kind: str, text: str) -> str:
        """The pseudonym of a name of that kind (case, slide, region, file): 128 bits in hex."""
        said = f"{kind}\0{text}".encode("utf-8", "surrogateescape")
        return hmac.digest(self.secret, said, "sha256")[:16].hex()

    def patch(self, patch: Patch) -> Patch:
        """The same patch with pseudonyms as ids, and with an image of pixels only."""
        return replace(
            patch,
            patch_id=self._id(patch.patch_id),
            case_id=self._optional("case", patch.case_id),
            slide_id=self._optional("slide", patch.slide_id),
            region_id=self._optional("region", patch.region_id),
            twin_id=self._id(patch.twin_id) if patch.twin_id else None,
            image=without_metadata(patch.image),
            sha256="",
        )

    def _id(self, patch_id: str) -> str:
        """dataset/name[#tile]; the tile becomes a pseudonym too, since an annotation may have named it."""
        dataset, _, rest = patch_id.partition("/")
        name, mark, tile = rest.partition("#")
        return f"{dataset}/{self.name('file', name)}{mark}{self.name('tile', tile)[:12] if mark else ''}"

    def _optional(self, kind: str, text: str | None) -> str | None:
        return self.name(kind, text) if text is not None else None


class NameMap:
    """A CSV of pseudonyms and names that only its owner may read. Several datasets may share one."""

    def __init__(self, key: Key, path: Path) -> None:
        self.key, self._path = key, path
        try:
            with open(path, "a+", encoding="utf-8", newline="", opener=_private) as file:
                file.seek(0)
                rows = [tuple(row) for row in csv.reader(file)]
                if not rows:
                    csv.writer(file).writerow(_COLUMNS)
        except OSError as error:
            said = f"the map of names cannot be written: {first_line(error)}"
            raise DatasetError(said, where=path) from None
        except (ValueError, csv.Error):  # a binary file
            rows = [()]
        if rows and rows[0] != _COLUMNS:
            what, fix = "this file is not a map of names", "give another file with --names"
            raise DatasetError(what, where=path, key="--names", fix=fix)
        self._known = set(rows)

    @classmethod
    def open(cls, key_file: str | Path, path: str | Path, *, out: str) -> NameMap:
        """Raises DatasetError where key or map cannot be used, or would lie under `out` with the shards."""
        for what, place in (("the key", key_file), ("the map of names", path)):
            if "://" not in out and Path(out).resolve() in (
                *Path(place).resolve().parents,
                Path(place).resolve(),
            ):
                text = f"{what} would be copied with the shards"
                raise DatasetError(text, where=place, key="--out", fix="keep it outside of --out")
        return cls(Key.load(key_file), Path(path))

    def add_items(self, items: Iterable[Item]) -> None:
        """Records the names of files that will be read."""
        rows = []
        for item in items:
            rows.append(("file", self.key.name("file", item.name), item.name, item.key, ""))
            names = {"case": item.case_id, "slide": item.slide_id, "region": item.region_id}
            rows += [(kind, self.key.name(kind, name), name, "", "") for kind, name in names.items() if name]
        self._add(rows)

    def hide(self, entries: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        """(pseudonym, where the reason is) for (place, reason), which are recorded in the map."""
        rows = [("place", self.key.name("place", place), place, "", reason) for place, reason in entries]
        self._add(rows)
        return [(row[1], _ELSEWHERE) for row in rows]

    def _add(self, rows: Iterable[tuple[str, ...]]) -> None:
        rows = [tuple(map(printable, row)) for row in rows]
        new = list(dict.fromkeys(row for row in rows if row not in self._known))
        self._known.update(new)
        with open(self._path, "a", encoding="utf-8", newline="", opener=_private) as file:
            csv.writer(file).writerows(new)


def without_metadata(data: bytes) -> bytes:
    """The image with the same pixels (those of `images.decode`) and without EXIF, comments and thumbnails.

    JPEG and PNG keep their compressed pixels; other formats, and images that EXIF turns, become PNG.
    Raises ImageError where `decode` does.
    """
    pixels = decode(data)
    strip = _jpeg if data.startswith(b"\xff\xd8\xff") else _png if data.startswith(_PNG) else None
    bare = strip(data) if strip else None
    if bare is not None and np.array_equal(decode(bare), pixels):
        return bare
    return encode_png(pixels)


def _png(data: bytes) -> bytes | None:
    """The chunks that decide pixels (PNG specification, 5.3); None for a truncated file."""
    kept, at = [_PNG], len(_PNG)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        if kind in _PNG_CHUNKS:
            kept.append(data[at:end])
        if kind == b"IEND":
            return b"".join(kept)
        at = end
    return None


def _jpeg(data: bytes) -> bytes | None:
    """The segments that decide pixels, to the end of the image (ITU T.81, B.1); None for a broken file."""
    kept, at = [data[:2]], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == _SOS:
            end = _scan_end(data, end)
        if marker not in _JPEG_DROPPED:
            kept.append(data[at:end])
        if data[end : end + 2] == bytes((0xFF, _EOI)):
            return b"".join([*kept, data[end : end + 2]])
        at = end
    return None


def _scan_end(data: bytes, at: int) -> int:
    """The end of entropy-coded data: a marker that is neither a stuffed zero nor a restart."""
    while (at := data.find(b"\xff", at)) >= 0 and at + 1 < len(data):
        if data[at + 1] != 0 and not 0xD0 <= data[at + 1] <= 0xD7:
            return at
        at += 2
    return len(data)


def _private(path: str, flags: int) -> int:
    handle = os.open(path, flags, 0o600)
    os.fchmod(handle, 0o600)
    return handle
