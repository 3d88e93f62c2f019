"""Parquet tables are read without threads of Arrow, which can abort a process that has done its work."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from his2lip.parquet import read_parquet

TABLE = pa.table({"key": [str(number) for number in range(5000)], "value": list(range(5000))})

_READS = """
import os, sys
from his2lip.parquet import read_parquet
def threads():
    return len(os.listdir("/proc/self/task"))
before, data = threads(), open(sys.argv[1], "rb").read()
assert len(read_parquet(data)) == 5000
print(threads() - before)
assert len(read_parquet(sys.argv[1], columns=["key"])) == 5000
print(threads() - before)
"""


def content(**options: object) -> bytes:
    out = io.BytesIO()
    pq.write_table(TABLE, out, row_group_size=500, **options)
    return out.getvalue()


def test_bytes_and_files_give_the_table_with_the_columns_in_the_order_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(content())
    for source in (content(), tmp_path / "a.parquet", str(tmp_path / "a.parquet")):
        assert read_parquet(source).equals(TABLE)
        assert read_parquet(source, columns=["value", "key"]).equals(TABLE.select(["value", "key"]))


def test_what_cannot_be_read_raises_arrow_s_own_errors() -> None:
    with pytest.raises(pa.ArrowInvalid, match="no column 'other'"):
        read_parquet(content(), columns=["key", "other"])
    with pytest.raises(pa.ArrowInvalid):
        read_parquet(b"PAR1, but no table")
    damaged = bytearray(content(compression="none", use_dictionary=False, write_page_checksum=True))
    at = damaged.index(b"4321")
    damaged[at : at + 4] = b"9321"
    assert read_parquet(bytes(damaged))["key"].to_pylist().count("9321") == 1
    with pytest.raises(OSError, match=r"(?i)crc|checksum"):
        read_parquet(bytes(damaged), checksums=True)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="counts threads through /proc")
def test_reading_starts_none_of_arrow_s_computing_threads(tmp_path: Path) -> None:
    place = tmp_path / "a.parquet"
    place.write_bytes(content())
    command = [sys.executable, "-c", _READS, str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    of_bytes, of_file = map(int, done.stdout.split())
    assert of_bytes == 0
    assert of_file <= 1  # one reads ahead from files and stores
