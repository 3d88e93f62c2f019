"""Leaks are found between splits and nowhere else; an image looks alike after small changes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from his2lip.data.check.leaks import ALIKE, Leak, Sightings, difference_hash
from his2lip.data.images.codec import decode, encode_jpeg

SPLITS = st.sampled_from(["train", "select", "test"])
SQUARES = [(y, x) for y in range(0, 384, 96) for x in range(0, 384, 96)]


@given(st.lists(st.tuples(SPLITS, st.one_of(st.none(), st.sampled_from("abcdef"))), max_size=40))
def test_shared_cases_are_those_of_a_plain_reference(rows: list[tuple[str, str | None]]) -> None:
    seen = Sightings()
    splits_of: dict[str, set[str]] = {}
    values: dict[str, list[str | None]] = {}
    for split, case in rows:
        seen.add(split, {"case": case})
        values.setdefault(split, []).append(case)
        if case is not None:
            splits_of.setdefault(case, set()).add(split)
    expected: dict[tuple[str, ...], int] = {}
    for splits in splits_of.values():
        if len(splits) > 1:
            expected[tuple(sorted(splits))] = expected.get(tuple(sorted(splits)), 0) + 1
    found = list(seen.leaks())
    assert {leak.splits: leak.count for leak in found} == expected
    for leak in found:
        shown = {values[s][row] for s, row in zip(leak.splits, leak.rows, strict=True)}
        assert len(shown) == 1
        assert None not in shown


def looks(pictures: dict[str, list[np.ndarray]]) -> list[Leak]:
    seen = Sightings()
    for split, images in pictures.items():
        for image in images:
            seen.add(split, {"look": difference_hash(image)})
    return list(seen.leaks())


@pytest.mark.parametrize("change", ["quality 60", "brighter", "half size"])
def test_an_image_that_was_saved_again_looks_alike(real_ihc: np.ndarray, change: str) -> None:
    squares = [real_ihc[y : y + 96, x : x + 96] for y, x in SQUARES]
    changed = []
    for square in squares:
        if change == "quality 60":
            changed.append(decode(encode_jpeg(square, quality=60)))
        elif change == "brighter":
            changed.append(np.clip(square.astype(int) + 8, 0, 255).astype(np.uint8))
        else:
            changed.append(np.asarray(Image.fromarray(square).resize((48, 48), Image.Resampling.BICUBIC)))
    (leak,) = looks({"train": squares, "test": changed})
    assert (leak.kind, leak.splits) == ("look", ("test", "train"))
    assert leak.count >= (0.6 if change == "half size" else 0.9) * len(squares)
    assert leak.rows[0] == leak.rows[1]


def test_neighbouring_fields_of_one_slide_do_not_look_alike(real_ihc: np.ndarray) -> None:
    squares = [real_ihc[y : y + 96, x : x + 96] for y, x in SQUARES]
    assert looks({"train": squares[::2], "test": squares[1::2]}) == []


def test_all_pairs_within_the_bound_are_found_and_none_beyond() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (40, 256), dtype=np.uint8)
    seen = Sightings()
    for own in bits:
        seen.add("train", {"look": np.packbits(own).tobytes()})
    for i, own in enumerate(bits):
        other = own.copy()
        other[rng.choice(256, ALIKE + i % 2, replace=False)] ^= 1  # every second one a bit too far
        seen.add("test", {"look": np.packbits(other).tobytes()})
    (leak,) = seen.leaks()
    assert leak.count == 20


def test_flat_patches_do_not_look_alike() -> None:
    glass = np.random.default_rng(0).integers(240, 246, (64, 64, 3), dtype=np.uint8)
    assert difference_hash(glass) is None
    assert looks({"train": [glass], "test": [glass]}) == []
