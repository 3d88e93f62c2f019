"""What a model was shown of the scored images: the share of their tissue, the scale, and the reasons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from his2lip.data.cards.card import Protocol
from his2lip.data.images import cut_note
from his2lip.data.shards.reader import ShardSet, open_shards
from his2lip.evaluation.embeddings import EmbeddingCache
from his2lip.evaluation.protocols import select
from his2lip.evaluation.sight import Sight, sight
from his2lip.evaluation.views import TrainingField, View

Write = Callable[..., ShardSet]
PROTOCOL = Protocol(
    split="test", label="tissue", classes={"a": ["Tumor"], "b": ["Stroma"]}, prompts="tissue", basis="ours"
)
FIELD = TrainingField(128, 32.0)


@pytest.fixture
def seen(write_shards: Write, real_ihc: np.ndarray, tmp_path: Path) -> Callable[..., Sight]:
    """seen(view, mpp=…) -> what the view shows of real images of 256 px in the split test."""
    images = [np.roll(real_ihc, 37 * n, axis=n % 2)[:256, :256] for n in range(12)]

    def one(view: View, *, blank: int = 0, mpp: float | None = 0.25, field: TrainingField | None = FIELD):
        glass = [np.full((256, 256, 3), 243, np.uint8)] * blank
        there = (tmp_path / "toy").exists()
        shards = (
            open_shards(tmp_path / "toy")
            if there
            else write_shards(images=[*images[blank:], *glass], mpp=mpp)
        )
        cache = EmbeddingCache(str(tmp_path / "cache"))
        found = sight(view, field, shards, PROTOCOL, select(shards, PROTOCOL), cache)
        assert cache.counts.images == 0, "only what a scorer embeds is counted"
        return found

    return one


def test_an_image_that_is_shown_whole_is_seen_whole_and_is_not_read(
    seen: Callable[..., Sight], tmp_path: Path
) -> None:
    assert seen(View()) == Sight(coverage=1.0, field_um=64.0)
    assert not (tmp_path / "cache").exists()


def test_a_whole_image_over_four_training_fields_is_squashed_and_the_row_says_by_how_much(
    seen: Callable[..., Sight],
) -> None:
    found = seen(View(), field=TrainingField(64, 15.0))
    assert found.squashed == 4
    assert "4 of 4 images are squashed" in found.seen_note
    assert "4.27 times the training field" in found.seen_note
    assert seen(View(), field=TrainingField(64, 16.0)).squashed == 0


def test_without_microns_per_pixel_pixels_are_compared_and_no_field_is_stated(
    seen: Callable[..., Sight],
) -> None:
    found = seen(View(), mpp=None, field=TrainingField(60, 1.0))
    assert (found.field_um, found.squashed) == (None, 4)


def test_tiles_show_half_of_the_tissue_or_the_row_gives_the_reason(seen: Callable[..., Sight]) -> None:
    whole = seen(View(kind="tiles", um=16.0))
    assert (whole.coverage, whole.field_um, whole.seen_note) == (1.0, 16.0, "")
    few = seen(View(kind="tiles", um=16.0, max_tiles=4))
    assert few.coverage == pytest.approx(4 / 16, abs=0.08)
    assert "less than 50%: at most 4 tiles per image" in few.seen_note


def test_nearly_blank_images_are_counted_and_do_not_enter_the_share(seen: Callable[..., Sight]) -> None:
    found = seen(View(kind="tiles", um=16.0), blank=1)
    assert found.coverage == 1.0
    assert "1 of 4 images are nearly blank" in found.seen_note


def test_the_share_is_measured_once_and_then_cached(seen: Callable[..., Sight], tmp_path: Path) -> None:
    view = View(kind="tiles", um=16.0)
    first = seen(view)
    parts = sorted((tmp_path / "cache").rglob("*.parquet"))
    assert len(parts) == 1
    assert seen(view) == first
    assert sorted((tmp_path / "cache").rglob("*.parquet")) == parts


def test_tissue_that_prepare_did_not_cut_into_tiles_counts_as_unseen(
    write_shards: Write, tmp_path: Path
) -> None:
    shards = write_shards()
    names = shards.table("test")["patch_id"].to_pylist()
    notes = [(name.partition("/")[2], cut_note(1, 100)) for name in names[:4]]
    shards = replace(shards, info=replace(shards.info, left_out=notes))
    found = sight(View(), FIELD, shards, PROTOCOL, select(shards, PROTOCOL), EmbeddingCache(str(tmp_path)))
    assert found.coverage == pytest.approx((4 * 0.01 + 4 * 1) / 8)
    assert "prepare cut 50.5% of the tissue" in found.seen_note
