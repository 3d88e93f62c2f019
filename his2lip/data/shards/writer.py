"""Writing of shards: row groups bounded by bytes, files that appear only when whole, dataset.json last."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from his2lip.data.cards import Card
from his2lip.data.shards import info as info_file
from his2lip.data.shards.info import NO_LABEL, DatasetInfo, PartInfo
from his2lip.data.shards.schema import DICTIONARIES, SCHEMA, WITHOUT_IMAGE, Patch
from his2lip.errors import DatasetError, did_you_mean
from his2lip.files import check_writable, filesystem, not_writable, write_file

ROW_GROUP_BYTES = 24 << 20  # of images; 16 to 32 MB keeps a read long and a shuffle window small
PART_BYTES = 256 << 20  # of images a file
INFO = "dataset.json"


class PartWriter:
    """Writes one Parquet file of one split; it appears under its name only when it is closed."""

    def __init__(
        self,
        system: fs.FileSystem,
        root: str,
        name: str,
        split: str,
        *,
        row_group_bytes: int = ROW_GROUP_BYTES,
    ) -> None:
        self._fs, self._path, self._name, self._split = system, f"{root}/{name}", name, split
        self._limit = row_group_bytes
        self._waiting: list[Patch] = []
        self._waiting_bytes = self.bytes = self._rows = self._content = 0
        self._counts: dict[str, int] = {}
        self._keys: list[int] = []
        system.create_dir(self._path.rpartition("/")[0], recursive=True)
        self._file = pq.ParquetWriter(
            f"{self._path}.tmp",
            SCHEMA,
            filesystem=system,
            compression={name: "none" if name == "image" else "zstd" for name in SCHEMA.names},
            use_dictionary=DICTIONARIES,
            write_statistics=WITHOUT_IMAGE,  # an image's minimum would be an image
            write_page_checksum=True,  # a CRC-32 of each page, which readers check
        )

    def add(self, patch: Patch) -> None:
        """Takes one row; a full row group goes to the file."""
        row = {name: getattr(patch, name) for name in WITHOUT_IMAGE}
        self._content = (self._content + info_file.row_digest(row)) % 2**256
        self._keys.append(info_file.id_key(patch.patch_id))
        label = patch.label or NO_LABEL
        self._counts[label] = self._counts.get(label, 0) + 1
        self._waiting.append(patch)
        self._rows += 1
        self._waiting_bytes += len(patch.image)
        self.bytes += len(patch.image)
        if self._waiting_bytes >= self._limit:
            self._flush()

    def close(self) -> PartInfo:
        """Finishes the file and gives it its name."""
        self._flush()
        self._file.close()
        self._fs.move(f"{self._path}.tmp", self._path)
        return PartInfo(
            split=self._split,
            path=self._name,
            rows=self._rows,
            bytes=self.bytes,
            counts=self._counts,
            content=self._content,
            keys=self._keys,
        )

    def discard(self) -> None:
        """Removes what was written."""
        self._file.close()
        self._fs.delete_file(f"{self._path}.tmp")

    def _flush(self) -> None:
        if not self._waiting:
            return
        columns = [pa.array([getattr(p, f.name) for p in self._waiting], f.type) for f in SCHEMA]
        self._file.write_table(
            pa.Table.from_arrays(columns, schema=SCHEMA), row_group_size=len(self._waiting)
        )
        self._waiting, self._waiting_bytes = [], 0


class ShardWriter:
    """Writes a dataset patch by patch: URI/{split}/part-00000.parquet, …, and dataset.json last.

    Memory holds one unfinished row group a split. As a context manager it closes on success, and after an
    exception leaves no dataset.json, so that nobody takes the unfinished dataset for a whole one.
    """

    def __init__(
        self,
        uri: str | Path,
        *,
        card: Card,
        generated: bool = False,
        view: str = "published",
        row_group_bytes: int = ROW_GROUP_BYTES,
        part_bytes: int = PART_BYTES,
    ) -> None:
        self._fs, self._root = claim(uri)
        self.info: DatasetInfo | None = None
        self._card, self._generated, self._view = card, generated, view
        self._row_group_bytes, self._part_bytes = row_group_bytes, part_bytes
        self._open: dict[str, PartWriter] = {}
        self._done: list[PartInfo] = []
        self._keys: set[int] = set()

    def add(self, patch: Patch) -> None:
        """Takes one patch. Raises DatasetError for a patch id seen before, or a split not on the card."""
        if patch.split not in self._card.splits:
            fix = did_you_mean(patch.split, self._card.splits)
            raise DatasetError(f"the card has no split '{patch.split}'", where=patch.patch_id, fix=fix)
        key = info_file.id_key(patch.patch_id)
        if key in self._keys:
            raise DatasetError("this patch id stands twice", where=patch.patch_id)
        self._keys.add(key)
        part = self._open.get(patch.split) or self._start(patch.split)
        part.add(patch)
        if part.bytes >= self._part_bytes:
            self._done.append(self._open.pop(patch.split).close())

    def close(self, *, quarantined: Iterable[tuple[str, str]] = ()) -> DatasetInfo:
        """Finishes all files and writes dataset.json; a second call gives the same answer."""
        if self.info is not None:
            return self.info
        self._done += [part.close() for part in self._open.values()]
        self._open = {}
        self.info = info_file.summarise(
            self._done, self._card, generated=self._generated, view=self._view, quarantined=quarantined
        )
        write_file(self._fs, f"{self._root}/{INFO}", info_file.to_json(self.info))
        return self.info

    def _start(self, split: str) -> PartWriter:
        number = sum(part.split == split for part in self._done)
        name = f"{split}/part-{number:05d}.parquet"
        part = PartWriter(self._fs, self._root, name, split, row_group_bytes=self._row_group_bytes)
        self._open[split] = part
        return part

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            for part in self._open.values():
                part.discard()


def claim(uri: str | Path) -> tuple[fs.FileSystem, str]:
    """Where a new dataset goes. Raises DatasetError where one stands, or where nothing can be written."""
    system, root = filesystem(uri)
    if _stands(system, f"{root}/{INFO}", where=uri):
        raise DatasetError(
            "a prepared dataset stands here already", where=root, fix="remove it, or choose another --out"
        )
    check_writable(uri, fix="check path and rights, or choose another --out")
    return system, root


def _stands(system: fs.FileSystem, path: str, *, where: str | Path) -> bool:
    try:
        return bool(system.get_file_info(path).type != fs.FileType.NotFound)
    except OSError as error:
        raise not_writable(error, where=where, fix="check path and rights, or choose another --out") from None
