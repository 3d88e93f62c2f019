"""Views: which crops of an image a model gets."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from his2lip.evaluation.views import View


@given(
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    size=st.integers(1, 200),
    most=st.integers(1, 20),
    mpp=st.one_of(st.none(), st.floats(0.05, 4)),
)
def test_tiles_are_squares_inside_the_image_and_bounded_in_number(
    height: int, width: int, size: int, most: int, mpp: float | None
) -> None:
    view = View(kind="tiles", size=size, max_tiles=most)
    pixels = np.arange(height * width).reshape(height, width, 1)
    crops = view.crops(pixels, mpp)
    side = min(view.side(mpp), height, width)
    assert 1 <= len(crops) <= most
    assert all(c.shape == (side, side, 1) for c in crops)
    assert len({int(c[0, 0, 0]) for c in crops}) == len(crops), "no tile twice"
    if (height // side) * (width // side) <= most:
        covered = np.concatenate([c.reshape(-1) for c in crops])
        assert len(set(covered.tolist())) == len(covered) == (height // side) * (width // side) * side**2


def test_a_tile_has_the_same_field_at_any_microns_per_pixel() -> None:
    view = View(kind="tiles", size=128, mpp=0.226)
    assert view.side(0.226) == 128
    assert view.side(0.452) == 64
    assert view.side(None) == view.side(float("nan")) == 128


def test_squash_keeps_the_whole_image_and_centre_keeps_the_middle_square() -> None:
    pixels = np.arange(6 * 10 * 3).reshape(6, 10, 3)
    assert View().crops(pixels)[0] is pixels
    np.testing.assert_array_equal(View(kind="centre").crops(pixels)[0], pixels[:, 2:8])


def test_a_limit_on_tiles_keeps_as_many_as_it_allows() -> None:
    pixels = np.zeros((160, 320, 3), dtype=np.uint8)
    assert len(View(kind="tiles", size=10, max_tiles=8).crops(pixels)) == 8


def test_only_options_that_change_pixels_are_in_the_key() -> None:
    assert View(kind="squash", size=64).key() == View(kind="squash", size=32).key()
    assert View(kind="tiles").key() != View(kind="tiles", max_tiles=4).key()
    assert View(kind="squash").key() != View(kind="centre").key()
