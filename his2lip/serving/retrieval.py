"""Retrieval: the patches of a prepared dataset that are most similar to an image or to a sentence."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from his2lip import taxonomy
from his2lip.data.images import encode_png, look_at
from his2lip.data.shards import ShardSet, open_shards
from his2lip.errors import DatasetError
from his2lip.evaluation import EmbeddingCache, ModelEncoder, SentenceEncoder, View, nearest, read_images
from his2lip.serving import gates
from his2lip.serving.appearance import appearance
from his2lip.serving.basis import Basis, Scale, stated_precision
from his2lip.serving.classifier import (
    IMAGE_FILES,
    SLIDE_FILES,
    Check,
    comparison_features,
    load_pixels,
    read_image,
)
from his2lip.serving.history import TrainingHistory

if TYPE_CHECKING:
    from his2lip.models import DualEncoder

Query = str | Path | bytes | np.ndarray  # a sentence, or an image: a file, encoded bytes, uint8 (H, W, 3)

# Largest difference between the features of equal pixels, relative to the largest feature. Equal pixels in
# different batches differ by less, and different pixels by more.
_SAME = 1e-4
_SENTENCE = "the query is a sentence"
# One word with a suffix that has a letter, such as `patch.gif`; not `CD3.` or `p.53`.
_FILE_NAME = re.compile(r"\S+\.(?=\d*[a-z])[a-z0-9]{2,5}", re.IGNORECASE)
_COLUMNS = ["patch_id", "split", "tissue", "biomarker"]


@dataclass(frozen=True)
class Match:
    """One patch that was found.

    rank               from 1, the most similar
    similarity         to the query: cosine or dot product, as the model compares
    row                number of the patch in its split
    tissue, biomarker  its labels; None where it has none
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

    table     columns of the patches, except the image
    rows      int64 (N,), the row of each patch in its split
    features  raw features, float32 (N, D)
    history   of the model's training
    """

    model: DualEncoder
    shards: ShardSet
    cache: EmbeddingCache
    table: pa.Table
    rows: np.ndarray
    features: np.ndarray
    history: TrainingHistory

    def check(
        self, query: Query, *, scale: Scale, tissue: str | None = None, biomarker: str | None = None
    ) -> Check:
        """What the results of a query rest on, and the first gate that holds back those of an image.

        scale              of the query image
        tissue, biomarker  those that the search is restricted to (any spelling)
        Raises as `find` does.
        """
        name = None if biomarker is None else taxonomy.biomarker(biomarker)
        refusal, shown, familiarity = None, _SENTENCE, _SENTENCE
        if not (isinstance(query, str) and not names_image(query)):
            pixels = load_pixels(query)
            sides, look = (pixels.shape[0], pixels.shape[1]), look_at(pixels)
            features, _ = self._query(query)
            (distance,) = self.history.distances(features[None], [appearance(pixels)])
            shown = self.history.scale(sides, scale, View())
            familiarity = self.history.distance(distance)
            refusal = (
                gates.glass(look)
                or gates.stain(look, self.history, about_staining=name is not None)
                or gates.scale(sides, scale, self.history)
                or gates.unfamiliar(distance)
            )
        searched, every = self.searched(tissue, biomarker), len(self.table)
        of = "" if searched == every else f"{searched:,} of "
        organs = self.shards.info.card.get("organ", [])
        basis = Basis(
            trained_on=self.history.datasets,
            calibrated_on="not calibrated: similarities only",
            biomarker=self.history.biomarker(name),
            organ="; ".join(map(self.history.organ, organs)) or "of the patches searched: unknown",
            scale=shown,
            familiarity=familiarity,
            coverage=f"{of}{every:,} patches of {self.shards.info.title}",
            precision=stated_precision(self.model),
        )
        return Check(basis, refusal)

    def searched(self, tissue: str | None, biomarker: str | None) -> int:
        """The number of patches with the tissue type and the biomarker, if they are given."""
        return int(self._wanted(tissue, biomarker).sum())

    def find(
        self,
        query: Query,
        *,
        top: int = 10,
        tissue: str | None = None,
        biomarker: str | None = None,
        keep_query: bool = False,
    ) -> list[Match]:
        """The `top` patches that are most similar to the query. Ties are in the order of the shards.

        tissue, biomarker  search only patches with these labels (any spelling)
        keep_query         whether to include patches with the same pixels as the query
        Raises ImageError for an image that cannot be used, DatasetError where no patch has the labels, and
        TaxonomyError for an unknown label.
        """
        asked, sha256 = self._query(query)
        wanted = self._wanted(tissue, biomarker)
        if sha256 is not None and not keep_query:
            wanted &= ~self._is_query(asked, sha256)
        features, of_query = (comparison_features(f, self.model) for f in (self.features, asked[None]))
        best, similarities = nearest(of_query[0], features, wanted, top=top)
        labels = self.table.take(pa.array(best)).select(_COLUMNS).to_pylist()
        return [
            Match(rank=rank, similarity=float(similarity), row=int(self.rows[i]), **row)
            for rank, (i, similarity, row) in enumerate(zip(best, similarities, labels, strict=True), start=1)
        ]

    def images(self, matches: Sequence[Match]) -> list[bytes]:
        """The encoded images of the matches, from the shards."""
        found: dict[tuple[str, int], bytes] = {}
        for split in {match.split for match in matches}:
            rows = sorted(match.row for match in matches if match.split == split)
            found |= {(split, row): patch["image"] for row, patch in read_images(self.shards, split, rows)}
        return [found[match.split, match.row] for match in matches]

    def _query(self, query: Query) -> tuple[np.ndarray, str | None]:
        """Raw features (D,) of the query, and the sha256 of its bytes if it is an image."""
        if isinstance(query, str) and not names_image(query):
            return self.cache.embed_text(SentenceEncoder(self.model), [query])[0], None
        image = query_image(query)
        features = self.cache.embed_images(ModelEncoder(self.model), [image])[0]
        return features[0], hashlib.sha256(image).hexdigest()

    def _wanted(self, tissue: str | None, biomarker: str | None) -> np.ndarray:
        """bool (N,): whether each patch has the tissue type and the biomarker, if they are given."""
        wanted = np.ones(len(self.table), dtype=bool)
        for column, name in (
            ("tissue", tissue and taxonomy.tissue(tissue)),
            ("biomarker", biomarker and taxonomy.biomarker(biomarker)),
        ):
            if name:
                values = self.table[column].to_pylist()
                left = {value for value, kept in zip(values, wanted.tolist(), strict=True) if kept and value}
                wanted &= np.array([value == name for value in values], dtype=bool)
                if not wanted.any():
                    here = ", ".join(sorted(left)) or "none are labelled"
                    of = "" if column == "tissue" or not tissue else f" of {taxonomy.tissue(tissue)}"
                    what = f"no patch{of} here is labelled {name}"
                    fix = f"choose one of its {column}s: {here}"
                    raise DatasetError(what, where=self.shards.uri, key=name, fix=fix)
        return wanted

    def _is_query(self, asked: np.ndarray, sha256: str) -> np.ndarray:
        """bool (N,): whether each patch has the bytes of the query, or its pixels in another encoding."""
        same_bytes = np.array([value == sha256 for value in self.table["sha256"].to_pylist()], dtype=bool)
        return same_bytes | (np.abs(self.features - asked).max(axis=1) <= _SAME * np.abs(asked).max())


def build_index(
    shards: str,
    model: DualEncoder,
    *,
    cache: str,
    splits: Sequence[str] | None = None,
    history: TrainingHistory | None = None,
) -> Index:
    """An index of a prepared dataset. Embeddings in the cache are reused, and others are added to it.

    shards  folder or URI of the prepared dataset
    cache   folder or URI of cached embeddings
    splits  default: all splits
    history  of the model's training; default: nothing is recorded
    Raises DatasetError where there is no dataset, split or patch.
    """
    opened, kept = open_shards(shards), EmbeddingCache(cache)
    encoder = ModelEncoder(model)
    chosen = opened.splits if splits is None else list(dict.fromkeys(splits))
    parts = [kept.embed(encoder, opened, split) for split in chosen]
    if not sum(len(p.table) for p in parts):
        fix = "name another split or dataset"
        raise DatasetError("there is no patch to search", where=shards, key="splits", fix=fix)
    return Index(
        model=model,
        shards=opened,
        cache=kept,
        table=pa.concat_tables([p.table for p in parts]),
        rows=np.concatenate([p.row for p in parts]),
        features=np.concatenate([p.features for p in parts if len(p.features)]),
        history=history or TrainingHistory(began_as=(model.name,)),
    )


def names_image(query: str) -> bool:
    """Whether a query names an image file: a file or folder that exists, or a name with a file's suffix."""
    if query.lower().endswith((*IMAGE_FILES, *SLIDE_FILES)) or _FILE_NAME.fullmatch(query):
        return True
    try:  # a sentence may be too long for a file name
        return bool(query.strip()) and Path(query).exists()
    except (OSError, ValueError):
        return False


def query_image(query: Query) -> bytes:
    """The encoded bytes of a query that is an image. Raises ImageError if it cannot be read."""
    if isinstance(query, np.ndarray):
        return encode_png(load_pixels(query))
    return query if isinstance(query, bytes) else read_image(query)
