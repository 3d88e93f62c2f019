"""Parquet tables read in the calling thread: threads of Arrow can abort or hang a process at its end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs


def read_parquet(
    source: bytes | str | Path,
    *,
    columns: Sequence[str] | None = None,
    filesystem: fs.FileSystem | None = None,
    checksums: bool = False,
) -> pa.Table:
    """A table from the bytes of a Parquet file, or from its place, with all or some of its columns.

    `pyarrow.parquet.read_table` starts threads, which are at times still alive when Python ends. The process
    then aborts with all its work done ("terminate called without an active exception", Arrow's issue 34314),
    or hangs (issue 50482).

    checksums  whether those of the pages are compared, where the file has them
    Raises Arrow's own errors where the file cannot be read or lacks a column.
    """
    place = pa.BufferReader(source) if isinstance(source, bytes) else source
    with pq.ParquetFile(place, filesystem=filesystem, page_checksum_verification=checksums) as file:
        if columns is None:
            return file.read(use_threads=False)
        absent = [name for name in columns if name not in file.schema_arrow.names]
        if absent:
            raise pa.ArrowInvalid(f"the table has no column '{absent[0]}'")
        return file.read(columns=list(columns), use_threads=False).select(list(columns))
