"""Slides: impossible microns per pixel are not used, and the scanned area has a position."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from slide_files import write_scn

from his2lip.data.cards import load_card
from his2lip.data.images import open_slide
from his2lip.data.prepare import prepare
from his2lip.data.shards import open_shards
from his2lip.errors import ImageError
from his2lip.serving.slides import stated_mpp
from his2lip.synthetic.layouts import write_layout, write_pyramid

IMPOSSIBLE = [352.8, 1000.0, 0.01]  # 72 dpi, a writer's default, and a unit mistaken for another


@pytest.mark.parametrize("stated", IMPOSSIBLE)
def test_impossible_microns_per_pixel_are_replaced_with_a_note_or_refused(
    tmp_path: Path, real_ihc: np.ndarray, stated: float
) -> None:
    write_pyramid(tmp_path / "a.tiff", real_ihc, mpp=stated)
    with pytest.raises(ImageError) as refused, open_slide(tmp_path / "a.tiff"):
        pass
    assert refused.value.key == "mpp"
    with open_slide(tmp_path / "a.tiff", fallback_mpp=0.92) as slide:
        assert slide.mpp == 0.92
        assert slide.mpp_note is not None
        assert "0.92" in slide.mpp_note
    with open_slide(tmp_path / "a.tiff", mpp=0.5, fallback_mpp=0.92) as slide:
        assert (slide.mpp, slide.mpp_note) == (0.5, None)


def test_possible_microns_per_pixel_come_before_the_card_s_and_after_the_caller_s(
    tmp_path: Path, real_ihc: np.ndarray
) -> None:
    write_pyramid(tmp_path / "a.tiff", real_ihc, mpp=0.25)
    for arguments, expected in (
        ({}, 0.25),
        ({"fallback_mpp": 0.92}, 0.25),
        ({"mpp": 0.5, "fallback_mpp": 0.92}, 0.5),
    ):
        with open_slide(tmp_path / "a.tiff", **arguments) as slide:
            assert slide.mpp == pytest.approx(expected, abs=1e-3)
            assert slide.mpp_note is None


@pytest.mark.parametrize("stated", IMPOSSIBLE)
def test_acrobat_slides_of_an_impossible_scale_are_tiled_at_the_card_s(
    tmp_path: Path, real_ihc: np.ndarray, stated: float
) -> None:
    wide = np.tile(real_ihc, (3, 3, 1))
    write_layout("acrobat", tmp_path / "in", lambda side, *_: wide[:side, :side], each=1)
    slides = sorted((tmp_path / "in").rglob("*.tif*"))
    for path in slides:
        write_pyramid(path, tifffile.imread(path, key=0), mpp=stated)
    report = prepare(load_card("acrobat"), tmp_path / "in", tmp_path / "out")
    shards = open_shards(tmp_path / "out")
    scales = [mpp for split in shards.splits for mpp in shards.table(split)["mpp"].to_pylist()]
    assert scales == pytest.approx([0.92] * len(scales), abs=0.01)
    assert report.quarantined == []
    read = {path.name for path in slides if "_HE_" not in path.name}
    assert {place for place, reason in report.left_out if f"{stated:g}"[:3] in reason} == read


def test_the_scanned_area_of_a_slide_has_its_place(tmp_path: Path, real_ihc: np.ndarray) -> None:
    write_scn(tmp_path / "a.scn", real_ihc, mpp=0.5, offset=(700, 300), size=(4000, 2000))
    with open_slide(tmp_path / "a.scn") as slide:
        assert (slide.width, slide.height, slide.mpp, slide.origin) == (4000, 2000, 0.5, (700, 300))
        assert (slide.region(700 + 30, 300 + 50, 100, 100) == real_ihc[50:150, 30:130]).all()
    write_pyramid(tmp_path / "a.tiff", real_ihc, mpp=0.5)
    with open_slide(tmp_path / "a.tiff") as slide:
        assert slide.origin == (0, 0)


@pytest.mark.parametrize(("down", "used"), [(0.25, True), (0.26, True), (0.5, False), (0.0001, False)])
def test_the_scale_of_a_slide_whose_pixels_are_not_square_is_not_that_of_their_width(
    tmp_path: Path, real_ihc: np.ndarray, down: float, used: bool
) -> None:
    options = {"photometric": "rgb", "tile": (256, 256), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "a.tiff", real_ihc, resolution=(1e4 / 0.25, 1e4 / down), **options)
    assert stated_mpp(tmp_path / "a.tiff") == (pytest.approx(0.25) if used else None)
    with open_slide(tmp_path / "a.tiff", fallback_mpp=0.4) as slide:
        assert slide.mpp == pytest.approx(0.25 if used else 0.4)
        assert (slide.mpp_note is None) == used
    if not used:
        with pytest.raises(ImageError, match=r"0\.25"), open_slide(tmp_path / "a.tiff"):
            pass


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_pyramid_is_not_shown_turned(tmp_path: Path, real_ihc: np.ndarray, orientation: int) -> None:
    """OpenSlide ignores the tag, while an image that is decoded whole is turned by it."""
    options = {"photometric": "rgb", "tile": (256, 256), "extratags": [(274, "H", 1, orientation, True)]}
    tifffile.imwrite(tmp_path / "a.tiff", real_ihc, **options)
    if orientation == 1:
        with open_slide(tmp_path / "a.tiff") as slide:
            assert (slide.region(0, 0, 512, 512) == real_ihc).all()
        return
    with pytest.raises(ImageError) as refused, open_slide(tmp_path / "a.tiff"):
        pass
    assert refused.value.key == "orientation"
    assert str(orientation) in refused.value.what


@pytest.mark.parametrize("longest", [5000, 1700, 700, 33])
@pytest.mark.parametrize("smaller", [(), (2,), (3,)], ids=["one level", "halved", "a fraction"])
def test_an_overview_that_is_read_in_strips_has_the_pixels_of_the_whole_level(
    tmp_path: Path, real_ihc: np.ndarray, longest: int, smaller: tuple[int, ...]
) -> None:
    whole = np.tile(real_ihc, (10, 2, 1))[:5000, :1000]
    levels = {step: np.ascontiguousarray(whole[::step, ::step]) for step in (1, *smaller)}
    with tifffile.TiffWriter(tmp_path / "a.tiff") as out:
        for step, pixels in levels.items():
            options = {"photometric": "rgb", "tile": (256, 256), "compression": "zlib"}
            out.write(pixels, subfiletype=int(step > 1), **options)
    with open_slide(tmp_path / "a.tiff") as slide:
        found = slide.overview(longest)
    shrinks = 5000 / longest
    level = levels[max(step for step in levels if step == 1 or step <= shrinks)]
    step = -(-max(level.shape) // longest)
    assert found.flags.owndata, "a view would keep the whole level in memory"
    assert np.array_equal(found, level[::step, ::step])
