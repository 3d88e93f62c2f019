"""The training stream read in-process: what a batch holds, where it starts, what it refuses."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from stream_data import stream, write_patches

from his2lip.data.captions.bank import CaptionBank, Subject
from his2lip.data.captions.staining import band
from his2lip.data.images import decode, stained_share, stained_shares
from his2lip.data.shards.reader import open_shards
from his2lip.data.shards.schema import WITHOUT_IMAGE
from his2lip.data.stream import train_stream
from his2lip.data.stream.augment import Augment, draw_turn, turn
from his2lip.data.stream.batch import Batch
from his2lip.errors import DatasetError
from his2lip.taxonomy import biomarker_id, tissue_id


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_patches(tmp_path_factory.mktemp("shards") / "set", patches=150)


def assert_same(ours: Batch, theirs: Batch) -> None:
    assert ours.step == theirs.step
    assert ours.patch_ids == theirs.patch_ids
    assert ours.captions == theirs.captions
    assert torch.equal(ours.images, theirs.images)
    assert torch.equal(ours.tissue, theirs.tissue)
    assert torch.equal(ours.biomarker, theirs.biomarker)
    assert torch.equal(ours.finding, theirs.finding)


def test_a_batch_holds_the_plan_s_rows_with_their_pixels_captions_and_ids(shards: str) -> None:
    table = open_shards(shards).table("train", ["patch_id", "image", "tissue", "biomarker"]).to_pylist()
    bank = CaptionBank.templates()
    with stream(shards, augment=False) as source:
        batches = list(source)
        assert len(batches) == source.steps_per_epoch == 150 // 16
        for batch in batches:
            rows = [table[row] for row in source.plan.batch(batch.step)]
            assert batch.patch_ids == [row["patch_id"] for row in rows]
            assert batch.tissue.tolist() == [tissue_id(row["tissue"]) for row in rows]
            assert batch.biomarker.tolist() == [biomarker_id(row["biomarker"]) for row in rows]
            assert batch.images.shape == (16, 3, 32, 32)
            assert batch.images.dtype == torch.uint8
            for image, row in zip(batch.images, rows, strict=True):
                np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), decode(row["image"]))
            shares = [stained_share(decode(r["image"])) for r in rows]
            bands = [None if share is None else band(share) for share in shares]
            drawn = [
                bank.draw(5, 0, r["patch_id"], Subject(r["tissue"], r["biomarker"], staining))
                for r, staining in zip(rows, bands, strict=True)
            ]
            assert batch.captions == drawn
            assert [bands[0] == b for b in bands] == (batch.finding == batch.finding[0]).tolist()


def test_augmented_pixels_are_turns_keyed_by_seed_epoch_and_patch(shards: str) -> None:
    with stream(shards, augment=False, stop_step=12) as plain, stream(shards, stop_step=12) as turned:
        for before, after in zip(plain, turned, strict=True):
            epoch = plain.plan.epoch_of(before.step)
            for patch_id, image, seen in zip(before.patch_ids, before.images, after.images, strict=True):
                expected = np.empty((32, 32, 3), dtype=np.uint8)
                turn(image.permute(1, 2, 0).numpy(), draw_turn(5, epoch, patch_id), expected)
                np.testing.assert_array_equal(seen.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("crop", [1.0, 0.5])
def test_a_patch_that_is_not_cropped_is_measured_once(
    shards: str, crop: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []

    def counted(images: np.ndarray) -> list[float | None]:
        measured.append(len(images))
        return stained_shares(images)

    monkeypatch.setattr(train_stream, "stained_shares", counted)
    # One thread: with several, the last batches of an epoch and the first of the next are decoded at once.
    with stream(shards, augment=Augment(crop=crop), stop_step=27, decode_threads=1) as source:
        rows = [row for step in range(27) for row in source.plan.batch(step).tolist()]
        found = [(batch.captions, batch.finding.tolist()) for batch in source]
    assert sum(measured) == (len(set(rows)) if crop == 1 else len(rows))
    for start in (9, 18):  # a stream that starts here has to measure
        with stream(shards, augment=Augment(crop=crop), start_step=start, stop_step=27) as later:
            assert [(batch.captions, batch.finding.tolist()) for batch in later] == found[start:]


def test_any_start_resumes_exactly_the_uninterrupted_stream(shards: str) -> None:
    with stream(shards, stop_step=25) as whole:
        batches = list(whole)
    for start in (1, 8, 9, 13, 24):
        with stream(shards, start_step=start, stop_step=25) as rest:
            for ours, theirs in zip(rest, batches[start:], strict=True):
                assert_same(ours, theirs)


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_together_give_one_rank_s_global_batches(shards: str, world: int) -> None:
    with stream(shards, stop_step=10) as alone:
        batches = list(alone)
    parts = [list(stream(shards, rank=rank, world=world, stop_step=10)) for rank in range(world)]
    for step, batch in enumerate(batches):
        assert torch.equal(torch.cat([part[step].images for part in parts]), batch.images)
        assert [c for part in parts for c in part[step].captions] == batch.captions
        assert [p for part in parts for p in part[step].patch_ids] == batch.patch_ids


def test_images_of_another_size_and_format_are_brought_to_the_input_size(tmp_path: Path) -> None:
    uri = write_patches(tmp_path / "mixed", patches=24, sizes=(32, 48, 20), formats=("jpeg", "png"))
    images = torch.cat([batch.images for batch in stream(uri, batch_size=8)])
    assert images.shape == (24, 3, 32, 32)
    assert images.float().std() > 10


def test_copies_of_a_row_in_a_balanced_epoch_get_draws_of_their_own(tmp_path: Path) -> None:
    uri = write_patches(tmp_path / "skewed", patches=80, rare_every=40)
    batches = list(stream(uri, balance=1.0, augment=False))
    pairs = [(p, c) for batch in batches for p, c in zip(batch.patch_ids, batch.captions, strict=True)]
    assert len({patch for patch, _ in pairs}) < len(pairs)
    assert len(set(pairs)) > 1.2 * len({patch for patch, _ in pairs})


def test_patches_without_captions_sit_out_where_the_bank_drops_them(shards: str) -> None:
    every = CaptionBank.templates().captions
    bank = CaptionBank({pair: lines for pair, lines in every.items() if pair[0] != "Tumor"}, "drop")
    with stream(shards, bank=bank) as source:
        seen = torch.cat([batch.tissue for batch in source])
        assert tissue_id("Tumor") not in seen.tolist()
        assert len(seen) == source.steps_per_epoch * 16
    with stream(shards) as source:
        assert tissue_id("Tumor") in torch.cat([batch.tissue for batch in source]).tolist()


def test_missing_labels_are_minus_one(tmp_path: Path) -> None:
    uri = write_patches(tmp_path / "unlabelled", patches=16, labelled=False)
    (batch,) = stream(uri, shrink=True)
    assert batch.tissue.tolist() == batch.biomarker.tolist() == [-1] * 16


def test_patches_of_one_pair_cannot_be_trained_on(tmp_path: Path) -> None:
    uri = write_patches(tmp_path / "unlabelled", patches=16, labelled=False)
    with pytest.raises(DatasetError) as refused:
        stream(uri, bank=CaptionBank.templates("ignore"))
    assert (refused.value.where, refused.value.key) == (uri, "data.split")


def test_patches_of_one_pair_among_those_with_captions_cannot_be_trained_on(shards: str) -> None:
    table = open_shards(shards).table("train", ["tissue", "biomarker"]).to_pylist()
    pair = (table[0]["tissue"], table[0]["biomarker"])
    with pytest.raises(DatasetError) as refused:
        stream(shards, bank=CaptionBank({pair: ("One.",)}, "drop"), lanes=1, batch_size=1)
    assert refused.value.key == "data.split"


def test_a_flipped_bit_in_a_shard_is_an_error_or_changes_nothing(tmp_path: Path) -> None:
    uri = write_patches(tmp_path / "set", patches=60, sizes=(16,))
    (shard,) = Path(uri).rglob("*.parquet")
    whole, rng = shard.read_bytes(), np.random.default_rng(0)
    expected = open_shards(uri).table("train", [*WITHOUT_IMAGE, "image"])
    errors = 0
    for bit in rng.choice(8 * len(whole), 300, replace=False).tolist():
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        shard.write_bytes(data)
        try:
            read = open_shards(uri).table("train", [*WITHOUT_IMAGE, "image"])
        except DatasetError:
            errors += 1
        else:
            assert read.equals(expected), f"bit {bit} of {shard} changed the rows without an error"
    assert errors > 250


def test_a_split_for_reporting_is_refused(tmp_path: Path) -> None:
    uri = write_patches(tmp_path / "held-out", patches=16, role="report")
    with pytest.raises(DatasetError) as refused:
        stream(uri)
    assert (refused.value.key, refused.value.where) == ("split", uri)


def test_a_broken_image_in_a_shard_is_named(tmp_path: Path) -> None:
    uri = write_patches(tmp_path / "broken", patches=32, broken=7)
    with pytest.raises(DatasetError) as refused:
        list(stream(uri))
    assert refused.value.key == "pixels"
    assert re.search(r"set/00007 in .*part-00000\.parquet", str(refused.value.where))


def test_closing_in_mid_epoch_leaves_no_thread_behind(shards: str) -> None:
    before = set(threading.enumerate())
    source = stream(shards, stop_step=900)
    batches = iter(source)
    next(batches)
    assert set(threading.enumerate()) > before
    source.close()
    assert set(threading.enumerate()) == before
    assert list(batches) == []


def test_leaving_a_loop_early_leaves_no_thread_behind(shards: str) -> None:
    before = set(threading.enumerate())
    for batch in stream(shards, stop_step=900):
        if batch.step == 3:
            break
    del batch
    assert set(threading.enumerate()) == before


def test_a_second_iteration_starts_anew(shards: str) -> None:
    with stream(shards) as source:
        first, second = list(source), list(source)
    for ours, theirs in zip(first, second, strict=True):
        assert_same(ours, theirs)


def test_batches_are_decoded_ahead_but_not_without_bound(shards: str) -> None:
    with stream(shards, stop_step=900, prefetch=2) as source:
        batches = source.batches(0, 900)
        next(batches)
        decoder = source._decoder
        assert decoder is not None
        assert decoder._ready.qsize() <= 2
