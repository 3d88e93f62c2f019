"""Names hashed with the user's key, so that shards hold none; the map back is a file that stays with her."""

from __future__ import annotations

import csv
import hmac
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from his2lip.data.listing import printable
from his2lip.data.metadata import without_metadata
from his2lip.data.readers import Item
from his2lip.data.schema import Patch
from his2lip.errors import DatasetError, first_line

LEAST_KEY = 16  # bytes
_COLUMNS = ("kind", "pseudonym", "name", "source", "reason")
_ELSEWHERE = "the reason stands in the map of names"  # a reason may quote a name


@dataclass(frozen=True)
class Key:
    """Makes pseudonyms: HMAC-SHA256 (RFC 2104) of kind and name, the same in every run and dataset."""

    secret: bytes = field(repr=False)

    @classmethod
    def load(cls, path: str | Path) -> Key:
        """The bytes of a file that nobody else may read. Raises DatasetError for any other."""
        make = f"make one: (umask 077; head -c 32 /dev/urandom > {path})"
        try:
            secret, mode = Path(path).read_bytes(), os.stat(path).st_mode
        except OSError as error:
            raise DatasetError(
                f"the key cannot be read: {first_line(error)}", where=path, mend=make
            ) from None
        if len(secret) < LEAST_KEY:
            raise DatasetError(f"a key has {LEAST_KEY} bytes or more", where=path, mend=make)
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise DatasetError("others may read this key", where=path, mend=f"chmod 600 {path}")
        return cls(secret)

    def name(self, kind: str, text: str) -> str:
        """What stands for a name of that kind (case, slide, region, file): 128 bits in hex."""
        said = f"{kind}\0{text}".encode("utf-8", "surrogateescape")
        return hmac.digest(self.secret, said, "sha256")[:16].hex()

    def patch(self, patch: Patch) -> Patch:
        """The same patch without a name in it: ids hashed, and what is written beside its pixels removed."""
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
        """dataset/name[#tile]; the tile is hashed too, since an annotation may have named it."""
        dataset, _, rest = patch_id.partition("/")
        name, mark, tile = rest.partition("#")
        return f"{dataset}/{self.name('file', name)}{mark}{self.name('tile', tile)[:12] if mark else ''}"

    def _optional(self, kind: str, text: str | None) -> str | None:
        return self.name(kind, text) if text is not None else None


class NameMap:
    """A CSV of pseudonyms and names, readable by its owner alone; several datasets may share one."""

    def __init__(self, key: Key, path: Path) -> None:
        self.key, self._path = key, path
        try:
            with open(path, "a+", encoding="utf-8", newline="", opener=_private) as file:
                file.seek(0)
                rows = [tuple(row) for row in csv.reader(file)]
                if not rows:
                    csv.writer(file).writerow(_COLUMNS)
        except (OSError, ValueError, csv.Error) as error:
            said = f"the map of names cannot be written: {first_line(error)}"
            raise DatasetError(said, where=path) from None
        if rows and rows[0] != _COLUMNS:
            raise DatasetError(
                "this file is not a map of names", where=path, mend="name another with --names"
            )
        self._known = set(rows)

    @classmethod
    def open(cls, key_file: str | Path, path: str | Path, *, out: str) -> NameMap:
        """Raises DatasetError where key or map cannot be used, or would lie with the shards under `out`."""
        for what, place in (("the key", key_file), ("the map of names", path)):
            if "://" not in out and Path(out).resolve() in (
                *Path(place).resolve().parents,
                Path(place).resolve(),
            ):
                said = f"{what} would go wherever the shards go"
                raise DatasetError(said, where=place, mend="keep it outside of --out")
        return cls(Key.load(key_file), Path(path))

    def add_items(self, items: Iterable[Item]) -> None:
        """Notes the names of files that will be read."""
        rows = []
        for item in items:
            rows.append(("file", self.key.name("file", item.name), item.name, item.key, ""))
            names = {"case": item.case_id, "slide": item.slide_id, "region": item.region_id}
            rows += [(kind, self.key.name(kind, name), name, "", "") for kind, name in names.items() if name]
        self._add(rows)

    def hide(self, entries: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        """(pseudonym, where to look) for (place, reason), which the map keeps."""
        rows = [("place", self.key.name("place", place), place, "", reason) for place, reason in entries]
        self._add(rows)
        return [(row[1], _ELSEWHERE) for row in rows]

    def _add(self, rows: Iterable[tuple[str, ...]]) -> None:
        rows = [tuple(map(printable, row)) for row in rows]
        new = list(dict.fromkeys(row for row in rows if row not in self._known))
        self._known.update(new)
        with open(self._path, "a", encoding="utf-8", newline="", opener=_private) as file:
            csv.writer(file).writerows(new)


def _private(path: str, flags: int) -> int:
    handle = os.open(path, flags, 0o600)
    os.fchmod(handle, 0o600)
    return handle
