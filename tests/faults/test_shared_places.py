"""Two commands on one cache and one dataset: both end, or one is refused, and what they leave is the same."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from attempts import attempt
from fork_server import child
from moments import MANY, moments
from plain_run import score_board, told_board, told_prepare
from reliability_page import Record
from test_fuzz import CARD, rows_of
from training_data import write_small_shards

from his2lip.config import validate
from his2lip.data.images.codec import encode_png
from his2lip.evaluation.config import BenchmarkConfig


@MANY
def test_two_benchmarks_on_one_cache_and_one_folder(here: Path, count: int, record: Record) -> None:
    write_small_shards(here / "shards", train=8, select=48)

    def config(number: object) -> BenchmarkConfig:
        tree = {
            "name": "shared", "models": ["tiny"], "datasets": {"mihic": str(here / "shards")},
            "baselines": ["majority"], "role": "select", "batch_size": 8,
            "cache": str(here / f"cache{number}"), "storage": str(here / f"runs{number}"),
        }  # fmt: skip
        return validate(BenchmarkConfig, tree)

    whole = score_board(config("whole"))
    images = len(set(cached(here / "cachewhole")))
    for i, part in enumerate(moments("cache", count)):
        with child(told_board, config(i)) as other:
            other.wait_for("begun")
            time.sleep(part * 0.3)
            assert score_board(config(i)) == whole
            other.end()
        assert score_board(config(i)) == whole
        assert len(set(cached(here / f"cache{i}"))) == images
        assert not list(here.glob(f"*{i}/**/*.tmp"))
    how = "two processes score one benchmark into one folder and one cache, seeded times apart"
    record("two commands on one cache", how, count, "both end with the board of one")


def cached(cache: Path) -> list[str]:
    """The keys of all image features in a cache."""
    parts = cache.glob("images/*/*.parquet")
    return [f"{part.parent.name} {key}" for part in parts for key in pq.read_table(part)["key"].to_pylist()]


@MANY
def test_two_commands_on_one_dataset(here: Path, count: int, record: Record) -> None:
    rng = np.random.default_rng(0)
    for i in range(40):
        path = here / "root" / ("train" if i % 2 else "test") / ("pos" if i % 3 else "negative") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(rng.integers(0, 255, (128, 128, 3), dtype=np.uint8)))
    (here / "card.yaml").write_text(CARD)
    command = ["data", "prepare", "card.yaml", "--root", "root", "--out"]
    assert attempt(*command, "whole").ended == "done"
    whole = rows_of(here / "whole")
    for i, part in enumerate(moments("dataset", count)):
        with child(told_prepare, here, f"out{i}") as other:
            other.wait_for("begun")
            time.sleep(part * 0.2)
            mine = attempt(*command, f"out{i}")
            theirs = other.told()
        ends = sorted([mine.ended, theirs])
        assert ends == ["done", "refused"], mine.said
        assert rows_of(here / f"out{i}") == whole
    how = "two processes run `data prepare` into one folder, seeded times apart"
    record("two commands on one dataset", how, count, "one is done, the other refused; the same shards")
