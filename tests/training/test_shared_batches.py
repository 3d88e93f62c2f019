"""Trials of one machine decode each batch once, also when they drift apart or one of them stops early."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from his2lip.data.stream.batch import Batch
from his2lip.training import shared_batches
from his2lip.training.shared_batches import SharedBatches

EPOCH, STEPS = 5, 15
BYTES = 4 * 3 * 8 * 8  # of the images of a batch
ROOM = 10_000 * BYTES


def batch(step: int) -> Batch:
    draws = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (4, 8, 8, 3), generator=draws, dtype=torch.uint8)
    return Batch(
        images=images.permute(0, 3, 1, 2),
        captions=[f"Färbung {step}.{i}" for i in range(4)],
        tissue=torch.arange(4),
        biomarker=torch.arange(4) + step,
        finding=torch.full((4,), -1),
        patch_ids=[f"p{step}/{i}" for i in range(4)],
        step=step,
    )


class Decoding:
    """Decodes batches, and counts how often each step is; thread-safe, as all trials use one."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def __call__(self, start: int, stop: int) -> Iterator[Batch]:
        for step in range(start, stop):
            self.steps.append(step)
            yield batch(step)


def trial(decode: Decoding, folder: Path, *, limit: int = ROOM) -> SharedBatches:
    return SharedBatches(decode, folder, epoch=EPOCH, limit=limit)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "key" / "train"


def bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


def assert_whole(batches: list[Batch], first: int = 0) -> None:
    assert [one.step for one in batches] == list(range(first, first + len(batches)))
    for one in batches:
        wanted = batch(one.step)
        assert (one.captions, one.patch_ids) == (wanted.captions, wanted.patch_ids)
        for name in ("images", "tissue", "biomarker", "finding"):
            assert torch.equal(getattr(one, name), getattr(wanted, name))
        assert one.images.stride() == wanted.images.stride(), "the memory order decides the last bits"


def test_trials_side_by_side_decode_each_batch_once(folder: Path) -> None:
    decode, found = Decoding(), {}

    def run(number: int) -> None:
        found[number] = list(trial(decode, folder)(0, STEPS))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for batches in found.values():
        assert_whole(batches)
    assert sorted(decode.steps) == list(range(STEPS))


def test_a_trial_far_behind_reads_and_one_that_is_ahead_goes_on(folder: Path) -> None:
    decode = Decoding()
    fast, slow = trial(decode, folder), trial(decode, folder)
    behind = slow(0, STEPS)
    next(behind)
    next(fast(EPOCH, STEPS))  # another epoch, while the slow one has the lock of its own
    ahead = fast(EPOCH, STEPS)
    assert_whole(list(ahead), first=EPOCH)
    assert_whole(list(behind), first=1)
    assert sorted(decode.steps) == list(range(STEPS))
    assert (slow.decoded, slow.read) == (EPOCH, STEPS - EPOCH)


def test_a_trial_that_is_stopped_in_the_middle_is_followed_by_the_next(folder: Path) -> None:
    decode = Decoding()
    stopped = trial(decode, folder)(0, STEPS)
    for _ in range(3):
        next(stopped)
    stopped.close()  # type: ignore[attr-defined]  # it is a generator
    other = trial(decode, folder)
    assert_whole(list(other(0, STEPS)))
    assert (other.read, other.decoded) == (3, STEPS - 3)
    assert sorted(decode.steps) == list(range(STEPS))


def test_the_folder_stays_within_its_limit_and_the_rest_is_decoded_by_each(folder: Path) -> None:
    decode, limit = Decoding(), 12 * BYTES
    for _ in range(2):
        assert_whole(list(trial(decode, folder, limit=limit)(0, STEPS)))
    stored = len(list(folder.glob("*.safetensors")))
    assert 0 < stored < STEPS
    assert bytes_in(folder) <= limit
    assert len(decode.steps) == STEPS + (STEPS - stored)


def test_other_data_have_the_room_that_no_trial_uses_and_no_more(tmp_path: Path) -> None:
    decode, whole = Decoding(), trial(Decoding(), tmp_path / "size" / "train")
    list(whole(0, STEPS))
    limit = int(1.5 * bytes_in(tmp_path))
    shutil.rmtree(tmp_path / "size")
    first = trial(decode, tmp_path / "a" / "train", limit=limit)
    list(first(0, STEPS))
    select = trial(decode, tmp_path / "a" / "select", limit=limit)
    list(select(0, EPOCH))
    beside = trial(decode, tmp_path / "b" / "train", limit=limit)
    assert_whole(list(beside(0, STEPS)))
    assert STEPS < len(list(tmp_path.glob("*/train/*.safetensors"))) < 2 * STEPS, "the first is in use"
    assert sum(bytes_in(folder) for folder in tmp_path.glob("*/train")) <= limit
    del first, beside
    after = trial(decode, tmp_path / "c" / "train", limit=limit)
    assert_whole(list(after(0, STEPS)))
    assert [len(list((tmp_path / key / "train").glob("*.safetensors"))) for key in "abc"] == [0, 0, STEPS]
    assert len(list((tmp_path / "a" / "select").glob("*.safetensors"))) == EPOCH, "a split of its own"
    again = trial(decode, tmp_path / "a" / "train", limit=limit)
    assert_whole(list(again(0, STEPS)))


def test_a_trial_does_not_wait_for_ever_for_one_that_hangs(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_batches, "_PATIENCE_S", 0.05)
    decode = Decoding()
    hangs = trial(decode, folder)(0, STEPS)
    next(hangs)  # it has the lock of the first epoch, and does not go on
    assert_whole(list(trial(decode, folder)(0, STEPS)))
    hangs.close()  # type: ignore[attr-defined]


def test_a_damaged_file_is_decoded_again(folder: Path) -> None:
    decode = Decoding()
    list(trial(decode, folder)(0, EPOCH))
    (folder / "2.safetensors").write_bytes(b"cut short")
    assert_whole(list(trial(decode, folder)(0, EPOCH)))


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EIO])
def test_where_the_file_system_has_no_locks_each_trial_decodes_for_itself(
    folder: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    decode = Decoding()
    for _ in range(2):
        assert_whole(list(trial(decode, folder)(0, STEPS)))
    assert decode.steps == [*range(STEPS), *range(STEPS)]


def test_a_trial_whose_folder_cannot_be_written_decodes_for_itself(folder: Path) -> None:
    decode = Decoding()
    there = trial(decode, folder)
    batches = there(0, STEPS)
    folder.rmdir()
    assert_whole(list(batches))
    assert decode.steps == [*range(STEPS)]
