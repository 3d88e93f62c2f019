"""Reads shards: opens a prepared dataset, checks its files, and reads them by row groups."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from his2lip.config import validate
from his2lip.data.cards import Card, list_cards, load_card
from his2lip.data.shards import info as info_file
from his2lip.data.shards.info import DatasetInfo
from his2lip.data.shards.schema import SCHEMA, VERSION_KEY, WITHOUT_IMAGE
from his2lip.data.shards.writer import INFO
from his2lip.errors import DatasetError, did_you_mean, first_line
from his2lip.files import filesystem, patiently

T = TypeVar("T")
_THREADS = 8  # that read footers, since each takes tens of milliseconds on an object store
_FIX = "prepare the dataset again"
# Words in Arrow's errors for a damaged file, and those by which it names a store. INVALID_ACCESS_KEY_ID is an
# error of a store that has words of both.
_DAMAGE = re.compile(r"(?i)page integrity|checksum|thrift|end of stream|corrupt|decompress|malformed|invalid")
_STORES = re.compile(r"AWS Error|google::cloud|Azure Error")


@dataclass(frozen=True, slots=True)
class RowGroup:
    """One row group of one shard.

    path   of the shard on its file system
    index  of the row group in the shard
    rows   number of patches
    bytes  total size, without compression
    """

    path: str
    index: int
    rows: int
    bytes: int


_Read = tuple[RowGroup, tuple[str, ...]]  # a row group and the columns that are read


@dataclass(frozen=True)
class ShardSet:
    """A prepared dataset: its dataset.json, and its row groups, which are read on demand."""

    uri: str
    info: DatasetInfo
    filesystem: fs.FileSystem
    root: str
    _groups: dict[str, list[RowGroup]] = field(default_factory=dict, repr=False, compare=False)
    _kept: dict[_Read, pa.Table] = field(default_factory=dict, repr=False, compare=False)  # at most one

    @property
    def splits(self) -> list[str]:
        """Names of the splits, sorted."""
        return sorted(self.info.counts)

    @property
    def digest(self) -> str:
        """Identity of the content: the same for the same rows in any order, another for any changed row."""
        return self.info.digest

    def card(self) -> Card:
        """The card that the dataset is scored by: the project's (`project_card`), or the one in dataset.json.

        Raises ConfigError for a stored card that is not valid.
        """
        return self.project_card() or validate(Card, self.info.card, where=f"{self.uri}/dataset.json, card")

    def project_card(self) -> Card | None:
        """The project's present card of this name, whose protocols may be newer than those in dataset.json.

        None for a dataset that was prepared with a card of one's own. A dataset.json of an earlier version
        does not record that; there, a card with the same reader counts as the project's.
        """
        if self.info.project_card is False or self.info.name not in list_cards():
            return None
        card = load_card(self.info.name)
        return card if self.info.project_card or self.info.card.get("reader") == card.reader else None

    def row_groups(self, split: str) -> list[RowGroup]:
        """All row groups of a split, in the order of its files.

        Raises DatasetError for an unknown split, and for a file that is missing, cannot be read, is not a
        shard, has another schema version or a number of rows that differs from dataset.json.
        """
        if split not in self._groups:
            paths = self._paths(split)
            with ThreadPoolExecutor(_THREADS) as pool:
                found = pool.map(lambda path: _footer(self.filesystem, path), paths)
                groups = [group for of_part in found for group in of_part]
            self._refuse_missing_rows(split, groups)
            self._groups[split] = groups
        return self._groups[split]

    def table(self, split: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A whole split in memory, with the given columns; by default all but the image."""
        batches = list(self.iter_rows(split, columns))
        return pa.Table.from_batches(batches, schema=_schema(columns))

    def iter_rows(
        self, split: str, columns: Sequence[str] | None = None, batch_rows: int = 1024
    ) -> Iterator[pa.RecordBatch]:
        """The rows of a split in order, in batches of at most `batch_rows`; reads one row group at a time."""
        for group in self.row_groups(split):
            yield from self.read(group, columns).to_batches(max_chunksize=batch_rows)

    def read(self, group: RowGroup, columns: Sequence[str] | None = None) -> pa.Table:
        """One row group with the given columns (default: all but the image).

        Raises DatasetError where it cannot be read, and for an unknown column.
        """
        return read_row_group(self.filesystem, group, columns)

    def read_once(self, group: RowGroup, columns: Sequence[str]) -> pa.Table:
        """`read`, and the table stays in memory until another one is read in this way.

        For callers that take the rows of a row group in several calls.
        """
        wanted = (group, tuple(columns))
        table = self._kept.get(wanted)
        if table is None:
            table = self.read(group, columns)
            self._kept.clear()
            self._kept[wanted] = table
        return table

    def _paths(self, split: str) -> list[str]:
        if split not in self.info.counts:
            what = f"the dataset has no split '{split}'"
            raise DatasetError(what, where=self.uri, key=split, fix=did_you_mean(split, self.splits))
        return [f"{self.root}/{path}" for path in sorted(self.info.parts) if path.startswith(f"{split}/")]

    def _refuse_missing_rows(self, split: str, groups: list[RowGroup]) -> None:
        found: dict[str, int] = {}
        for group in groups:
            found[group.path] = found.get(group.path, 0) + group.rows
        for path in self._paths(split):
            stated = self.info.parts[path.removeprefix(f"{self.root}/")]
            if found.get(path, 0) != stated:
                what = f"this shard has {found.get(path, 0)} rows, but dataset.json states {stated}"
                raise DatasetError(what, where=path, key="parts", fix=_FIX)


def open_shards(uri: str | Path) -> ShardSet:
    """Opens the prepared dataset at a folder or URI. Only dataset.json is read.

    Raises DatasetError where there is no dataset or an unfinished one, and where dataset.json cannot be read,
    is damaged, or has another schema version.
    """
    system, root = filesystem(uri)
    try:
        with system.open_input_stream(f"{root}/{INFO}") as source:
            data = source.read()
    except (FileNotFoundError, NotADirectoryError):
        what = "there is no prepared dataset here (no dataset.json)"
        fix = "run his2lip data prepare CARD --root DIR --out URI"
        raise DatasetError(what, where=str(uri), key=INFO, fix=fix) from None
    except Exception as error:  # besides OSError, what the drivers of Arrow and fsspec raise
        what = f"dataset.json cannot be read: {first_line(error)}"
        fix = "check the network and the permissions"
        raise DatasetError(what, where=str(uri), key=INFO, fix=fix) from None
    return ShardSet(
        uri=str(uri), info=info_file.from_json(data, where=str(uri)), filesystem=system, root=root
    )


def read_row_group(system: fs.FileSystem, group: RowGroup, columns: Sequence[str] | None = None) -> pa.Table:
    """One row group with the given columns; by default all but the image.

    Page checksums are verified; shards of older versions have none. A store that fails is asked again for a
    minute and a half. Raises DatasetError for an unknown column and for a file that is missing or damaged,
    and StorageError where the store still fails.
    """
    wanted = list(_schema(columns).names)

    def read() -> pa.Table:
        with pq.ParquetFile(group.path, filesystem=system, page_checksum_verification=True) as file:
            return file.read_row_group(group.index, columns=wanted, use_threads=False).select(wanted)

    try:
        return _from_store(read, system, group.path)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(error, group.path) from None


def _from_store(read: Callable[[], T], system: fs.FileSystem, path: str) -> T:
    """What `read` returns. Where a store fails for a time, `read` is called again.

    What no other call would change is raised at once: a missing file, a damaged one, an error of a local
    disk. Arrow raises OSError for damage too; only the words of the error tell the two apart.
    """
    if isinstance(system, fs.LocalFileSystem):
        return read()

    def attempt() -> T | OSError:
        try:
            return read()
        except FileNotFoundError as error:
            return error
        except OSError as error:
            if _DAMAGE.search(str(error)) and not _STORES.search(str(error)):
                return error
            raise

    found = patiently(attempt, "this shard cannot be read", path)
    if isinstance(found, OSError):
        raise found
    return found


def _schema(columns: Iterable[str] | None) -> pa.Schema:
    names = WITHOUT_IMAGE if columns is None else list(columns)
    unknown = [name for name in names if name not in SCHEMA.names]
    if unknown:
        what, fix = f"shards have no column '{unknown[0]}'", did_you_mean(unknown[0], SCHEMA.names)
        raise DatasetError(what, key=unknown[0], fix=fix)
    return pa.schema([SCHEMA.field(name) for name in names], metadata=SCHEMA.metadata)


def _footer(system: fs.FileSystem, path: str) -> list[RowGroup]:
    try:
        metadata = _from_store(lambda: pq.read_metadata(path, filesystem=system), system, path)
    except FileNotFoundError:
        raise DatasetError("this shard is missing", where=path, fix=_FIX) from None
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(error, path) from None
    _check_schema(metadata.schema.to_arrow_schema(), path)
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    return [RowGroup(path, i, group.num_rows, group.total_byte_size) for i, group in enumerate(groups)]


def _unreadable(error: Exception, path: str) -> DatasetError:
    return DatasetError(f"this shard cannot be read: {first_line(error)}", where=path, fix=_FIX)


def _check_schema(schema: pa.Schema, path: str) -> None:
    """Raises DatasetError for other columns, another schema version, and Arrow extension types.

    Deserialising an extension type can run code.
    """
    for column in schema:
        marked = column.metadata and b"ARROW:extension:name" in column.metadata
        if marked or isinstance(column.type, pa.BaseExtensionType):
            what = f"the column '{column.name}' has an Arrow extension type, which shards never have"
            raise DatasetError(what, where=path, key=column.name, fix=_FIX)
    version = (schema.metadata or {}).get(VERSION_KEY, b"(none)").decode("utf-8", "replace")
    info_file.refuse_version(version, where=path)
    if not schema.equals(SCHEMA):
        what = "the columns of this file are not those of a shard"
        raise DatasetError(what, where=path, key="schema", fix=_FIX)
