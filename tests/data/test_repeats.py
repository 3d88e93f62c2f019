"""Repeated pictures, pictures under several labels, and classes without an image are reported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from real_tiles import tiles
from typer.testing import CliRunner

from his2lip.cli import app
from his2lip.data.cards.card import Card
from his2lip.data.check.dataset import CheckReport, check
from his2lip.data.check.repeats import Pictures
from his2lip.data.images.codec import encode_png
from his2lip.data.shards.schema import Patch
from his2lip.data.shards.writer import ShardWriter

PROTOCOL = {
    "split": "test",
    "label": "label",
    "classes": {"positive": ["pos"], "negative": ["neg"], "equivocal": ["2+"]},
    "prompts": "staining",
    "basis": "ours",
}
CARD: dict[str, Any] = {
    "name": "toy",
    "reader": "folder",
    "splits": {"train": {"role": "train"}, "test": {"role": "report"}},
    "protocols": {"default": PROTOCOL},
}
rows = st.lists(
    st.tuples(st.sampled_from(["train", "test"]), st.sampled_from([None, *"abcd"]), st.sampled_from("xy"))
)


@given(rows)
def test_repeats_and_conflicts_are_those_of_a_plain_reference(
    found: list[tuple[str, str | None, str]],
) -> None:
    pictures, seen = Pictures(), list[tuple[str, str | None, str]]()
    for split, picture, label in found:
        pictures.add(split, picture and picture.encode(), label)
    for split in ("test", "train"):
        own = [row for row in found if row[0] == split]
        seen += own
        several = [n for n in Counter(row[1] for row in own if row[1]).values() if n > 1]
        reported = [repeat for repeat in pictures.repeats() if repeat.split == split]
        assert len(reported) == bool(several)
        for repeat in reported:
            assert (repeat.pictures, repeat.rows, repeat.most) == (len(several), sum(several), max(several))
            one, other = (own[row] for _, row in repeat.example)
            assert one[1] == other[1]
    labels = {picture: {row[2] for row in found if row[1] == picture} for _, picture, _ in found if picture}
    expected = sum(len(own) > 1 for own in labels.values())
    conflict = pictures.conflict()
    assert (conflict.pictures if conflict else 0) == expected
    if conflict:
        one, other = ([row for row in found if row[0] == split][at] for split, at in conflict.example)
        assert one[1] == other[1]
        assert one[2] != other[2]


@pytest.fixture
def patches(real_ihc: np.ndarray) -> list[Patch]:
    """Twelve squares of real pixels, four of them in test; every second one is positive."""
    return [
        Patch(
            patch_id=f"toy/{i}.png", dataset="toy", split="test" if i < 4 else "train",
            label="pos" if i % 2 else "neg", image=encode_png(square), width=64, height=64,
        )
        for i, square in enumerate(tiles(real_ihc)[:12])
    ]  # fmt: skip


def write(uri: Path, patches: Sequence[Patch]) -> Path:
    with ShardWriter(uri, card=Card.model_validate(CARD), generated=True) as writer:
        for patch in patches:
            writer.add(patch)
    return uri


def report_of(uri: Path, patches: Sequence[Patch]) -> CheckReport:
    return check(write(uri, patches))


def test_one_picture_eleven_times_in_a_split_is_a_warning(tmp_path: Path, patches: list[Patch]) -> None:
    again = [replace(patches[0], patch_id=f"toy/again-{i}.png") for i in range(10)]
    report = report_of(tmp_path / "s", [*patches, *again])
    assert report.problems == []
    (repeated,) = (line for line in report.warnings if "picture" in line)
    assert "1 picture is in test 11 times (11 of its 14 images)" in repeated
    assert "toy/0.png and toy/again-0.png" in repeated


def test_one_picture_under_two_labels_is_a_problem_and_ends_with_exit_code_1(
    tmp_path: Path, patches: list[Patch]
) -> None:
    twice = replace(patches[0], patch_id="toy/99.png", label="pos")
    uri = write(tmp_path / "s", [*patches, twice])
    done = CliRunner().invoke(app, ["data", "check", str(uri), "--page", str(tmp_path / "page.html")])
    assert done.exit_code == 1
    for shown in (done.output, (tmp_path / "page.html").read_text()):
        assert "1 picture has several labels, such as toy/0.png (neg) and toy/99.png (pos)" in shown
        assert "1 picture is in test 2 times" in shown
        assert "test, protocol default: no image of equivocal (1 of 3 classes; 33.3% of macro F1" in shown
        assert "train, protocol default: no image of equivocal (1 of 3 classes)" in shown


def test_glass_may_recur_under_any_label(tmp_path: Path, patches: list[Patch]) -> None:
    glass = encode_png(np.full((64, 64, 3), 250, dtype=np.uint8))
    blank = [
        replace(p, image=glass, sha256="", patch_id=f"toy/glass-{i}.png") for i, p in enumerate(patches[:4])
    ]
    report = report_of(tmp_path / "s", [*patches, *blank])
    assert report.problems == []
    assert not [line for line in report.warnings if "picture" in line]
