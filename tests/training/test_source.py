"""The data of the loop: the same global batches for any number of ranks, and the cache in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from training_data import write_small_shards

from his2lip.config import validate
from his2lip.data.captions.bank import CaptionBank
from his2lip.data.stream.batch import Batch
from his2lip.models.architecture import TINY_PREPROCESS
from his2lip.training.config import TrainConfig
from his2lip.training.run_inputs import caption_notes, open_data
from his2lip.training.source import BatchCache, StreamSource


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_small_shards(tmp_path_factory.mktemp("small") / "shards", train=100, select=30)


def source(shards: str, rank: int = 0, world: int = 1, **data: object) -> StreamSource:
    tree = {"data": {"shards": shards, "batch_size": 16, "lanes": 4, "loader": "local"} | data}
    config, _, _ = open_data(validate(TrainConfig, tree))
    return StreamSource(config, CaptionBank.templates(), preprocess=TINY_PREPROCESS, rank=rank, world=world)


@pytest.mark.parametrize("part", ["train", "select"])
@pytest.mark.parametrize("world", [2, 4])
def test_several_ranks_together_get_the_batches_of_one_rank(shards: str, part: str, world: int) -> None:
    def batches(of: StreamSource) -> list[Batch]:
        return list(of.train(4, 9)) if part == "train" else list(of.select())

    whole = batches(source(shards))
    shares = [batches(source(shards, rank, world)) for rank in range(world)]
    assert len(whole) > 0
    for batch, *parts in zip(whole, *shares, strict=True):
        assert [i for p in parts for i in p.patch_ids] == batch.patch_ids
        assert [c for p in parts for c in p.captions] == batch.captions
        assert torch.equal(torch.cat([p.images for p in parts]), batch.images)
        assert {p.step for p in parts} == {batch.step}


def test_select_smaller_than_a_batch_is_still_validated(shards: str) -> None:
    batches = list(source(shards, batch_size=64).select())
    assert [len(batch) for batch in batches] == [28]  # 30 patches in 4 lanes


def test_select_batches_do_not_change_from_epoch_to_epoch(shards: str) -> None:
    of = source(shards)
    first, second = list(of.select()), list(of.select())
    assert [b.patch_ids for b in first] == [b.patch_ids for b in second]
    assert all(torch.equal(a.images, b.images) for a, b in zip(first, second, strict=True))


def test_a_note_says_on_how_many_patches_the_loss_of_the_select_split_is_measured(shards: str) -> None:
    measured = "on 16 of its 30 patches with captions, in whole batches of 16"
    assert measured in str(source(shards).select_note)
    assert sum(len(batch) for batch in source(shards).select()) == 16
    assert source(shards, batch_size=10, lanes=2).select_note is None  # all of them


def test_no_select_split_gives_no_batches(shards: str) -> None:
    assert list(source(shards, select=None).select()) == []
    assert source(shards, select=None).select_note is None


def batch(step: int) -> Batch:
    return Batch(
        torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
        ["a", "b"],
        torch.zeros(2),
        torch.zeros(2),
        torch.zeros(2),
        ["a", "b"],
        step,
    )


@pytest.mark.parametrize(("limit", "fit"), [(0, 0), (96, 1), (3 * 96, 3), (10_000, 5)])
def test_batches_that_fit_into_memory_are_read_once_and_stay_equal(limit: int, fit: int) -> None:
    reads: list[int] = []

    def read(start: int, stop: int) -> Iterator[Batch]:
        for step in range(start, stop):
            reads.append(step)
            yield batch(step)

    kept = BatchCache(read, limit=limit)
    for _ in range(3):
        assert [b.step for b in kept(0, 5)] == [0, 1, 2, 3, 4]
    assert reads == [*range(5), *range(fit, 5), *range(fit, 5)]
    assert [b.step for b in kept(2, 7)] == [2, 3, 4, 5, 6]


def test_reading_that_stops_early_keeps_no_partial_epoch_in_memory(tmp_path: Path) -> None:
    kept = BatchCache(lambda start, stop: map(batch, range(start, stop)), limit=10_000)
    iterator = kept(0, 5)
    next(iterator)
    del iterator
    assert [b.step for b in kept(0, 5)] == [0, 1, 2, 3, 4]


def test_released_sampling_gives_a_patch_one_caption_for_all_epochs(shards: str) -> None:
    def captions(sampling: str) -> dict[str, set[str]]:
        drawn: dict[str, set[str]] = {}
        for batch in source(shards, sampling=sampling).train(0, 18):  # three epochs
            for patch_id, caption in zip(batch.patch_ids, batch.captions, strict=True):
                drawn.setdefault(patch_id, set()).add(caption)
        return drawn

    assert {len(own) for own in captions("released").values()} == {1}
    assert max(len(own) for own in captions("epoch").values()) > 1


def test_captions_of_a_folder_are_reported_before_training_starts(shards: str, tmp_path: Path) -> None:
    (tmp_path / "Alveoli").mkdir()
    (tmp_path / "Alveoli/CD3.txt").write_text("Thin walls.\n\nOpen air spaces.\nOpen air spaces!\n")
    (tmp_path / "Alveoli/CD20.txt").write_text("")
    data = {"shards": shards, "captions": str(tmp_path), "sampling": "released"}
    for missing, fate in (("drop", "left out"), ("template", "captioned by templates")):
        imported, covered, blind, sampling = caption_notes(
            *open_data(validate(TrainConfig, {"data": data | {"missing": missing}}))
        )
        assert "1 blank lines left out, 1 repeated captions kept; 83 of 84 pairs have no caption" in imported
        assert "left out Alveoli/CD20.txt: empty" in imported
        assert f"100 patches, 87 of them without a caption of their pair ({fate})" in covered
        assert blind.startswith("the captions of 13 patches")
        assert "approximates" in sampling
    typical = validate(TrainConfig, {"data": {"shards": shards, "staining": "ignore"}})
    (blind,) = caption_notes(*open_data(typical))
    assert blind.startswith("the captions of 100 patches")
    assert caption_notes(*open_data(validate(TrainConfig, {"data": {"shards": shards}}))) == []
