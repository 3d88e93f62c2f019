"""The embedding cache: each image is embedded once, also with damaged parts and several processes."""

from __future__ import annotations

import dataclasses
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from training_data import write_small_shards

from his2lip.data.images.codec import decode, encode_png
from his2lip.data.shards.reader import ShardSet, open_shards
from his2lip.errors import DatasetError, ModelError, StorageError
from his2lip.evaluation.decoding import read_images
from his2lip.evaluation.embeddings import EmbeddingCache
from his2lip.evaluation.encoders import ModelEncoder, SentenceEncoder
from his2lip.evaluation.feature_store import FeatureStore
from his2lip.evaluation.views import View
from his2lip.models.encoder import DualEncoder
from his2lip.models.load import load_model

Write = Callable[..., ShardSet]


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    torch.set_num_threads(2)
    return load_model("tiny")


def test_features_are_the_raw_features_of_the_model(
    write_shards: Write, model: DualEncoder, tmp_path: Path
) -> None:
    shards = write_shards()
    found = EmbeddingCache(str(tmp_path / "cache")).embed(ModelEncoder(model), shards, "test", batch_size=3)
    images = shards.table("test", ["image"])["image"].to_pylist()
    with torch.inference_mode():
        wanted = [model.encode_image(model.preprocess(decode(i))[None], normalize=False)[0] for i in images]
    np.testing.assert_allclose(found.features, torch.stack(wanted).numpy(), rtol=1e-4, atol=1e-5)
    assert found.features.dtype == np.float32
    assert found.row.tolist() == list(range(8))
    assert found.table["patch_id"].to_pylist() == shards.table("test")["patch_id"].to_pylist()


def test_features_are_found_in_all_parts_and_a_part_without_any_of_them_is_not_damaged(
    tmp_path: Path,
) -> None:
    store = FeatureStore(str(tmp_path), "images/k", width=3)
    numbers = np.arange(21, dtype=np.float32).reshape(7, 3)
    store.append({"a": numbers[:2], "b": numbers[2:3]})
    store.append({"c": numbers[3:4], "d": numbers[4:6]})
    store.append({"e": numbers[6:]})
    found = store.read(["a", "d", "missing"])
    assert sorted(found) == ["a", "d"]
    np.testing.assert_array_equal(found["a"], numbers[:2])
    np.testing.assert_array_equal(found["d"], numbers[4:6])
    assert store.damaged == []


def test_a_second_call_and_a_new_cache_object_embed_nothing(
    write_shards: Write, model: DualEncoder, tmp_path: Path
) -> None:
    shards, cache = write_shards(), EmbeddingCache(str(tmp_path / "cache"))
    first = cache.embed(ModelEncoder(model), shards, "test")
    assert cache.counts.images == cache.counts.crops == 8
    again = cache.embed(ModelEncoder(model), shards, "test")
    assert cache.counts.images == 8
    other = EmbeddingCache(str(tmp_path / "cache"))
    reopened = other.embed(ModelEncoder(model), open_shards(shards.uri), "test")
    assert other.counts.images == 0
    np.testing.assert_array_equal(first.features, again.features)
    np.testing.assert_array_equal(first.features, reopened.features)


def test_one_added_image_is_one_forward_and_equal_images_are_one(
    write_shards: Write, model: DualEncoder, real_ihc: np.ndarray, tmp_path: Path
) -> None:
    cache, a, b = EmbeddingCache(str(tmp_path / "cache")), real_ihc[:64, :64], real_ihc[64:128, :64]
    cache.embed(ModelEncoder(model), write_shards("before", images=[a, a, a]), "test")
    assert cache.counts.images == 1
    grown = write_shards("after", images=[a, a, a, b, b, b, a, a, a, b, b, b])
    found = cache.embed(ModelEncoder(model), grown, "test")
    assert cache.counts.images == 2, "one image is new, and occurs twice"
    np.testing.assert_array_equal(found.features[0], found.features[2])
    assert not np.array_equal(found.features[0], found.features[1])


def test_only_the_requested_rows_are_read_and_embedded(
    write_shards: Write, model: DualEncoder, tmp_path: Path
) -> None:
    shards, cache = write_shards(), EmbeddingCache(str(tmp_path / "cache"))
    some = cache.embed(ModelEncoder(model), shards, "test", rows=np.array([1, 6]))
    assert cache.counts.images == 2
    whole = cache.embed(ModelEncoder(model), shards, "test")
    assert cache.counts.images == 8
    np.testing.assert_array_equal(some.features, whole.features[[1, 6]])


def test_the_key_depends_on_everything_that_changes_a_feature(model: DualEncoder) -> None:
    def key(changed: DualEncoder = model, **options: object) -> str:
        return ModelEncoder(changed, **options).key

    other_weights = load_model("tiny", seed=1)
    other_config = load_model("tiny")
    other_config.config["quick_gelu"] = True
    other_size = load_model("tiny")
    other_size.preprocess = dataclasses.replace(model.preprocess, size=(32, 32))
    keys = [
        key(),
        key(other_weights),
        key(other_config),
        key(other_size),
        key(load_model("tiny", precision="bf16")),
        key(view=View(kind="centre")),
        key(view=View(kind="tiles")),
        key(view=View(kind="tiles", max_tiles=3)),
        key(preprocessing="released"),
    ]
    assert len(set(keys)) == len(keys)
    assert key(load_model("tiny")) == key()


def test_tiles_of_one_image_are_one_group_and_depend_on_its_microns_per_pixel(
    write_shards: Write, model: DualEncoder, real_ihc: np.ndarray, tmp_path: Path
) -> None:
    encoder = ModelEncoder(model, view=View(kind="tiles", um=32, max_tiles=4))
    cache = EmbeddingCache(str(tmp_path / "cache"))
    images = [real_ihc[:128, :128]] * 3
    fine = cache.embed(encoder, write_shards("fine", images=images, mpp=0.5), "test")
    assert (fine.row.tolist(), cache.counts.crops) == ([0, 0, 0, 0], 4)
    coarse = cache.embed(encoder, write_shards("coarse", images=images, mpp=0.25), "test")
    assert (coarse.row.tolist(), cache.counts.crops) == ([0], 5), (
        "the same bytes with other microns per pixel: another crop"
    )


def test_a_damaged_part_is_reported_set_aside_and_computed_again(
    write_shards: Write, model: DualEncoder, tmp_path: Path
) -> None:
    shards, root = write_shards(), tmp_path / "cache"
    first = EmbeddingCache(str(root)).embed(ModelEncoder(model), shards, "test")
    (part,) = root.rglob("*.parquet")
    good = part.read_bytes()
    table = pq.read_table(part)

    def rewritten(**changes: object) -> bytes:
        """A valid Parquet file with other content and the same metadata."""
        out = io.BytesIO()
        columns = {name: changes.get(name, table[name].combine_chunks()) for name in table.column_names}
        pq.write_table(pa.table(columns).replace_schema_metadata(table.schema.metadata), out)
        return out.getvalue()

    def vectors(numbers: np.ndarray, width: int) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(numbers.astype(np.float32)), width)

    width = first.features.shape[1]
    damaged = [
        good[: len(good) // 2],
        b"",
        good[:200] + bytes([good[200] ^ 255]) + good[201:],
        rewritten(feature=vectors(np.full(8 * width, np.nan), width)),
        rewritten(feature=vectors(np.ones(8 * width), width)),
        rewritten(
            feature=pa.FixedSizeListArray.from_arrays(
                pa.array(np.ones(8 * (width - 1), dtype=np.float32)), width - 1
            )
        ),
        rewritten(key=pa.array(["another", *table["key"].to_pylist()[1:]])),
    ]
    for content in damaged:
        part.write_bytes(content)
        cache = EmbeddingCache(str(root))
        again = cache.embed(ModelEncoder(model), shards, "test")
        assert cache.counts.images == 8
        assert [str(part) in what for what in cache.counts.damaged] == [True]
        np.testing.assert_array_equal(first.features, again.features)
        after = EmbeddingCache(str(root))
        after.embed(ModelEncoder(model), shards, "test")
        assert (after.counts.images, after.counts.damaged) == (0, []), "it is reported once"
        for made in root.rglob("*.parquet"):
            made.unlink()


def test_a_part_of_an_earlier_version_without_a_digest_is_used(
    write_shards: Write, model: DualEncoder, tmp_path: Path
) -> None:
    shards, root = write_shards(), tmp_path / "cache"
    EmbeddingCache(str(root)).embed(ModelEncoder(model), shards, "test")
    (part,) = root.rglob("*.parquet")
    pq.write_table(pq.read_table(part).replace_schema_metadata(None), part)
    cache = EmbeddingCache(str(root))
    cache.embed(ModelEncoder(model), shards, "test")
    assert (cache.counts.images, cache.counts.damaged) == (0, [])


# A small encoder, so that the two processes of the test below need not import torch.
_TWO_PROCESSES = """
import sys
import numpy as np
from his2lip.data.shards import open_shards
from his2lip.evaluation.decoding import read_images
from his2lip.evaluation.embeddings import EmbeddingCache


class MeanColour:
    key = "mean-colour"
    width = 3

    def crop_key(self, mpp):
        return ""

    def crops(self, pixels, mpp):
        return pixels.mean(axis=(0, 1))[None]

    def encode(self, crops):
        return crops.astype(np.float32)


def embed(uri, root):
    cache = EmbeddingCache(root)
    return cache.embed(MeanColour(), open_shards(uri), "test", batch_size=2), cache.counts.images


if __name__ == "__main__":
    print("ready", flush=True)
    sys.stdin.readline()
    embed(*sys.argv[1:])
"""


def test_two_processes_can_fill_one_cache_at_the_same_time(write_shards: Write, tmp_path: Path) -> None:
    shards, root = write_shards(), str(tmp_path / "cache")
    both = [
        subprocess.Popen(
            [sys.executable, "-c", _TWO_PROCESSES, shards.uri, root],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    scope: dict = {"__name__": "after"}
    exec(_TWO_PROCESSES, scope)
    found, forwards = scope["embed"](shards.uri, root)
    assert forwards == 0
    pixels = [decode(i) for i in shards.table("test", ["image"])["image"].to_pylist()]
    np.testing.assert_allclose(found.features, [p.mean(axis=(0, 1)) for p in pixels], rtol=1e-6)
    assert not list(Path(root).rglob("*.tmp"))


def test_features_that_were_computed_before_an_error_are_kept(
    write_shards: Write, model: DualEncoder, real_ihc: np.ndarray, tmp_path: Path
) -> None:
    shards, cache = write_shards(), EmbeddingCache(str(tmp_path / "cache"))

    class MachineLost(Exception):
        pass

    class Trips(ModelEncoder):
        seen = 0

        def encode(self, crops: np.ndarray) -> np.ndarray:
            Trips.seen += len(crops)
            if Trips.seen > 6:
                raise MachineLost
            return super().encode(crops)

    with pytest.raises(MachineLost):
        cache.embed(Trips(model), shards, "test", batch_size=2)
    after = EmbeddingCache(str(tmp_path / "cache"))
    after.embed(ModelEncoder(model), shards, "test")
    assert after.counts.images == 2


def test_a_cache_whose_folder_cannot_be_created_is_an_error_of_storage() -> None:
    with pytest.raises(StorageError) as refused:
        FeatureStore("/proc/none", "images/x", width=2).append({"key": np.zeros((1, 2), dtype=np.float32)})
    assert str(refused.value.where).startswith("/proc/none")


def test_features_that_are_not_finite_are_refused(write_shards: Write, tmp_path: Path) -> None:
    model = load_model("tiny")
    with torch.no_grad():
        next(model.clip.visual.parameters()).fill_(float("nan"))
    shards = write_shards()
    with pytest.raises(ModelError) as refused:
        EmbeddingCache(str(tmp_path / "cache")).embed(ModelEncoder(model), shards, "test")
    assert refused.value.where == shards.table("test", ["patch_id"])["patch_id"][0].as_py()


def test_a_damaged_shard_is_reported_by_its_path(
    write_shards: Write, model: DualEncoder, tmp_path: Path
) -> None:
    shards = write_shards()
    (part,) = Path(shards.uri).glob("test/*.parquet")
    data, image = part.read_bytes(), shards.table("test", ["image"])["image"][3].as_py()
    place = data.index(image) + len(image) // 2
    part.write_bytes(data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :])
    with pytest.raises(DatasetError) as refused:
        EmbeddingCache(str(tmp_path / "cache")).embed(ModelEncoder(model), shards, "test")
    assert refused.value.where == str(part), "found by the checksum of the page of the shard"


def test_sentences_are_embedded_once_and_keep_their_order(model: DualEncoder, tmp_path: Path) -> None:
    cache, encoder = EmbeddingCache(str(tmp_path / "cache")), SentenceEncoder(model)
    found = cache.embed_text(encoder, ["tumour", "stroma", "tumour"])
    assert cache.counts.sentences == 2
    np.testing.assert_array_equal(found[0], found[2])
    more = cache.embed_text(encoder, ["stroma", "necrosis"])
    assert cache.counts.sentences == 3
    np.testing.assert_array_equal(more[0], found[1])
    with torch.inference_mode():
        wanted = model.encode_text(["necrosis"], normalize=False).numpy()
    np.testing.assert_allclose(more[1:], wanted, rtol=1e-4, atol=1e-5)


def test_images_outside_shards_share_the_cache(
    write_shards: Write, model: DualEncoder, real_ihc: np.ndarray, tmp_path: Path
) -> None:
    cache, encoder = EmbeddingCache(str(tmp_path / "cache")), ModelEncoder(model)
    shards = write_shards()
    stored = cache.embed(encoder, shards, "test")
    image = shards.table("test", ["image"])["image"][0].as_py()
    found = cache.embed_images(encoder, [image, encode_png(real_ihc[-64:, -64:])])
    assert cache.counts.images == 9, "one of the two images is in the shards"
    np.testing.assert_array_equal(found[0][0], stored.features[0])


def test_embedding_restores_the_training_mode_of_the_model(write_shards: Write, tmp_path: Path) -> None:
    model = load_model("tiny").train()
    EmbeddingCache(str(tmp_path / "cache")).embed(ModelEncoder(model), write_shards(), "test")
    assert model.training


@pytest.mark.parametrize("step", [1, 3])
def test_each_row_is_read_with_its_own_image(tmp_path: Path, step: int) -> None:
    """More rows than Python copies at a time, in several row groups."""
    shards = open_shards(write_small_shards(tmp_path / "shards", train=200, select=8))
    assert len(shards.row_groups("train")) > 1
    ids, rows = shards.table("train", ["patch_id"])["patch_id"].to_pylist(), list(range(0, 200, step))
    found = list(read_images(shards, "train", rows))
    assert [row for row, _ in found] == rows
    assert [patch["patch_id"] for _, patch in found] == [ids[row] for row in rows]
