"""Retrieval: the patches of a prepared dataset that are most like an image or a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from his2lip.data.images import encode_png
from his2lip.data.shards import open_shards
from his2lip.errors import DatasetError
from his2lip.evaluation.embeddings import EmbeddingCache
from his2lip.evaluation.encoders import ModelEncoder, SentenceEncoder
from his2lip.serving.classify import load_pixels

if TYPE_CHECKING:
    from his2lip.models.encoder import DualEncoder

_IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")


@dataclass(frozen=True)
class Match:
    """One patch, its rank from 1, and its cosine with the query; labels are canonical or None."""

    rank: int
    patch_id: str
    similarity: float
    tissue: str | None
    biomarker: str | None


@dataclass(frozen=True)
class Index:
    """All patches of some splits under one model: metadata (N rows) and unit features, float32 (N, D)."""

    model: DualEncoder
    cache: EmbeddingCache
    table: pa.Table
    features: np.ndarray

    def find(self, query: str | Path | bytes | np.ndarray, *, top: int = 10) -> list[Match]:
        """The `top` patches with the highest cosine, the same query's equals in the order of the shards.

        A query is a sentence, or an image: encoded bytes, uint8 pixels, a Path, or a str that names a file.
        """
        similarity = self.features @ self._query(query)
        best = np.argsort(-similarity, kind="stable")[:top]
        rows = self.table.take(pa.array(best)).select(["patch_id", "tissue", "biomarker"]).to_pylist()
        return [
            Match(rank=rank, similarity=float(similarity[i]), **row)
            for rank, (i, row) in enumerate(zip(best, rows, strict=True), start=1)
        ]

    def _query(self, query: str | Path | bytes | np.ndarray) -> np.ndarray:
        if isinstance(query, str) and not _names_a_file(query):
            return _unit(self.cache.embed_text(SentenceEncoder(self.model), [query]))[0]
        image = query if isinstance(query, bytes) else encode_png(load_pixels(query))
        return _unit(self.cache.embed_images(ModelEncoder(self.model), [image])[0])[0]


def build_index(
    shards: str, model: DualEncoder, *, cache: str, splits: Sequence[str] | None = None, threads: int = 2
) -> Index:
    """An index over prepared shards, all splits by default; what was embedded before comes from the cache."""
    opened, kept = open_shards(shards), EmbeddingCache(cache)
    encoder = ModelEncoder(model)
    chosen = opened.splits if splits is None else list(splits)
    parts = [kept.embed(encoder, opened, split, threads=threads) for split in chosen]
    if not sum(len(p.table) for p in parts):
        raise DatasetError("there is no patch to search in", where=shards)
    return Index(
        model=model,
        cache=kept,
        table=pa.concat_tables([p.table for p in parts]),
        features=_unit(np.concatenate([p.features for p in parts if len(p.features)])),
    )


def retrieve(
    query: str | Path | bytes | np.ndarray, model: DualEncoder, index: str, *, cache: str, top: int = 10
) -> list[Match]:
    """Ranks the patches of the shards at `index` by cosine with an image or a sentence."""
    return build_index(index, model, cache=cache).find(query, top=top)


def _names_a_file(query: str) -> bool:
    """A sentence may be too long for a file's name, and a misspelt image must not be taken for a sentence."""
    try:
        return query.lower().endswith(_IMAGES) or Path(query).is_file()
    except (OSError, ValueError):
        return False


def _unit(features: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(length > 0, length, 1)
