"""Helpers of a grid task on a real Ray: they embed each image once, also where one of them dies."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from real_tiles import tiles

from his2lip.data.cards.card import Card
from his2lip.data.images.codec import encode_png
from his2lip.data.shards.reader import ShardSet, open_shards
from his2lip.data.shards.schema import Patch
from his2lip.data.shards.writer import ShardWriter
from his2lip.errors import DatasetError, ModelError
from his2lip.evaluation.embeddings import EmbeddingCache
from his2lip.evaluation.encoders import ModelEncoder
from his2lip.evaluation.helpers import Helpers, split_rows
from his2lip.models.encoder import DualEncoder
from his2lip.models.load import load_model

ONE = {"num_cpus": 1.0}


def patch(dataset: str, number: int, image: bytes) -> Patch:
    name = f"{dataset}/{number}.png"
    return Patch(patch_id=name, image=image, dataset=dataset, split="test", width=64, height=64, mpp=0.5)


@pytest.fixture(scope="module")
def shards(real_ihc: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """48 different real tiles in several row groups."""
    folder = tmp_path_factory.mktemp("shards") / "toy"
    card = Card.model_validate({"name": "toy", "reader": "none", "splits": {"test": {"role": "report"}}})
    with ShardWriter(folder, card=card, row_group_bytes=60_000) as writer:
        for number, tile in enumerate(tiles(real_ihc)[:48]):
            writer.add(patch("toy", number, encode_png(tile)))
    return open_shards(folder)


@pytest.fixture
def recorder(tmp_path: Path) -> Callable[..., Any]:
    """recorder(dies=…, waits=…) -> an encoder that writes which process embedded which image.

    With `waits`, the process of the test waits before each batch until the other has nothing left to do.
    """

    class Recorder:
        width = 3
        key = "recorder"

        def __init__(self, log: str, dies: str | None, waits: bool) -> None:
            self.log, self.dies, self.home = log, dies, os.getpid()
            self.waits = waits

        def crop_key(self, mpp: float | None) -> str:
            return ""

        def crops(self, pixels: np.ndarray, mpp: float | None) -> np.ndarray:
            return pixels.mean(axis=(0, 1))[None]

        def encode(self, crops: np.ndarray) -> np.ndarray:
            if os.getpid() != self.home and self.dies is not None:
                os.kill(os.getpid(), getattr(signal, self.dies))
            if os.getpid() == self.home and self.waits:
                size = -1
                while size < (size := os.path.getsize(self.log) if os.path.exists(self.log) else 0):
                    time.sleep(0.2)
            with open(self.log, "a", encoding="utf-8") as log:
                log.writelines(f"{os.getpid()} {crop.tolist()}\n" for crop in crops)
            return crops.astype(np.float32)

    return lambda dies=None, waits=False: Recorder(str(tmp_path / "log"), dies, waits)


@pytest.fixture(scope="module")
def helpers(ray_local: None) -> Iterator[Helpers]:
    """At most one helper, which `start` starts where a test has ended the one before."""
    with Helpers(None, ONE, most=1) as found:
        yield found


def read_log(folder: Path) -> tuple[Counter[str], Counter[int]]:
    """How often each image was embedded, and how many by each process."""
    lines = (folder / "log").read_text(encoding="utf-8").splitlines()
    return Counter(line.partition(" ")[2] for line in lines), Counter(int(line.split()[0]) for line in lines)


def test_a_helper_and_the_task_embed_each_image_once(
    shards: ShardSet, helpers: Helpers, recorder: Callable[..., Any], tmp_path: Path
) -> None:
    helpers.start()
    cache = EmbeddingCache(str(tmp_path / "cache"), encode=helpers.encode)
    found = cache.embed(recorder(), shards, "test", batch_size=2)
    images, processes = read_log(tmp_path)
    assert set(images.values()) == {1}
    assert len(images) == cache.counts.images == 48
    assert len(processes) == 2
    assert os.getpid() in processes
    alone = EmbeddingCache(str(tmp_path / "alone")).embed(recorder(), shards, "test", batch_size=2)
    np.testing.assert_array_equal(found.features, alone.features)


def test_a_helper_gets_more_work_while_the_task_embeds_a_part(
    shards: ShardSet, helpers: Helpers, recorder: Callable[..., Any], tmp_path: Path
) -> None:
    helpers.start()
    rows = [row for row, _ in helpers.encode(recorder(waits=True), shards, "test", range(48), batch_size=2)]
    images, processes = read_log(tmp_path)
    assert sorted(rows) == list(range(48))
    assert set(images.values()) == {1}
    assert processes[os.getpid()] <= 18, "24 where a helper waits until the task has embedded a whole part"


def test_the_features_of_a_models_helper_are_those_of_one_process_to_the_bit(
    shards: ShardSet, ray_local: None, tmp_path: Path
) -> None:
    def load() -> DualEncoder:
        import torch

        torch.set_num_threads(1)
        return load_model("tiny")

    alone = EmbeddingCache(str(tmp_path / "alone")).embed(ModelEncoder(load()), shards, "test", batch_size=4)
    with Helpers(load, ONE, most=1) as helpers:
        helpers.start()
        cache = EmbeddingCache(str(tmp_path / "cache"), encode=helpers.encode)
        found = cache.embed(ModelEncoder(load()), shards, "test", batch_size=4)
        other = ModelEncoder(load_model("tiny", seed=1))
        with pytest.raises(ModelError) as refused:
            list(helpers.encode(other, shards, "test", range(48), batch_size=4))
    np.testing.assert_array_equal(found.features, alone.features)
    assert refused.value.where == shards.uri, "the helper has another model than the task"


def test_what_a_helper_refuses_is_raised_as_from_one_process(
    shards: ShardSet, helpers: Helpers, recorder: Callable[..., Any], tmp_path: Path, real_ihc: np.ndarray
) -> None:
    card = Card.model_validate({"name": "bad", "reader": "none", "splits": {"test": {"role": "report"}}})
    with ShardWriter(tmp_path / "bad", card=card) as writer:
        for number, tile in enumerate(tiles(real_ihc)[:8]):
            image = encode_png(tile) if number else b"not an image"
            writer.add(patch("bad", number, image))
    helpers.start()
    with pytest.raises(DatasetError) as refused:
        list(helpers.encode(recorder(), open_shards(tmp_path / "bad"), "test", range(8), batch_size=1))
    assert refused.value.where == "bad/0.png"
    rows = [row for row, _ in helpers.encode(recorder(), shards, "test", range(8), batch_size=1)]
    assert sorted(rows) == list(range(8)), "the next dataset is embedded"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX signals")
def test_the_part_of_a_helper_that_dies_is_embedded_again_and_nothing_else(
    shards: ShardSet, helpers: Helpers, recorder: Callable[..., Any], tmp_path: Path
) -> None:
    helpers.start()
    cache = EmbeddingCache(str(tmp_path / "cache"), encode=helpers.encode)
    found = cache.embed(recorder("SIGKILL"), shards, "test", batch_size=2)
    images, processes = read_log(tmp_path)
    assert set(images.values()) == {1}
    assert cache.counts.images == len(found.features) == 48
    assert set(processes) == {os.getpid()}


@given(st.integers(0, 400), st.integers(1, 40), st.integers(1, 20))
def test_parts_have_every_row_once_in_the_batches_of_one_process(count: int, batch: int, slots: int) -> None:
    rows = list(range(0, 3 * count, 3))
    parts = split_rows(rows, batch, slots)
    assert [row for part in parts for row in part] == rows
    assert all(len(part) % batch == 0 for part in parts[:-1])
    sizes = [len(part) for part in parts]
    assert sizes == sorted(sizes, reverse=True)
    assert not sizes or sizes[-1] <= batch, "the last part delays the end by at most one batch"


def test_few_images_start_no_helper(
    shards: ShardSet, ray_local: None, recorder: Callable[..., Any], tmp_path: Path
) -> None:
    with Helpers(None, ONE) as helpers:
        rows = [row for row, _ in helpers.encode(recorder(), shards, "test", range(48), batch_size=2)]
    assert rows == list(range(48)), "in order, as one process embeds them"
    assert set(read_log(tmp_path)[1]) == {os.getpid()}
