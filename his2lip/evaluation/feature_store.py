"""Features on disk: one folder an encoder, append-only Parquet parts that several processes may add to."""

from __future__ import annotations

import io
import uuid
import warnings
from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from his2lip.files import filesystem, write_file

_SUFFIX = ".parquet"


class FeatureStore:
    """Maps a key (of an image or a sentence) to its raw features, float32 (T, D): T crops or one sentence.

    A part appears whole, under a name of its own, or not at all, so that writers need no lock; two that
    embed the same key store it twice, and either copy serves. A part that cannot be read is left out with
    a warning: what it held is embedded again.
    """

    def __init__(self, root: str, folder: str) -> None:
        """`root` is a folder or an object-store URI; `folder` names the encoder below it."""
        self._fs, base = filesystem(root)
        self._folder = f"{base}/{folder}"

    def read(self, keys: Iterable[str]) -> dict[str, np.ndarray]:
        """Those of `keys` that are stored, each float32 (T, D)."""
        wanted = pa.array(sorted(set(keys)), type=pa.string())
        found: dict[str, np.ndarray] = {}
        for path in self._parts() if len(wanted) else ():
            try:
                found |= _read_part(self._fs, path, wanted)
            except (pa.ArrowException, OSError, ValueError, KeyError) as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                warnings.warn(f"left out a broken part of the cache ({path}): {reason}", stacklevel=2)
        return found

    def append(self, features: Mapping[str, np.ndarray]) -> None:
        """Adds one part that holds `features`, each float32 (T, D) of one D."""
        if not features:
            return
        out = io.BytesIO()
        pq.write_table(_to_table(features), out, compression="none", write_page_checksum=True)
        write_file(self._fs, f"{self._folder}/part-{uuid.uuid4().hex}{_SUFFIX}", out.getvalue())

    def _parts(self) -> list[str]:
        selector = pafs.FileSelector(self._folder, allow_not_found=True)
        return sorted(f.path for f in self._fs.get_file_info(selector) if f.path.endswith(_SUFFIX))


def _to_table(features: Mapping[str, np.ndarray]) -> pa.Table:
    """One row a vector; the vectors of a key stand together, in order."""
    vectors = np.concatenate(list(features.values())).astype(np.float32, copy=False)
    keys = [key for key, rows in features.items() for _ in range(len(rows))]
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    return pa.table({"key": keys, "feature": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])})


def _read_part(filesystem: pafs.FileSystem, path: str, wanted: pa.Array) -> dict[str, np.ndarray]:
    """The wanted keys of one part."""
    table = pq.read_table(
        path,
        filesystem=filesystem,
        columns=["key", "feature"],
        page_checksum_verification=True,
        partitioning=None,
    )
    table = table.filter(pc.is_in(table["key"], value_set=wanted)).combine_chunks()
    if not len(table):
        return {}
    keys = table["key"].to_pylist()
    column = table["feature"].combine_chunks()
    vectors = column.flatten().to_numpy(zero_copy_only=False).reshape(len(keys), -1)
    starts = [i for i, key in enumerate(keys) if i == 0 or key != keys[i - 1]]
    return {keys[a]: vectors[a:b] for a, b in zip(starts, [*starts[1:], len(keys)], strict=True)}
