"""Shards: a prepared dataset opened, checked and read by row groups."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from his2lip.data.shards import info as info_file
from his2lip.data.shards.info import SCHEMA_VERSION, DatasetInfo
from his2lip.data.shards.schema import SCHEMA, VERSION_KEY, WITHOUT_IMAGE, Patch
from his2lip.data.shards.writer import INFO, PART_BYTES, ROW_GROUP_BYTES, ShardWriter
from his2lip.errors import DatasetError, did_you_mean, first_line
from his2lip.files import filesystem

__all__ = [
    "PART_BYTES",
    "ROW_GROUP_BYTES",
    "SCHEMA",
    "SCHEMA_VERSION",
    "DatasetInfo",
    "Patch",
    "RowGroup",
    "ShardSet",
    "ShardWriter",
    "open_shards",
    "read_row_group",
]

_READERS = 8  # threads that read footers: an object store answers each in tens of milliseconds


@dataclass(frozen=True, slots=True)
class RowGroup:
    """One row group of one file: `rows` patches of `bytes` bytes together."""

    path: str
    index: int
    rows: int
    bytes: int


@dataclass(frozen=True)
class ShardSet:
    """A prepared dataset: its dataset.json, and its row groups read when asked for."""

    uri: str
    info: DatasetInfo
    filesystem: fs.FileSystem
    root: str
    _groups: dict[str, list[RowGroup]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def splits(self) -> list[str]:
        return sorted(self.info.counts)

    @property
    def digest(self) -> str:
        """Names the content: the same for the same rows in any order, another for any changed row."""
        return self.info.digest

    def row_groups(self, split: str) -> list[RowGroup]:
        """All row groups of a split, in the order of their files.

        Raises DatasetError for a missing or foreign file, another schema version, or unknown extension types.
        """
        if split not in self._groups:
            paths = self._paths(split)
            with ThreadPoolExecutor(_READERS) as pool:
                found = pool.map(lambda path: _footer(self.filesystem, path), paths)
                groups = [group for of_part in found for group in of_part]
            self._refuse_missing_rows(split, groups)
            self._groups[split] = groups
        return self._groups[split]

    def table(self, split: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A whole split in memory: all columns but the image, unless `columns` says otherwise."""
        batches = list(self.iter_rows(split, columns))
        return pa.Table.from_batches(batches, schema=_schema(columns))

    def iter_rows(
        self, split: str, columns: Sequence[str] | None = None, batch_rows: int = 1024
    ) -> Iterator[pa.RecordBatch]:
        """Rows of a split in order, at most `batch_rows` at once; one row group is in memory at a time."""
        for group in self.row_groups(split):
            yield from self.read(group, columns).to_batches(max_chunksize=batch_rows)

    def read(self, group: RowGroup, columns: Sequence[str] | None = None) -> pa.Table:
        """One row group. Raises DatasetError where its bytes cannot be read."""
        try:
            return read_row_group(self.filesystem, group, columns)
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(error, group.path) from None

    def _paths(self, split: str) -> list[str]:
        if split not in self.info.counts:
            raise DatasetError(
                f"no split '{split}' here", where=self.uri, fix=did_you_mean(split, self.splits)
            )
        return [f"{self.root}/{path}" for path in sorted(self.info.parts) if path.startswith(f"{split}/")]

    def _refuse_missing_rows(self, split: str, groups: list[RowGroup]) -> None:
        found: dict[str, int] = {}
        for group in groups:
            found[group.path] = found.get(group.path, 0) + group.rows
        for path in self._paths(split):
            want = self.info.parts[path.removeprefix(f"{self.root}/")]
            if found.get(path, 0) != want:
                said = f"this shard holds {found.get(path, 0)} rows, dataset.json says {want}"
                raise DatasetError(said, where=path, fix="prepare the dataset again")


def open_shards(uri: str | Path) -> ShardSet:
    """Opens a prepared dataset by its folder or URI; reads dataset.json alone.

    Raises DatasetError where there is none, where its preparation never ended, or for another schema version.
    """
    system, root = filesystem(uri)
    try:
        with system.open_input_stream(f"{root}/{INFO}") as source:
            data = source.read()
    except (FileNotFoundError, NotADirectoryError):
        raise DatasetError(
            "no prepared dataset is here (there is no dataset.json)",
            where=str(uri),
            fix="his2lip data prepare CARD --root DIR --out URI",
        ) from None
    except OSError as error:
        said = f"dataset.json cannot be read: {first_line(error)}"
        raise DatasetError(said, where=str(uri), fix="check network and rights") from None
    return ShardSet(
        uri=str(uri), info=info_file.from_json(data, where=str(uri)), filesystem=system, root=root
    )


def read_row_group(system: fs.FileSystem, group: RowGroup, columns: Sequence[str] | None = None) -> pa.Table:
    """One row group: all columns but the image, unless `columns` names others. Arrow's errors are not caught.

    The checksums of its pages are verified where it has them: shards of older versions have none.
    """
    with pq.ParquetFile(group.path, filesystem=system, page_checksum_verification=True) as file:
        wanted = list(_schema(columns).names)
        return file.read_row_group(group.index, columns=wanted, use_threads=False).select(wanted)


def _schema(columns: Iterable[str] | None) -> pa.Schema:
    names = WITHOUT_IMAGE if columns is None else list(columns)
    unknown = [name for name in names if name not in SCHEMA.names]
    if unknown:
        raise DatasetError(
            f"shards have no column '{unknown[0]}'", fix=did_you_mean(unknown[0], SCHEMA.names)
        )
    return pa.schema([SCHEMA.field(name) for name in names], metadata=SCHEMA.metadata)


def _footer(system: fs.FileSystem, path: str) -> list[RowGroup]:
    try:
        metadata = pq.read_metadata(path, filesystem=system)
    except FileNotFoundError:
        raise DatasetError("this shard is missing", where=path, fix="prepare the dataset again") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(error, path) from None
    _refuse_foreign(metadata.schema.to_arrow_schema(), path)
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    return [RowGroup(path, i, group.num_rows, group.total_byte_size) for i, group in enumerate(groups)]


def _unreadable(error: Exception, path: str) -> DatasetError:
    said = f"this shard cannot be read: {first_line(error)}"
    return DatasetError(said, where=path, fix="prepare the dataset again")


def _refuse_foreign(schema: pa.Schema, path: str) -> None:
    for column in schema:
        marked = column.metadata and b"ARROW:extension:name" in column.metadata
        if marked or isinstance(column.type, pa.BaseExtensionType):
            said = f"the column '{column.name}' has an Arrow extension type, which shards never have"
            raise DatasetError(said, where=path)
    version = (schema.metadata or {}).get(VERSION_KEY, b"(none)").decode("utf-8", "replace")
    info_file.refuse_version(version, where=path)
    if not schema.equals(SCHEMA):
        raise DatasetError("this file does not have the columns of a shard", where=path)
