"""Retrieval: the patches of a prepared dataset that are most like an image or a sentence."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from PIL import Image

from his2lip import taxonomy
from his2lip.data.images import decode, encode_jpeg, encode_png
from his2lip.data.shards import ShardSet, open_shards
from his2lip.errors import DatasetError
from his2lip.evaluation import EmbeddingCache, ModelEncoder, SentenceEncoder, read_images
from his2lip.serving.classifier import IMAGE_FILES, comparable, load_pixels, read_image
from his2lip.templates import render

if TYPE_CHECKING:
    from his2lip.models import DualEncoder

Query = str | Path | bytes | np.ndarray  # a sentence, or an image: a file, encoded bytes, uint8 (H, W, 3)

_SAME = 1e-4  # of the largest feature: the same pixels differ by less in another batch, others by more
_COLUMNS = ["patch_id", "split", "tissue", "biomarker"]


@dataclass(frozen=True)
class Match:
    """One patch, its rank from 1, its similarity to the query as the model compares, and its labels or None.

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
    """All patches of some splits under one model: metadata (N rows) and raw features, float32 (N, D).

    `rows` int64 (N,) are the patches' numbers within their splits.
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
        """The `top` patches most like the query, equals in the order of the shards.

        tissue, biomarker  only patches of these (any spelling)
        keep_query         also those that show the query's very pixels, which are left out otherwise
        Raises ImageError for an image that cannot be used, DatasetError where no patch is left to search in.
        """
        asked, sha256 = self._query(query)
        wanted = self._wanted(tissue, biomarker)
        if sha256 is not None and not keep_query:
            wanted &= ~self._shows(asked, sha256)
        model = self.model
        similarity = (comparable(self.features, model) @ comparable(asked[None], model).T)[:, 0]
        best = np.argsort(np.where(wanted, -similarity, np.inf), kind="stable")[: min(top, int(wanted.sum()))]
        labels = self.table.take(pa.array(best)).select(_COLUMNS).to_pylist()
        return [
            Match(rank=rank, similarity=float(similarity[i]), row=int(self.rows[i]), **row)
            for rank, (i, row) in enumerate(zip(best, labels, strict=True), start=1)
        ]

    def images(self, matches: Sequence[Match]) -> list[bytes]:
        """The matches' images as the shards hold them."""
        found: dict[tuple[str, int], bytes] = {}
        for split in {match.split for match in matches}:
            rows = sorted(match.row for match in matches if match.split == split)
            found |= {(split, row): patch["image"] for row, patch in read_images(self.shards, split, rows)}
        return [found[match.split, match.row] for match in matches]

    def _query(self, query: Query) -> tuple[np.ndarray, str | None]:
        """Raw features (D,) of the query, and of an image its sha256."""
        if isinstance(query, str) and not names_image(query):
            return self.cache.embed_text(SentenceEncoder(self.model), [query])[0], None
        image = query_image(query)
        features = self.cache.embed_images(ModelEncoder(self.model), [image])[0]
        return features[0], hashlib.sha256(image).hexdigest()

    def _wanted(self, tissue: str | None, biomarker: str | None) -> np.ndarray:
        """bool (N,): the patches of a tissue type and of a biomarker, where named."""
        wanted = np.ones(len(self.table), dtype=bool)
        for column, name in (
            ("tissue", tissue and taxonomy.tissue(tissue)),
            ("biomarker", biomarker and taxonomy.biomarker(biomarker)),
        ):
            if name:
                values = self.table[column].to_pylist()
                wanted &= np.array([value == name for value in values], dtype=bool)
                if not wanted.any():
                    here = ", ".join(sorted({v for v in values if v})) or "none that are labelled"
                    said = f"no patch to search in is {name}"
                    raise DatasetError(said, where=self.shards.uri, fix=f"its {column}s are: {here}")
        return wanted

    def _shows(self, asked: np.ndarray, sha256: str) -> np.ndarray:
        """bool (N,): the patches that are the query: its bytes, or its pixels in another encoding."""
        same_bytes = np.array([value == sha256 for value in self.table["sha256"].to_pylist()], dtype=bool)
        return same_bytes | (np.abs(self.features - asked).max(axis=1) <= _SAME * np.abs(asked).max())


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
        shards=opened,
        cache=kept,
        table=pa.concat_tables([p.table for p in parts]),
        rows=np.concatenate([p.row for p in parts]),
        features=np.concatenate([p.features for p in parts if len(p.features)]),
    )


def retrieve(query: Query, model: DualEncoder, index: str, *, cache: str, top: int = 10) -> list[Match]:
    """Ranks the patches of the shards at `index` by their similarity to an image or a sentence."""
    return build_index(index, model, cache=cache).find(query, top=top)


def names_image(query: str) -> bool:
    """A sentence may be too long for a file's name, and a misspelt image must not be taken for a sentence."""
    try:
        return query.lower().endswith(IMAGE_FILES) or Path(query).is_file()
    except (OSError, ValueError):
        return False


def query_image(query: Query) -> bytes:
    """Encoded bytes of a query that is an image. Raises ImageError where it cannot be read."""
    if isinstance(query, np.ndarray):
        return encode_png(load_pixels(query))
    return query if isinstance(query, bytes) else read_image(query)


_SIDE = 192  # pixels of a thumbnail's longer side


def write_page(
    path: Path,
    matches: Sequence[Match],
    images: Sequence[bytes],
    *,
    query: str | bytes,
    said: str,
) -> None:
    """The matches with their thumbnails; `query` is a sentence or an encoded image, `said` a remark."""
    is_image = isinstance(query, bytes)
    page = render(
        "serving/gallery.html",
        title="Patches most like an image" if is_image else f"Patches most like “{query!s}”",
        remark=said,
        side=_SIDE,
        query=_thumbnail(query) if isinstance(query, bytes) else "",
        matches=[
            (match, ", ".join(filter(None, (match.tissue, match.biomarker))) or "no label", _thumbnail(image))
            for match, image in zip(matches, images, strict=True)
        ],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _thumbnail(image: bytes) -> str:
    """A small JPEG of an encoded image, in base64."""
    picture = Image.fromarray(decode(image))
    picture.thumbnail((_SIDE, _SIDE))
    return base64.b64encode(encode_jpeg(np.asarray(picture))).decode()
