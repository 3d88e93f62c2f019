"""The real IHC image that every machine has, tiled by prepare, then embedded, classified and retrieved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from his2lip import taxonomy
from his2lip.data.cards import Card
from his2lip.data.images import encode_png
from his2lip.data.prepare import prepare
from his2lip.data.shards import ShardSet, open_shards
from his2lip.errors import ConfigError, DatasetError, ImageError, TaxonomyError
from his2lip.evaluation.embeddings import EmbeddingCache
from his2lip.evaluation.encoders import ModelEncoder
from his2lip.evaluation.prompts import PromptSet
from his2lip.evaluation.views import View
from his2lip.models import DualEncoder, load_model
from his2lip.serving import Classifier, build_index, classify, retrieve


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    torch.set_num_threads(2)
    return load_model("tiny")


@pytest.fixture
def shards(real_ihc: np.ndarray, tmp_path: Path) -> ShardSet:
    """The FHL2-stained colon as its user would bring it: a PNG in a folder, cut into 16 tiles by prepare."""
    folder = tmp_path / "published" / "FHL2"
    folder.mkdir(parents=True)
    (folder / "colon.png").write_bytes(encode_png(real_ihc))
    card = Card.model_validate(
        {
            "name": "colon",
            "reader": "folder",
            "splits": {"train": {"role": "train"}},
            "classes": {"FHL2": []},
        }
    )
    report = prepare(card, tmp_path / "published", tmp_path / "shards", view="tiles(size=128, tissue=0)")
    assert (report.found, report.read, list(report.quarantined)) == (1, 1, [])
    return open_shards(tmp_path / "shards")


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


def test_real_tiles_are_classified_as_the_cosines_say(
    shards: ShardSet, model: DualEncoder, tmp_path: Path
) -> None:
    images = shards.table(shards.splits[0], ["image"])["image"].to_pylist()
    rows = classify(images, model)
    prompts = PromptSet.load("tissue")
    assert len(rows) == 16
    for row in rows:
        assert row.tissue in taxonomy.TISSUES
        assert row.prompt in prompts.of(row.tissue)
        assert -1 <= row.cosine <= 1
        assert row.margin >= 0
    embedded = EmbeddingCache(str(tmp_path / "c")).embed(ModelEncoder(model), shards, shards.splits[0])
    with torch.inference_mode():
        texts = torch.stack([model.encode_text(list(s)).mean(0) for _, s in prompts.sentences])
    texts = texts / texts.norm(dim=1, keepdim=True)
    images_ = torch.from_numpy(embedded.features)
    cosines = (images_ / images_.norm(dim=1, keepdim=True)) @ texts.T
    np.testing.assert_allclose([r.cosine for r in rows], cosines.max(dim=1).values.numpy(), atol=1e-4)


def test_batches_files_and_tiles_give_the_same_rows(
    model: DualEncoder, real_ihc: np.ndarray, tmp_path: Path
) -> None:
    tiles = [np.ascontiguousarray(real_ihc[:128, x : x + 128]) for x in range(0, 512, 128)]
    file = tmp_path / "tile.png"
    file.write_bytes(encode_png(tiles[0]))
    whole = classify([file, *tiles[1:]], model)
    assert whole[0].tissue == classify(tiles[:1], model)[0].tissue
    small = Classifier(model, batch_size=2).classify(tiles)
    for a, b in zip(whole, small, strict=True):
        assert a.cosine == pytest.approx(b.cosine, abs=1e-5)
    pooled = classify([real_ihc], model, view=View(kind="tiles", size=128, max_tiles=16))
    assert len(pooled) == 1, "an image cut into tiles is one row"
    assert classify([], model) == []


def test_the_stain_can_be_named(model: DualEncoder, real_ihc: np.ndarray) -> None:
    row = classify([real_ihc], model, biomarker="ki-67")[0]
    assert row.prompt.endswith(", stained for Ki67")
    with pytest.raises(TaxonomyError, match="unknown biomarker"):
        classify([real_ihc], model, biomarker="Ki99x")


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        (lambda t: t / "absent.png", r"cannot be read.*absent\.png"),
        (lambda t: b"", "empty"),
        (lambda t: np.zeros((4, 4), dtype=np.uint8), "pixels must be uint8"),
        (lambda t: np.zeros((4, 4, 3)), "pixels must be uint8"),
    ],
)
def test_an_image_that_cannot_be_used_gives_one_sentence(
    model: DualEncoder, tmp_path: Path, picture: Callable[[Path], object], said: str
) -> None:
    with pytest.raises(ImageError, match=said):
        classify([picture(tmp_path)], model)


def test_a_misspelt_prompt_set_names_the_nearest(model: DualEncoder, real_ihc: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="did you mean 'tissue'"):
        classify([real_ihc], model, prompts="tissues")
