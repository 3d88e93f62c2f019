"""Pixels of a batch: the fast path gives what the reference decoder gives, turned and resized as said."""

from __future__ import annotations

import io

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from his2lip.data.images.codec import decode, encode_jpeg, encode_png
from his2lip.data.stream.augment import TURNS, Change, draw_turn, turn
from his2lip.data.stream.decode import decode_into
from his2lip.errors import ImageError


def filled(data: bytes, size: int, code: int = 0) -> np.ndarray:
    out = np.full((size, size, 3), 7, dtype=np.uint8)
    decode_into(memoryview(data), out, change=Change(code))
    return out


def encoded(image: Image.Image, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, **options)  # type: ignore[arg-type]
    return out.getvalue()


@pytest.fixture
def crop(real_ihc: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(real_ihc[40:104, 80:144])


@pytest.mark.parametrize("subsampling", ["444", "422", "420"])
@pytest.mark.parametrize("code", [0, 5])
def test_a_jpeg_of_the_input_size_is_the_reference_s_to_the_bit(
    crop: np.ndarray, subsampling: str, code: int
) -> None:
    data = simplejpeg.encode_jpeg(crop, quality=90, colorsubsampling=subsampling)
    expected = np.empty_like(crop)
    turn(decode(data), code, expected)
    np.testing.assert_array_equal(filled(data, 64, code), expected)


def test_grey_turned_and_palette_images_are_the_reference_s_too(crop: np.ndarray) -> None:
    image = Image.fromarray(crop)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    images = [
        encoded(image.convert("L"), format="JPEG"),
        encoded(image, format="JPEG", exif=exif),
        encoded(image.convert("P"), format="PNG"),
        encoded(image.convert("RGBA"), format="PNG"),
        encoded(image, format="TIFF"),
    ]
    for data in images:
        np.testing.assert_array_equal(filled(data, 64), decode(data))


@pytest.mark.parametrize("encode", [encode_jpeg, encode_png])
@pytest.mark.parametrize("size", [32, 48, 100])
def test_another_size_is_squashed_by_pillow_s_bicubic_filter(
    real_ihc: np.ndarray, encode: object, size: int
) -> None:
    data = encode(np.ascontiguousarray(real_ihc[:64, :96]))  # type: ignore[operator]
    expected = Image.fromarray(decode(data)).resize((size, size), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(filled(data, size), np.asarray(expected))


@pytest.mark.parametrize(
    "spoil", [lambda data: data[: len(data) // 3], lambda data: b"", lambda data: b"x" * 50]
)
def test_what_cannot_be_decoded_says_so(crop: np.ndarray, spoil: object) -> None:
    with pytest.raises(ImageError):
        filled(spoil(encode_jpeg(crop)), 64)  # type: ignore[operator]


def test_the_eight_turns_are_the_square_s_symmetries(crop: np.ndarray) -> None:
    flips = [np.rot90(part, k) for part in (crop, crop[:, ::-1]) for k in range(4)]
    seen = set()
    for code in range(TURNS):
        out = np.empty_like(crop)
        turn(crop, code, out)
        seen.add(next(i for i, flip in enumerate(flips) if np.array_equal(flip, out)))
    assert seen == set(range(8))


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.integers(0, 1000), st.text(min_size=1, max_size=40))
def test_a_turn_depends_on_seed_epoch_and_patch_alone(seed: int, epoch: int, patch_id: str) -> None:
    assert draw_turn(seed, epoch, patch_id) == draw_turn(seed, epoch, patch_id) < TURNS


def test_turns_are_even_and_differ_between_epochs() -> None:
    counts = np.bincount([draw_turn(0, 0, f"set/{i}") for i in range(8000)], minlength=TURNS)
    assert counts.min() > 870
    assert counts.max() < 1130
    same = sum(draw_turn(0, 0, f"set/{i}") == draw_turn(0, 1, f"set/{i}") for i in range(8000))
    assert 870 < same < 1130
