"""A disk that becomes full ends a command with one sentence, and with more room it ends as if undisturbed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attempts import attempt
from moments import MANY, moments
from plain_run import outcome, plain_run, score_board, small_run
from reliability_page import Record
from small_disk import PAGE, ROOMY, Disk, needs_mount, small_disk
from test_fuzz import CARD, rows_of
from training_data import write_small_shards

from his2lip.config import validate
from his2lip.data.images.codec import encode_png
from his2lip.errors import StorageError
from his2lip.evaluation.config import BenchmarkConfig

pytestmark = needs_mount

_HOW = "a disk (tmpfs) that has a seeded share of the room that the work takes, and later more"
_OUTCOME = (
    "one sentence with the path, what was written and what to do; the repeated command ends as undisturbed"
)


def fill_and_repeat(
    work: Callable[[Disk], object], result: Callable[[Disk], Any], folder: Path, count: int, kind: str
) -> None:
    """Work on disks that are too small by seeded amounts, repeated with room, ends as on a large one."""
    with small_disk(folder / "large") as disk:
        before = disk.used
        work(disk)
        needed = disk.used - before  # without what a repetition adds
        whole = result(disk)
    for i, part in enumerate(moments(kind, count)):
        with small_disk(folder / str(i), int(part * (needed - PAGE))) as disk:
            with pytest.raises(StorageError) as full:
                work(disk)
            assert str(disk.path) in str(full.value.where), full.value
            assert full.value.key == "disk"
            assert "\n" not in str(full.value)
            disk.resize(ROOMY)
            work(disk)
            assert result(disk) == whole
            assert not list(disk.path.rglob("*.tmp"))


@MANY
def test_shards(here: Path, count: int, record: Record) -> None:
    rng = np.random.default_rng(0)
    for i in range(24):
        path = here / "root" / ("train" if i % 2 else "test") / ("pos" if i % 3 else "negative") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)))
    (here / "card.yaml").write_text(CARD)

    def prepare(disk: Disk) -> None:
        done = attempt("data", "prepare", "card.yaml", "--root", "root", "--out", str(disk.path / "out"))
        if done.ended == "refused" and "disk is full" in done.said:
            raise StorageError(done.said.strip(), where=done.said, key="disk")
        assert done.ended == "done", done.said

    fill_and_repeat(prepare, lambda disk: rows_of(disk.path / "out"), here, count, "shards")
    record("the disk is full: shards", _HOW, count, _OUTCOME)


@MANY
def test_checkpoints(here: Path, count: int, record: Record) -> None:
    shards = write_small_shards(here / "shards", train=64, select=16)

    def train(disk: Disk) -> None:
        plain_run(small_run(shards, disk.path))

    def result(disk: Disk) -> dict[str, Any]:
        return outcome(plain_run(small_run(shards, disk.path)))

    fill_and_repeat(train, result, here, count, "checkpoints")
    record("the disk is full: checkpoints", _HOW, count, _OUTCOME)


@pytest.mark.parametrize("place", ["cache", "storage"])
@MANY
def test_embeddings_and_results(here: Path, place: str, count: int, record: Record) -> None:
    write_small_shards(here / "shards", train=8, select=40)
    number = iter(range(1000))

    def config(disk: Disk) -> BenchmarkConfig:
        tree = {
            "name": "full", "models": ["tiny"],
            "datasets": {"mihic": str(here / "shards")}, "baselines": ["majority"], "role": "select",
            "cache": str(disk.path), "storage": str(disk.path), "batch_size": 16,
        }  # fmt: skip
        other = {"storage": "cache", "cache": "storage"}[place]
        return validate(BenchmarkConfig, tree | {other: str(here / f"other{next(number)}")})

    def board(disk: Disk) -> list[Any]:
        return score_board(config(disk))

    fill_and_repeat(board, board, here, count, place)
    what = {"cache": "embeddings", "storage": "results"}[place]
    record(f"the disk is full: {what}", _HOW, count, _OUTCOME)
