"""Retrieval: the patches of a prepared dataset that are most similar to an image or a sentence."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from his2lip import taxonomy
from his2lip.data.images import encode_png
from his2lip.data.shards import ShardSet, open_shards
from his2lip.errors import DatasetError
from his2lip.evaluation import EmbeddingCache, ModelEncoder, SentenceEncoder, read_images
from his2lip.serving.classifier import IMAGE_FILES, comparison_features, load_pixels, read_image

if TYPE_CHECKING:
    from his2lip.models import DualEncoder

Query = str | Path | bytes | np.ndarray  # a sentence, or an image: a file, encoded bytes, uint8 (H, W, 3)

# Relative to the largest feature: the same pixels in another batch differ by less, other pixels by more.
_SAME = 1e-4
_COLUMNS = ["patch_id", "split", "tissue", "biomarker"]


@dataclass(frozen=True)
class Match:
    """One patch: rank from 1, similarity to the query as the model compares, and labels or None.

    `row` is its number within its split.
    """

    rank: int
    similarity: float
    patch_id: str
    split: str
    row: int
    tissue: str | None
    biomarker: str | None


@dataclass(frozen=True)
class Index:
    """The N patches of some splits, embedded by one model.

    table     their metadata, N rows
    rows      int64 (N,), their numbers within their splits
    features  raw features, float32 (N, D)
    """

    model: DualEncoder
    shards: ShardSet
    cache: EmbeddingCache
    table: pa.Table
    rows: np.ndarray
    features: np.ndarray

    def find(
        self,
        query: Query,
        *,
        top: int = 10,
        tissue: str | None = None,
        biomarker: str | None = None,
        keep_query: bool = False,
    ) -> list[Match]:
        """The `top` patches most similar to the query; equal ones in the order of the shards.

        tissue, biomarker  restrict the search to patches of these (any spelling)
        keep_query         whether patches with exactly the query's pixels are included
        Raises ImageError for an image that cannot be used, DatasetError where no patch is left to search.
        """
        asked, sha256 = self._query(query)
        wanted = self._wanted(tissue, biomarker)
        if sha256 is not None and not keep_query:
            wanted &= ~self._is_query(asked, sha256)
        model = self.model
        similarity = (comparison_features(self.features, model) @ comparison_features(asked[None], model).T)[
            :, 0
        ]
        best = np.argsort(np.where(wanted, -similarity, np.inf), kind="stable")[: min(top, int(wanted.sum()))]
        labels = self.table.take(pa.array(best)).select(_COLUMNS).to_pylist()
        return [
            Match(rank=rank, similarity=float(similarity[i]), row=int(self.rows[i]), **row)
            for rank, (i, row) in enumerate(zip(best, labels, strict=True), start=1)
        ]

    def images(self, matches: Sequence[Match]) -> list[bytes]:
        """The encoded images of the matches, as stored in the shards."""
        found: dict[tuple[str, int], bytes] = {}
        for split in {match.split for match in matches}:
            rows = sorted(match.row for match in matches if match.split == split)
            found |= {(split, row): patch["image"] for row, patch in read_images(self.shards, split, rows)}
        return [found[match.split, match.row] for match in matches]

    def _query(self, query: Query) -> tuple[np.ndarray, str | None]:
        """Raw features (D,) of the query, and the sha256 of an image."""
        if isinstance(query, str) and not names_image(query):
            return self.cache.embed_text(SentenceEncoder(self.model), [query])[0], None
        image = query_image(query)
        features = self.cache.embed_images(ModelEncoder(self.model), [image])[0]
        return features[0], hashlib.sha256(image).hexdigest()

    def _wanted(self, tissue: str | None, biomarker: str | None) -> np.ndarray:
        """bool (N,): whether a patch is of the tissue type and biomarker, where these are named."""
        wanted = np.ones(len(self.table), dtype=bool)
        for column, name in (
            ("tissue", tissue and taxonomy.tissue(tissue)),
            ("biomarker", biomarker and taxonomy.biomarker(biomarker)),
        ):
            if name:
                values = self.table[column].to_pylist()
                wanted &= np.array([value == name for value in values], dtype=bool)
                if not wanted.any():
                    here = ", ".join(sorted({v for v in values if v})) or "none are labelled"
                    what = f"no patch here is labelled {name}"
                    fix = f"choose one of its {column}s: {here}"
                    raise DatasetError(what, where=self.shards.uri, key=name, fix=fix)
        return wanted

    def _is_query(self, asked: np.ndarray, sha256: str) -> np.ndarray:
        """bool (N,): whether a patch has the query's bytes, or its pixels in another encoding."""
        same_bytes = np.array([value == sha256 for value in self.table["sha256"].to_pylist()], dtype=bool)
        return same_bytes | (np.abs(self.features - asked).max(axis=1) <= _SAME * np.abs(asked).max())


def build_index(
    shards: str, model: DualEncoder, *, cache: str, splits: Sequence[str] | None = None, threads: int = 2
) -> Index:
    """An index of prepared shards (default: all splits); cached embeddings are reused.

    Raises DatasetError where there is no patch.
    """
    opened, kept = open_shards(shards), EmbeddingCache(cache)
    encoder = ModelEncoder(model)
    chosen = opened.splits if splits is None else list(splits)
    parts = [kept.embed(encoder, opened, split, threads=threads) for split in chosen]
    if not sum(len(p.table) for p in parts):
        raise DatasetError("there is no patch to search", where=shards, fix="name another split or dataset")
    return Index(
        model=model,
        shards=opened,
        cache=kept,
        table=pa.concat_tables([p.table for p in parts]),
        rows=np.concatenate([p.row for p in parts]),
        features=np.concatenate([p.features for p in parts if len(p.features)]),
    )


def names_image(query: str) -> bool:
    """Whether a query is an image file: an existing one, or by its suffix, which a sentence does not have."""
    try:  # a sentence may be too long for the name of a file
        return query.lower().endswith(IMAGE_FILES) or Path(query).is_file()
    except (OSError, ValueError):
        return False


def query_image(query: Query) -> bytes:
    """Encoded bytes of a query that is an image. Raises ImageError where it cannot be read."""
    if isinstance(query, np.ndarray):
        return encode_png(load_pixels(query))
    return query if isinstance(query, bytes) else read_image(query)
