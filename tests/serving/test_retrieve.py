"""Real tiles prepared by their user, embedded once and found again: by an image, by a sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from his2lip.data.images import encode_png
from his2lip.data.shards import ShardSet
from his2lip.errors import DatasetError, ImageError
from his2lip.evaluation.embeddings import EmbeddingCache
from his2lip.evaluation.encoders import ModelEncoder
from his2lip.models import DualEncoder
from his2lip.serving import build_index, retrieve


def test_real_tiles_are_embedded_once(shards: ShardSet, model: DualEncoder, tmp_path: Path) -> None:
    cache = EmbeddingCache(str(tmp_path / "cache"))
    found = cache.embed(ModelEncoder(model), shards, shards.splits[0])
    assert found.features.shape == (16, model.dim)
    assert cache.counts.images == 16
    cache.embed(ModelEncoder(model), shards, shards.splits[0])
    assert cache.counts.images == 16


def test_a_patch_finds_itself_first_and_a_sentence_finds_patches(
    shards: ShardSet, model: DualEncoder, tmp_path: Path
) -> None:
    cache = str(tmp_path / "cache")
    table = shards.table(shards.splits[0], ["patch_id", "image"])
    for patch_id, image in zip(*(table[c].to_pylist()[:3] for c in ("patch_id", "image")), strict=True):
        first, second, *_ = retrieve(image, model, shards.uri, cache=cache, top=4)
        assert (first.rank, first.patch_id) == (1, patch_id)
        assert first.similarity == pytest.approx(1, abs=1e-5)
        assert second.similarity < first.similarity
    matches = retrieve("brown nuclei", model, shards.uri, cache=cache, top=100)
    assert [m.rank for m in matches] == list(range(1, 17))
    assert [m.similarity for m in matches] == sorted((m.similarity for m in matches), reverse=True)


def test_a_query_may_be_pixels_bytes_or_a_file(
    shards: ShardSet, model: DualEncoder, real_ihc: np.ndarray, tmp_path: Path
) -> None:
    index = build_index(shards.uri, model, cache=str(tmp_path / "cache"))
    file = tmp_path / "query.png"
    file.write_bytes(encode_png(real_ihc[:128, :128]))
    asked = [real_ihc[:128, :128], file.read_bytes(), file, str(file)]
    assert len({(m.patch_id, m.similarity) for q in asked for m in index.find(q, top=1)}) == 1
    assert index.cache.counts.images == 16, (
        "the first tile was embedded with the shards, and is its own query"
    )
    with pytest.raises(ImageError, match=r"absent\.png"):
        index.find("absent.png")
    assert len(index.find("a sentence " * 400, top=2)) == 2


def test_an_index_without_patches_is_refused(model: DualEncoder, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no prepared dataset"):
        retrieve("stroma", model, str(tmp_path / "nothing"), cache=str(tmp_path / "cache"))
