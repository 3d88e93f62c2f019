"""Features on disk: one folder per encoder, of Parquet parts that several processes may add to."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import uuid
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from his2lip.errors import StorageError, first_line
from his2lip.files import answers, filesystem, in_folder, read_file, write_file
from his2lip.parquet import read_parquet

_SUFFIX = ".parquet"
_DAMAGED = ".damaged"  # added to the name of a part that must not be read again
_DIGEST = b"his2lip.sha256"  # key of a part's metadata: sha256 of its keys and features
_log = logging.getLogger(__name__)


class FeatureStore:
    """Maps the key of an image or a sentence to its raw features, float32 (T, D): T crops, or one sentence.

    A part appears whole, under a unique name, or not at all, so writers need no lock. Two that embed the same
    key store it twice, and either copy may be used. A part whose content is not what was written is listed in
    `damaged` and set aside under another name; its features are then missing, and are computed again.
    A store that does not answer damages nothing: the methods raise StorageError, as `answers`.
    """

    def __init__(self, root: str, folder: str, *, width: int) -> None:
        """`root` is a folder or an object-store URI. `folder` names the encoder below it. `width` is D."""
        self._fs, base = filesystem(root)
        self._folder = f"{base}/{folder}"
        self._width = width
        self.damaged: list[str] = []

    def read(self, keys: Iterable[str]) -> dict[str, np.ndarray]:
        """Those of `keys` that are stored, each float32 (T, D)."""
        wanted = frozenset(keys)
        found: dict[str, np.ndarray] = {}
        for path in self._parts() if wanted else ():
            try:
                data = read_file(self._fs, path)
            except FileNotFoundError:  # another process has set it aside
                continue
            try:
                found |= _read_part(data, wanted, width=self._width)
            except (pa.ArrowException, OSError, ValueError, KeyError) as error:
                self._set_aside(path, first_line(error))
        return found

    def count(self, keys: AbstractSet[str]) -> int:
        """How many of these keys are stored, without reading their features."""
        found: set[str] = set()
        for path in self._parts() if keys else ():
            found.update(key for key in _keys(self._fs, path) if key in keys)
        return len(found)

    def append(self, features: Mapping[str, np.ndarray]) -> None:
        """Adds one part with `features`, each float32 (T, D)."""
        if not features:
            return
        out = io.BytesIO()
        pq.write_table(_to_table(features), out, compression="none", write_page_checksum=True)
        path = f"{self._folder}/part-{uuid.uuid4().hex}{_SUFFIX}"
        try:
            with answers(path):
                write_file(self._fs, path, out.getvalue(), what="a part of the feature cache")
        except FileNotFoundError as error:  # its folder cannot be created
            fix = "set the cache to a folder that you can write to"
            what = f"the feature cache cannot be written: {first_line(error)}"
            raise StorageError(what, where=path, key="store", fix=fix) from None

    def _parts(self) -> list[str]:
        return sorted(f.path for f in in_folder(self._fs, self._folder) if f.path.endswith(_SUFFIX))

    def _set_aside(self, path: str, reason: str) -> None:
        self.damaged.append(f"{path}: {reason}")
        _log.warning("a part of the feature cache is damaged and is computed again: %s: %s", path, reason)
        with contextlib.suppress(OSError):  # another process did so already, or the cache is read-only
            self._fs.move(path, path + _DAMAGED)


def _to_table(features: Mapping[str, np.ndarray]) -> pa.Table:
    """One row per vector. The vectors of a key follow one another, in order."""
    vectors = np.concatenate(list(features.values())).astype(np.float32, copy=False)
    keys = [key for key, rows in features.items() for _ in range(len(rows))]
    flat = np.ascontiguousarray(vectors).reshape(-1)
    columns = {"key": keys, "feature": pa.FixedSizeListArray.from_arrays(pa.array(flat), vectors.shape[1])}
    return pa.table(columns).replace_schema_metadata({_DIGEST: _digest(keys, flat)})


def _read_part(data: bytes, wanted: AbstractSet[str], *, width: int) -> dict[str, np.ndarray]:
    """The wanted keys of one part. Raises ValueError for content that is not what was written."""
    table = read_parquet(data, columns=["key", "feature"], checksums=True)
    keys, vectors = _checked(table, width)
    # A set, which all parts share: the time of `read` grows with the keys, not with keys x parts.
    is_wanted = np.fromiter((key in wanted for key in keys), dtype=bool, count=len(keys))
    if not is_wanted.any():
        return {}
    if not is_wanted.all():  # what is not wanted is not kept in memory
        keys, vectors = [key for key in keys if key in wanted], vectors[is_wanted]
    starts = [i for i, key in enumerate(keys) if i == 0 or key != keys[i - 1]]
    return {keys[a]: vectors[a:b] for a, b in zip(starts, [*starts[1:], len(keys)], strict=True)}


def _keys(filesystem: pafs.FileSystem, path: str) -> list[str]:
    """The keys of a part; none where it cannot be read."""
    try:
        return read_parquet(path, filesystem=filesystem, columns=["key"])["key"].to_pylist()
    except (pa.ArrowException, OSError, KeyError):
        with contextlib.suppress(FileNotFoundError):
            read_file(filesystem, path)  # raises StorageError where not the part but its store is at fault
        return []


def _checked(table: pa.Table, width: int) -> tuple[list[str], np.ndarray]:
    """Keys, and features float32 (rows, D), compared with the part's digest; earlier versions have none."""
    kind = table.schema.field("feature").type
    if kind != pa.list_(pa.float32(), width):
        raise ValueError(f"its features are {kind}, not {width} numbers each")
    if table["key"].null_count or table["feature"].null_count:
        raise ValueError("it has empty values")
    keys, flat = table["key"].to_pylist(), _vectors(table)
    if not np.isfinite(flat).all():
        raise ValueError("it has features that are not finite")
    known = (table.schema.metadata or {}).get(_DIGEST)
    if known is not None and known != _digest(keys, flat):
        raise ValueError("its content is not what its digest names")
    return keys, flat.reshape(len(keys), width)


def _vectors(table: pa.Table) -> np.ndarray:
    """All features of a table behind one another, float32 (rows x D,)."""
    return np.concatenate(
        [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table["feature"].chunks]
        or [np.zeros(0, dtype=np.float32)]
    )


def _digest(keys: Sequence[str], flat: np.ndarray) -> bytes:
    content = hashlib.sha256("\n".join(keys).encode())
    content.update(np.ascontiguousarray(flat).data)
    return content.hexdigest().encode()
