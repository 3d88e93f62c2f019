"""Writes shards: row groups of bounded size, files that appear only when complete, dataset.json last."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, suppress
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
from his2lip.files import check_writable, filesystem, not_writable, to_disk, write_file, writing

ROW_GROUP_BYTES = 24 << 20  # of images; large enough for fast reads, small enough to shuffle in memory
PART_BYTES = 256 << 20  # of images per file
INFO = "dataset.json"
_FIX = "check the path and its permissions, or choose another --out"


class PartWriter:
    """Writes one Parquet file of one split. The file gets its name only when it is closed.

    Each method that writes raises StorageError where the disk is full.
    """

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
        self._buffer: list[Patch] = []
        self._buffer_bytes = self.bytes = self._rows = self._content = 0
        self._counts: dict[str, int] = {}
        self._keys: list[int] = []
        with self._writing():
            system.create_dir(self._path.rpartition("/")[0], recursive=True)
            self._file = pq.ParquetWriter(
                f"{self._path}.tmp",
                SCHEMA,
                filesystem=system,
                compression={name: "none" if name == "image" else "zstd" for name in SCHEMA.names},
                use_dictionary=DICTIONARIES,
                write_statistics=WITHOUT_IMAGE,  # the minimum of the image column would be a whole image
                write_page_checksum=True,  # a CRC-32 per page, which `read_row_group` verifies
            )

    def add(self, patch: Patch) -> None:
        """Adds one row; a full row group is written to the file."""
        row = {name: getattr(patch, name) for name in WITHOUT_IMAGE}
        self._content = (self._content + info_file.row_digest(row)) % 2**256
        self._keys.append(info_file.id_key(patch.patch_id))
        label = patch.label or NO_LABEL
        self._counts[label] = self._counts.get(label, 0) + 1
        self._buffer.append(patch)
        self._rows += 1
        self._buffer_bytes += len(patch.image)
        self.bytes += len(patch.image)
        if self._buffer_bytes >= self._limit:
            self._flush()

    def close(self) -> PartInfo:
        """Writes the remaining rows and gives the file its name."""
        self._flush()
        with self._writing():
            self._file.close()
            if isinstance(self._fs, fs.LocalFileSystem):  # before dataset.json says that it is whole
                to_disk(Path(f"{self._path}.tmp"))
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
        """Removes the unfinished file."""
        with suppress(OSError):  # a full disk may not even take the end of the file
            self._file.close()
        with suppress(FileNotFoundError):
            self._fs.delete_file(f"{self._path}.tmp")

    def _writing(self) -> AbstractContextManager[None]:
        return writing("a file of shards", self._path)

    def _flush(self) -> None:
        if not self._buffer:
            return
        columns = [pa.array([getattr(p, f.name) for p in self._buffer], f.type) for f in SCHEMA]
        table = pa.Table.from_arrays(columns, schema=SCHEMA)
        with self._writing():
            self._file.write_table(table, row_group_size=len(self._buffer))
        self._buffer, self._buffer_bytes = [], 0


class ShardWriter:
    """Writes a dataset patch by patch: URI/{split}/part-00000.parquet, …, and dataset.json last.

    One unfinished row group per split is in memory. As a context manager, it calls `close` on success. After
    an exception, it removes unfinished files and writes no dataset.json, so the dataset cannot be opened.

    The constructor raises DatasetError as `claim` does.
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
        """Adds one patch. Raises DatasetError for a repeated patch id and for a split not on the card."""
        if patch.split not in self._card.splits:
            what, fix = f"the card has no split '{patch.split}'", did_you_mean(patch.split, self._card.splits)
            raise DatasetError(what, where=patch.patch_id, key=patch.split, fix=fix)
        key = info_file.id_key(patch.patch_id)
        if key in self._keys:
            raise DatasetError("two patches have this patch id", where=patch.patch_id, key="patch_id")
        self._keys.add(key)
        part = self._open.get(patch.split) or self._start(patch.split)
        part.add(patch)
        if part.bytes >= self._part_bytes:
            self._done.append(self._open.pop(patch.split).close())

    def close(self, *, quarantined: Iterable[tuple[str, str]] = ()) -> DatasetInfo:
        """Finishes all files and writes dataset.json. A second call only returns the same description."""
        if self.info is not None:
            return self.info
        self._done += [part.close() for part in self._open.values()]
        self._open = {}
        self.info = info_file.summarise(
            self._done, self._card, generated=self._generated, view=self._view, quarantined=quarantined
        )
        write_file(
            self._fs,
            f"{self._root}/{INFO}",
            info_file.to_json(self.info),
            what="the description of the dataset",
        )
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
    """The file system and path of a new dataset, created and writable.

    Raises DatasetError where a prepared dataset is there already, and where nothing can be written.
    """
    system, root = filesystem(uri)
    try:
        exists = system.get_file_info(f"{root}/{INFO}").type != fs.FileType.NotFound
    except OSError as error:
        raise not_writable(error, where=uri, fix=_FIX) from None
    if exists:
        what = "a prepared dataset is here already"
        raise DatasetError(what, where=root, key="--out", fix="remove it, or choose another --out")
    check_writable(uri, fix=_FIX)
    return system, root
