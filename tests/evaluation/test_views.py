"""Views: which crops of an image a model gets, on its tissue, and the share of the tissue that they show."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from his2lip.evaluation.views import MIHIC_FIELD, Squares, TrainingField, View

GLASS = 244
STAINS = {"brown": (120, 80, 50), "red": (170, 60, 70), "blue": (110, 110, 170)}


def slide(height: int, width: int, *patches: tuple[int, int, int, int], stain: str = "brown") -> np.ndarray:
    """Glass, with rectangles (left, top, right, bottom) of stained tissue."""
    pixels = np.full((height, width, 3), GLASS, np.uint8)
    for left, top, right, bottom in patches:
        pixels[top:bottom, left:right] = STAINS[stain]
    return pixels


def share_inside(found: Squares, tissue: np.ndarray) -> float:
    """The share of bool (H, W) that lies in the squares, counted pixel by pixel."""
    seen = np.zeros_like(tissue)
    for x, y in found.places:
        seen[y : y + found.height, x : x + found.width] = True
    return float((seen & tissue).sum() / tissue.sum())


@settings(max_examples=60, deadline=None)
@example(
    height=1, width=2, size=1, most=1, coverage=0.0, seed=0
)  # a blank image with more tiles than allowed
@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    size=st.integers(1, 200),
    most=st.integers(1, 40),
    coverage=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_tiles_are_different_squares_inside_the_image_bounded_in_number_and_the_same_each_time(
    height: int, width: int, size: int, most: int, coverage: float, seed: int
) -> None:
    view = View(kind="tiles", size=size, max_tiles=most, coverage=coverage)
    pixels = np.random.default_rng(seed).choice([GLASS, 100], (height, width, 1), p=[0.9, 0.1])
    pixels = np.broadcast_to(pixels, (height, width, 3)).astype(np.uint8)
    found = view.squares(pixels)
    side = min(size, height, width)
    assert 1 <= len(found.places) <= most
    assert len(set(found.places)) == len(found.places)
    assert all(0 <= x <= width - side and 0 <= y <= height - side for x, y in found.places)
    assert [crop.shape for crop in view.crops(pixels)] == [(side, side, 3)] * len(found.places)
    assert found == view.squares(pixels.copy())


@pytest.mark.parametrize("stain", STAINS)
def test_tiles_lie_on_tissue_of_any_stain_and_not_on_glass(stain: str) -> None:
    pixels = slide(640, 1280, (100, 120, 420, 380), (900, 40, 1270, 600), stain=stain)
    found = View(kind="tiles", size=64).squares(pixels)
    tissue = pixels[..., 1] < GLASS
    shares = [tissue[y : y + 64, x : x + 64].mean() for x, y in found.places]
    assert min(shares) >= 0.25
    assert found.seen == pytest.approx(share_inside(found, tissue), abs=0.03)
    assert 0.5 <= found.seen < 0.7, "tiles are added until half of the tissue is seen, and not more"


def test_tiles_of_a_real_image_on_glass_lie_on_the_image(real_ihc: np.ndarray) -> None:
    pixels = np.full((1536, 1536, 3), 243, np.uint8)
    pixels[512:1024, 700:1212] = real_ihc
    found = View(kind="tiles", size=64).squares(pixels)
    assert len(found.places) >= 16
    assert all(512 - 64 < y < 1024 and 700 - 64 < x < 1212 for x, y in found.places)
    assert found.seen is not None
    assert found.seen >= 0.5


def test_tiles_of_a_large_image_are_spread_over_all_of_its_tissue() -> None:
    pixels = slide(1024, 1024, (0, 0, 1024, 1024))
    found = View(kind="tiles", size=32, coverage=0.1).squares(pixels)
    quadrants = np.unique([(x // 512, y // 512) for x, y in found.places], axis=0, return_counts=True)[1]
    assert len(quadrants) == 4
    assert quadrants.max() / quadrants.min() < 1.3


def test_a_limit_of_tiles_stops_short_of_the_coverage_and_the_share_says_so() -> None:
    pixels = slide(1024, 1024, (0, 0, 1024, 1024))
    found = View(kind="tiles", size=32, max_tiles=20).squares(pixels)
    assert len(found.places) == 20
    assert found.seen == pytest.approx(20 / 32**2, rel=0.01)


def test_sixteen_tiles_are_used_where_fewer_reach_the_coverage() -> None:
    pixels = slide(512, 512, (0, 0, 512, 512))
    assert len(View(kind="tiles", size=128, coverage=0.2).squares(pixels).places) == 16
    assert View(kind="tiles", size=128, coverage=0.2).squares(pixels).seen == 1.0


def test_an_image_of_sparse_tissue_reaches_its_coverage_with_sparse_tiles() -> None:
    pixels = slide(640, 640, *((x, y, x + 16, y + 16) for x in range(0, 640, 64) for y in range(0, 640, 64)))
    found = View(kind="tiles", size=64).squares(pixels)
    assert found.seen == pytest.approx(0.5, abs=0.02)
    assert len(found.places) == 50


def test_tiles_leave_no_large_part_unseen_where_the_side_is_no_multiple_of_theirs() -> None:
    pixels = slide(224, 224, (0, 0, 224, 224))
    found = View(kind="tiles", size=128).squares(pixels)
    assert found.places == [(0, 0), (96, 0), (0, 96), (96, 96)]
    assert found.seen == 1.0
    assert len(View(kind="tiles", size=128).squares(slide(134, 134, (0, 0, 134, 134))).places) == 1


def test_a_nearly_blank_image_gives_spread_tiles_and_no_share() -> None:
    blank = View(kind="tiles", size=64).squares(slide(640, 640))
    assert blank.seen is None
    assert len(blank.places) == 16
    one = View(kind="centre").squares(slide(64, 128))
    assert (one.places, one.seen) == ([(32, 0)], None)


def test_a_tile_has_the_same_field_at_any_microns_per_pixel() -> None:
    view = View(kind="tiles")
    assert (view.um, view.size) == (29.0, 128)
    assert view.side(0.2264) == 128
    assert view.side(0.4528) == 64
    assert view.side(None) == view.side(float("nan")) == 128


def test_squash_keeps_the_whole_image_and_centre_keeps_the_middle_square() -> None:
    pixels = np.arange(6 * 10 * 3).reshape(6, 10, 3).astype(np.uint8)
    assert np.shares_memory(View().crops(pixels)[0], pixels)
    np.testing.assert_array_equal(View().crops(pixels)[0], pixels)
    np.testing.assert_array_equal(View(kind="centre").crops(pixels)[0], pixels[:, 2:8])
    assert View().squares(pixels).seen == 1.0


def test_the_centre_of_an_image_shows_the_share_of_the_tissue_that_lies_there() -> None:
    pixels = slide(100, 300, (0, 0, 300, 100))
    assert View(kind="centre").squares(pixels).seen == pytest.approx(1 / 3, abs=0.03)


def test_only_options_that_change_pixels_are_in_the_key() -> None:
    assert View(kind="squash", size=64).key() == View(kind="squash", size=32).key() == {"kind": "squash"}
    tiles = [View(kind="tiles", **more) for more in ({}, {"max_tiles": 4}, {"coverage": 0.4}, {"um": 58.0})]
    assert len({str(view.key()) for view in tiles}) == len(tiles)
    assert View(kind="squash").key() != View(kind="centre").key()


def test_a_training_field_is_that_of_the_patches_and_is_compared_in_microns_or_else_in_pixels() -> None:
    field = TrainingField.of({"patch": {"size": 64, "mpp": 0.4531}})
    assert field == (64, 29.0)
    assert TrainingField.of({"patch": None}) is TrainingField.of({}) is None
    times = MIHIC_FIELD.times(np.array([1024.0, 512.0]), np.array([0.4661, np.nan]))
    np.testing.assert_allclose(times, [16.46, 4.0], rtol=1e-3)
