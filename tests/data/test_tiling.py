"""Tiles lie on tissue, have the requested microns per pixel, and are the same ones each time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from his2lip.data.images.codec import decode, encode_png
from his2lip.data.images.slides import PlainSlide, tile_places
from his2lip.data.images.tiling import TISSUE_DENSITY, Tiling, cut_note, cut_share, tiles_of, tissue_mask
from his2lip.errors import ConfigError, ImageError


def on_glass(pixels: np.ndarray) -> np.ndarray:
    """The real image in the top left quarter of bare glass."""
    height, width = pixels.shape[:2]
    glass = np.full((height * 2, width * 2, 3), 243, np.uint8)
    glass[:height, :width] = pixels
    return glass


def test_only_tissue_is_tiled(real_ihc: np.ndarray) -> None:
    tiles = list(tiles_of(encode_png(on_glass(real_ihc)), None, Tiling(kind="tiles", size=128), seed="a"))
    assert {(t.x, t.y) for t in tiles} <= {(x, y) for x in range(0, 512, 128) for y in range(0, 512, 128)}
    assert len(tiles) >= 12
    for tile in tiles:
        want = real_ihc[tile.y : tile.y + 128, tile.x : tile.x + 128]
        assert (decode(tile.image) == want).all()
        assert tile.suffix == f"#{tile.x}_{tile.y}"


def test_tiles_are_cut_by_microns_and_resized(real_ihc: np.ndarray) -> None:
    (tile, *_), tiling = _tiles(real_ihc, mpp=0.25, size=64, at=0.5)
    assert decode(tile.image).shape == (64, 64, 3)
    assert tile.mpp == pytest.approx(0.5)
    assert tiling.side(0.25) == 128


def test_bounded_choice_is_the_same_each_time_and_changes_with_the_seed(real_ihc: np.ndarray) -> None:
    data, tiling = encode_png(real_ihc), Tiling(kind="tiles", size=64, max_tiles=5)
    first = [t.suffix for t in tiles_of(data, None, tiling, seed="a")]
    assert len(first) == 5
    assert first == [t.suffix for t in tiles_of(data, None, tiling, seed="a")]
    assert first != [t.suffix for t in tiles_of(data, None, tiling, seed="b")]
    every = list(tiles_of(data, None, Tiling(kind="tiles", size=64), seed="a"))
    assert {t.of for t in every} == {t.of for t in tiles_of(data, None, tiling, seed="a")} == {len(every)}


@given(of=st.integers(1, 10**6), cut=st.integers(0, 10**6))
def test_the_remark_on_tiles_that_are_not_cut_is_read_back_as_their_share(of: int, cut: int) -> None:
    assert cut_share(cut_note(cut, of)) == cut / of
    assert cut_share("the point lies outside the image") is None


def test_bare_glass_and_images_smaller_than_a_tile_are_refused() -> None:
    glass = encode_png(np.full((256, 256, 3), 244, np.uint8))
    for size, key in ((64, "tissue"), (512, "size")):
        with pytest.raises(ImageError) as refused:
            list(tiles_of(glass, None, Tiling(kind="tiles", size=size), seed="a"))
        assert refused.value.key == key


@pytest.mark.parametrize("kind", ["plain", "slide"])
def test_a_number_of_tiles_above_the_limit_is_refused_before_any_is_cut(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("his2lip.data.images.tiling.MAX_TILES", 255)
    pixels, tiling = np.full((512, 512, 3), 150, np.uint8), Tiling(kind="tiles", size=64, mpp=0.25)
    cut = {
        "plain": lambda mpp: len(list(tiles_of(encode_png(pixels), mpp, tiling, seed="a"))),
        "slide": lambda mpp: len(tile_places(PlainSlide(pixels, mpp), tiling, seed="a")),
    }[kind]
    assert cut(0.25) == 64
    with pytest.raises(ImageError) as refused:  # at 0.5, a tile is 32 px of the image
        cut(0.5)
    assert refused.value.key == "tiles"
    assert "256" in refused.value.what


def test_pen_is_not_tissue(real_ihc: np.ndarray) -> None:
    pens = np.array([[[20, 160, 40], [30, 40, 200], [10, 10, 12], [245, 245, 245]]], np.uint8)
    assert not tissue_mask(pens).any()
    assert tissue_mask(real_ihc).mean() > 0.6


def test_tissue_is_dense_and_no_pen_whatever_the_colour() -> None:
    """The tables of limits give what the conditions give, pixel by pixel."""
    density = -np.log10((np.arange(256, dtype=np.float32) + 1) / 256)
    green, blue = np.divmod(np.arange(65536), 256)
    for red in (*range(0, 256, 5), 39, 40):
        pen = (green > red + 25) & (green > blue + 10)
        pen |= (blue > red + 90) & (blue > green + 60)
        pen |= np.maximum(np.maximum(green, blue), red) < 40
        dense = (density[red] + density[green] + density[blue]) / np.float32(3) > TISSUE_DENSITY
        pixels = np.stack([np.full_like(green, red), green, blue], axis=-1).astype(np.uint8)
        assert (tissue_mask(pixels[None])[0] == (dense & ~pen)).all(), red


@pytest.mark.parametrize("kind", ["squash", "centre"])
def test_whole_views_give_one_patch_at_the_size(real_ihc: np.ndarray, kind: str) -> None:
    tiling = Tiling.parse(f"{kind}(size=96, codec=jpeg)")
    (tile,) = tiles_of(encode_png(real_ihc[:300]), None, tiling, seed="a")
    assert decode(tile.image).shape == (96, 96, 3)
    assert tile.image[:2] == b"\xff\xd8"


def test_view_is_parsed_from_the_text_that_it_is_printed_as() -> None:
    tiling = Tiling.parse("tiles(size=256, mpp=0.5, max_tiles=64, codec=jpeg)")
    assert (tiling.size, tiling.mpp, tiling.max_tiles, tiling.codec) == (256, 0.5, 64, "jpeg")
    assert Tiling.parse(str(tiling)) == tiling


def test_an_unknown_option_of_a_view_names_the_nearest_and_a_broken_view_its_option() -> None:
    with pytest.raises(ConfigError) as refused:
        Tiling.parse("tiles(sise=256)")
    assert "'size'" in (refused.value.fix or "")
    with pytest.raises(ConfigError) as refused:
        Tiling.parse("tiles(")
    assert refused.value.key == "--view"


@pytest.mark.parametrize(
    "text", ["tiles(size=0)", "tiles(mpp=-1)", "tiles(mpp=352.8)", "tiles(max_tiles=0)", "squash(size=99999)"]
)
def test_view_that_would_cut_no_or_endless_tiles_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Tiling.parse(text)
    assert text in str(refused.value.where)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("centre(mpp=0.5, max_tiles=3, tissue=0.9)", "mpp"),
        ("centre(max_tiles=3)", "max_tiles"),
        ("squash(size=224, tissue=0.9)", "tissue"),
        ("tiles(size=256, size=512)", "size"),
        ("squash(kind=tiles)", "kind"),
    ],
)
def test_an_option_that_a_view_would_not_use_is_refused(text: str, key: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Tiling.parse(text)
    assert refused.value.key == key
    assert text in str(refused.value.where)


@pytest.mark.parametrize("kind", ["squash", "centre", "tiles"])
def test_a_view_of_each_kind_can_be_given_as_it_is_printed(kind: str) -> None:
    tiling = Tiling.parse(f"{kind}(size=224, codec=jpeg)")
    assert Tiling.parse(str(tiling)) == tiling


def _tiles(pixels: np.ndarray, *, mpp: float, size: int, at: float) -> tuple[list, Tiling]:
    tiling = Tiling(kind="tiles", size=size, mpp=at)
    return list(tiles_of(encode_png(pixels), mpp, tiling, seed="a")), tiling
