"""Slides made of real pixels: answers for each tile and for the slide, and the files that show them."""

from __future__ import annotations

import copy
import json
import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from slide_files import write_scn

from his2lip.cli.classify import classify as classify_command
from his2lip.cli.classify import heat_bounds
from his2lip.data.images.codec import encode_png
from his2lip.data.images.stain_vectors import EOSIN, HAEMATOXYLIN, transmit, unmix
from his2lip.data.images.tiling import tissue_mask
from his2lip.data.shards.reader import ShardSet
from his2lip.data.shards.scale import patch_scale
from his2lip.errors import ConfigError, ImageError
from his2lip.models.checkpoint import save_checkpoint
from his2lip.models.encoder import DualEncoder
from his2lip.runtime import usable_cpus
from his2lip.serving.basis import BASIS_FIELDS
from his2lip.serving.classifier import Classifier
from his2lip.serving.questions import ask
from his2lip.serving.slide_geojson import write_geojson
from his2lip.serving.slide_maps import (
    class_colours,
    draw_classes,
    draw_similarity,
    similarity_colours,
    stated,
)
from his2lip.serving.slides import PATCH_SIDE, SlideReading, is_slide, read_slide
from his2lip.synthetic.layouts import write_pyramid

PLACES = (
    (256, 128),
    (768, 128),
    (1536, 640),
)  # (x, y) of the tissue on the glass, multiples of a tile's side


@pytest.fixture(scope="module")
def pixels(real_ihc: np.ndarray) -> np.ndarray:
    """Level 0 of a slide: the real tissue three times on bare glass, uint8 (1280, 3200, 3)."""
    glass = np.full((1280, 3200, 3), 243, np.uint8)
    for x, y in PLACES:
        glass[y : y + 512, x : x + 512] = real_ihc
    return glass


@pytest.fixture(scope="module")
def slide(pixels: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("slides") / "section.tiff"
    write_pyramid(file, pixels, mpp=0.25)
    return file


@pytest.fixture(scope="module")
def reading(slide: Path, model: DualEncoder) -> SlideReading:
    return read_slide(slide, Classifier(model, ask(biomarker="CD3")), size=128, mpp=0.25)


def test_tiles_are_on_tissue_only(reading: SlideReading) -> None:
    wanted = {(x + i, y + j) for x, y in PLACES for i in range(0, 512, 128) for j in range(0, 512, 128)}
    found = {tuple(place) for place in reading.places.tolist()}
    assert found <= wanted
    assert len(found) == len(reading.places) > 40
    assert (reading.width, reading.height, reading.mpp, reading.side) == (3200, 1280, 0.25, 128)


def test_the_scores_of_a_tile_are_those_of_the_level_0_pixels_at_its_place(
    reading: SlideReading, pixels: np.ndarray, model: DualEncoder
) -> None:
    cut = [pixels[y : y + 128, x : x + 128] for x, y in reading.places]
    wanted = [list(row["tissue"].similarities.values()) for row in Classifier(model).classify(cut)]
    np.testing.assert_allclose(reading.tiles["tissue"].scores, wanted, atol=1e-5)


def test_tiles_of_larger_microns_per_pixel_are_read_at_their_scale(
    slide: Path, model: DualEncoder, pixels: np.ndarray
) -> None:
    coarse = read_slide(slide, Classifier(model), size=128, mpp=0.5)
    assert coarse.side == 256
    assert (coarse.places % 256 == 0).all()
    whole = [
        np.asarray(Image.fromarray(pixels[y : y + 256, x : x + 256][::2, ::2])) for x, y in coarse.places
    ]
    wanted = [list(row["tissue"].similarities.values()) for row in Classifier(model).classify(whole)]
    np.testing.assert_allclose(coarse.tiles["tissue"].scores, wanted, atol=1e-5)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_the_answer_for_a_slide_is_that_of_the_mean_embedding_of_its_tiles(
    slide: Path, pixels: np.ndarray, model: DualEncoder, similarity: str
) -> None:
    compared = copy.copy(model)
    compared.similarity = similarity  # type: ignore[assignment]
    classifier = Classifier(compared, batch_size=7)
    found = read_slide(slide, classifier, size=128, mpp=0.25)
    features, _ = classifier.features(pixels[y : y + 128, x : x + 128] for x, y in found.places)
    if similarity == "cosine":
        features /= np.linalg.norm(features, axis=1, keepdims=True)
    wanted = classifier.score(features.mean(axis=0, keepdims=True))["tissue"].scores[0]
    answer = found.whole["tissue"]
    np.testing.assert_allclose(list(answer.similarities.values()), wanted, atol=1e-5)
    assert sum(found.shares(found.questions[0]).values()) == pytest.approx(1)


def test_the_pixels_of_at_most_three_batches_are_in_memory(
    slide: Path, model: DualEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: set[int] = set()
    most = 0
    cut = Classifier.crops

    def counted(self: Classifier, pixels: np.ndarray) -> np.ndarray:
        nonlocal most
        for array in (pixels, crops := cut(self, pixels)):
            alive.add(id(array))
            weakref.finalize(array, alive.discard, id(array))
        most = max(most, len(alive))
        return crops

    monkeypatch.setattr(Classifier, "crops", counted)
    found = read_slide(slide, Classifier(model, batch_size=5), size=128, mpp=0.25)
    assert len(found.places) > 40
    limit = 15 + usable_cpus()
    assert most <= limit, "a batch in use, one read, one being read, and the tiles of the threads"


def test_geojson_has_each_tile_with_the_fields_of_qupath(reading: SlideReading, tmp_path: Path) -> None:
    file = tmp_path / "tiles.geojson"
    write_geojson(file, reading)
    tree = json.loads(file.read_text())
    assert tree["type"] == "FeatureCollection"
    whole, *tiles = tree["features"]
    assert whole["properties"]["objectType"] == "annotation"
    assert whole["properties"]["metadata"]["tissue type"] == reading.whole["tissue"].label
    assert len(tiles) == len(reading.places)
    classes = reading.questions[0].prompts.classes
    colours = class_colours(len(classes))
    for i, feature in enumerate(tiles):
        assert (feature["type"], feature["geometry"]["type"]) == ("Feature", "Polygon")
        (ring,) = feature["geometry"]["coordinates"]
        x, y = reading.places[i].tolist()
        assert ring == [[x, y], [x + 128, y], [x + 128, y + 128], [x, y + 128], [x, y]]
        properties = feature["properties"]
        winner = int(reading.tiles["tissue"].predicted[i])
        assert properties["objectType"] == "tile"
        assert properties["classification"] == {"name": classes[winner], "color": list(colours[winner])}
        assert properties["metadata"]["CD3 staining"] in ("positive", "negative")
        assert all(isinstance(v, float) and math.isfinite(v) for v in properties["measurements"].values())
        assert properties["measurements"][f"tissue type: {classes[winner]}"] == pytest.approx(
            float(reading.tiles["tissue"].scores[i, winner])
        )


def test_coordinates_of_geojson_are_relative_to_the_scanned_area_as_in_qupath(
    real_ihc: np.ndarray, model: DualEncoder, tmp_path: Path
) -> None:
    write_scn(tmp_path / "a.scn", real_ihc, mpp=0.25, offset=(700, 300), size=(4000, 2000))
    found = read_slide(tmp_path / "a.scn", Classifier(model), size=128, mpp=0.25)
    write_geojson(tmp_path / "a.geojson", found)
    whole, *features = json.loads((tmp_path / "a.geojson").read_text())["features"]
    (ring,) = whole["geometry"]["coordinates"]
    assert ring[0] == (found.places.min(axis=0) - (700, 300)).tolist()
    corners = [feature["geometry"]["coordinates"][0][0] for feature in features]
    assert corners == (found.places - (700, 300)).tolist()
    for x, y in corners:  # on the scanned tissue, which is 512 px wide and high
        assert -128 < x < 512
        assert -128 < y < 512


def test_a_slide_with_impossible_microns_per_pixel_needs_them_from_the_user(
    real_ihc: np.ndarray, model: DualEncoder, tmp_path: Path
) -> None:
    write_pyramid(tmp_path / "a.tiff", real_ihc, mpp=352.8)
    with pytest.raises(ImageError) as refused:
        read_slide(tmp_path / "a.tiff", Classifier(model), size=128, mpp=0.25)
    assert refused.value.key == "mpp"
    found = read_slide(tmp_path / "a.tiff", Classifier(model), size=128, mpp=0.25, slide_mpp=0.25)
    assert (found.mpp, found.side) == (0.25, 128)


def test_the_legend_of_a_map_has_the_slides_answer_its_basis_and_the_dab_area(reading: SlideReading) -> None:
    tissue, staining = reading.questions
    for question in (tissue, staining):
        answer, lines = reading.whole[question.name], stated(reading, question)
        assert lines[0] == f"{question.title} of the slide: {answer.label}"
        assert [line.partition(": ")[2] for line in lines[-len(BASIS_FIELDS) :]] == list(
            answer.basis.by_title().values()
        )
    assert answer.dab is not None
    assert f"{100 * answer.dab:.1f} %" in lines[1]
    assert len(stated(reading, tissue)) == len(lines) - 1
    grown = draw_classes(reading, tissue).height - reading.thumbnail.shape[0]
    assert grown > 24 * len(BASIS_FIELDS)


def test_the_dab_area_of_a_slide_is_a_share_of_its_tissue_and_no_mean_of_tiles(
    tmp_path: Path, model: DualEncoder
) -> None:
    """A row of tiles is blue tissue, and another has stained tissue on 5/16 of each tile."""
    glass = np.full((1024, 1024, 3), 243, np.uint8)
    glass[:128], glass[256:296] = (120, 120, 170), (120, 70, 40)
    write_pyramid(tmp_path / "a.tiff", glass, mpp=0.25)
    found = read_slide(tmp_path / "a.tiff", Classifier(model, ask(biomarker="CD3")), size=128, mpp=0.25)
    areas = [answer.dab for answer in found.answers(found.questions[1])]
    assert areas == pytest.approx([0] * 8 + [1] * 8, abs=0.01)
    assert found.whole["staining"].dab == pytest.approx(40 / 168, abs=0.01)


def test_a_map_colours_the_tiles_and_not_the_glass(reading: SlideReading) -> None:
    question, scale = reading.questions[0], reading.thumbnail.shape[1] / reading.width
    page = np.asarray(draw_classes(reading, question))
    height = reading.thumbnail.shape[0]
    assert page.shape[0] > height, "the legend is below the thumbnail"
    colours = np.array(class_colours(7))[reading.tiles["tissue"].predicted]
    for (x, y), colour in zip((reading.places + 64) * scale, colours, strict=True):
        row, column = int(y), int(x)
        wanted = (reading.thumbnail[row, column].astype(float) + colour) / 2
        np.testing.assert_allclose(page[row, column], wanted, atol=1)
    assert (page[: int(100 * scale), : reading.thumbnail.shape[1]] == 243).all()


def test_the_tissue_at_the_end_of_a_long_narrow_slide_is_tiled_and_coloured(
    real_ihc: np.ndarray, tmp_path: Path, model: DualEncoder
) -> None:
    """As of a needle biopsy. The sides of an overview are rounded up."""
    glass = np.full((20_000, 305, 3), 243, np.uint8)
    top, bottom = 19_456, 19_712
    glass[top:bottom] = real_ihc[:256, :305]
    write_pyramid(tmp_path / "biopsy.tiff", glass, mpp=0.25)
    found = read_slide(tmp_path / "biopsy.tiff", Classifier(model), size=128, mpp=0.25)
    assert set(map(tuple, found.places.tolist())) == {(x, y) for x in (0, 128) for y in (top, top + 128)}
    picture = found.thumbnail
    page = np.asarray(draw_classes(found, found.questions[0]))[: picture.shape[0], : picture.shape[1]]
    rows = np.flatnonzero((page != picture).any(axis=(1, 2)))
    ends = np.array([top, bottom]) * picture.shape[0] / 20_000
    assert [int(rows.min()), int(rows.max()) + 1] == pytest.approx(ends.tolist(), abs=1)
    tissue = tissue_mask(glass[top:bottom])
    share = float(found.whole["tissue"].basis.coverage.partition("%")[0])
    assert share == pytest.approx(100 * tissue[:, :256].sum() / tissue.sum(), abs=5)


def test_one_colour_means_one_similarity_on_every_slide(
    reading: SlideReading, slide: Path, model: DualEncoder
) -> None:
    question = reading.questions[0]
    fewer = read_slide(slide, Classifier(model), size=128, mpp=0.5)
    low, high = bounds = (-0.5, 0.5)
    for found in (reading, fewer):
        page = np.asarray(draw_similarity(found, question, "Tumor", bounds=bounds))
        scale = found.thumbnail.shape[1] / found.width
        values = found.tiles["tissue"].scores[:, question.prompts.classes.index("Tumor")]
        colours = similarity_colours((values - low) / (high - low))
        for (x, y), colour in zip((found.places + found.side // 2) * scale, colours, strict=True):
            wanted = (found.thumbnail[int(y), int(x)].astype(float) + colour) / 2
            np.testing.assert_allclose(page[int(y), int(x)], wanted, atol=1)


def test_the_range_of_a_heat_map_does_not_depend_on_the_slide() -> None:
    assert heat_bounds(None, "cosine") == (-1.0, 1.0)
    assert heat_bounds("0.1:0.4", "cosine") == heat_bounds("0.1:0.4", "dot") == (0.1, 0.4)
    unusable = ("0.4:0.1", "0.4", "a:b", "0:inf", "-inf:1", "nan:1")
    for given, similarity in ((None, "dot"), *((text, "cosine") for text in unusable)):
        with pytest.raises(ConfigError) as refused:
            heat_bounds(given, similarity)
        assert refused.value.key == "--heat-range"


def test_the_coverage_of_a_slide_is_the_share_of_its_tissue_in_tiles(
    slide: Path, pixels: np.ndarray, reading: SlideReading, model: DualEncoder
) -> None:
    tissue = tissue_mask(pixels)
    seen = np.zeros_like(tissue)
    for x, y in reading.places:
        seen[y : y + 128, x : x + 128] = True
    stated = reading.whole["tissue"].basis.coverage
    share = float(stated.partition("%")[0])
    assert share == pytest.approx(100 * (tissue & seen).sum() / tissue.sum(), abs=1.5)
    assert f"{len(reading.places):,} tiles" in stated
    large = read_slide(slide, Classifier(model), size=128, mpp=1.25).whole["tissue"].basis.coverage
    assert float(large.partition("%")[0]) < share, "tiles of 640 px leave out the borders"


def test_an_h_and_e_slide_has_no_answer_about_a_biomarker(
    pixels: np.ndarray, model: DualEncoder, tmp_path: Path
) -> None:
    haematoxylin, _, dab = np.moveaxis(unmix(pixels), -1, 0)
    amounts = np.stack([haematoxylin, np.maximum(dab, 0) + 0.3 * (haematoxylin > 0.1)], axis=-1)
    light = transmit(amounts.astype(np.float32), np.array([HAEMATOXYLIN, EOSIN], dtype=np.float32))
    write_pyramid(tmp_path / "he.tiff", (255 * light.clip(0, 1)).astype(np.uint8), mpp=0.25)
    found = read_slide(tmp_path / "he.tiff", Classifier(model, ask(biomarker="CD3")), size=128, mpp=0.25)
    tissue, staining = found.questions
    assert found.whole["tissue"].refusal is None
    assert found.whole["staining"].refusal is not None
    assert not found.answered(staining).any()
    assert not any(found.shares(staining).values())
    assert (np.asarray(draw_classes(found, staining)) == (150 + 243) // 2).any(), "grey tiles"
    assert found.answered(tissue).all()


def test_a_slide_most_of_whose_tiles_are_less_probable_than_asked_for_is_not_answered(
    slide: Path, model: DualEncoder
) -> None:
    questions = [replace(question, temperature=0.05) for question in ask()]
    for least, answered in ((0.0, True), (1.0, False)):
        classifier = Classifier(model, questions, abstain_below=least)
        found = read_slide(slide, classifier, size=128, mpp=0.25)
        (question,) = found.questions
        assert found.answered(question).all() == found.answered(question).any() == answered
        refusal = found.whole[question.name].refusal
        assert refusal is None if answered else (refusal and refusal.gate) == "unsure"


def test_a_file_that_openslide_opens_and_that_is_larger_than_a_patch_is_a_slide(
    slide: Path, real_ihc: np.ndarray, tmp_path: Path
) -> None:
    assert is_slide(slide)
    write_pyramid(tmp_path / "patch.tiff", real_ihc, mpp=0.25)
    (tmp_path / "patch.png").write_bytes(encode_png(real_ihc))
    (tmp_path / "broken.svs").write_bytes(b"II*\0")
    assert not any(is_slide(tmp_path / name) for name in ("patch.tiff", "patch.png", "broken.svs", "absent"))
    assert max(real_ihc.shape) < PATCH_SIDE


def test_a_slide_without_microns_per_pixel_or_tissue_or_room_for_a_tile_is_refused(
    real_ihc: np.ndarray, model: DualEncoder, tmp_path: Path
) -> None:
    plain = tmp_path / "plain.png"
    plain.write_bytes(encode_png(real_ihc))
    with pytest.raises(ImageError) as unknown:
        read_slide(plain, Classifier(model), size=128, mpp=0.25)
    assert (unknown.value.key, unknown.value.where) == ("--slide-mpp", plain)
    assert len(read_slide(plain, Classifier(model), size=128, mpp=0.25, slide_mpp=0.25).places) > 12
    with pytest.raises(ImageError) as small:
        read_slide(plain, Classifier(model), size=128, mpp=2.0, slide_mpp=0.25)
    assert small.value.key == "size"
    assert "1024 px" in small.value.what, "the side of a tile in the slide's pixels"
    plain.write_bytes(encode_png(np.full((512, 512, 3), 243, np.uint8)))
    with pytest.raises(ImageError) as glass:
        read_slide(plain, Classifier(model), size=128, mpp=0.25, slide_mpp=0.25)
    assert glass.value.key == "tissue"


def _classify(images: list[Path], csv: Path, *, model: str = "tiny", **options: Any) -> list[str]:
    classify_command(images, model=model, csv=csv, **options)
    return csv.read_text().splitlines()


def test_classify_takes_slides_and_patches_together(
    slide: Path, real_ihc: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    patch, csv = tmp_path / "patch.png", tmp_path / "rows.csv"
    patch.write_bytes(encode_png(real_ihc))
    out = tmp_path / "out"
    lines = _classify([slide, patch], csv, mpp=0.25, tile=128, heat="Tumor", out=out)
    assert len(lines) == 3
    assert {Path(line.split(",")[0]).name for line in lines[1:]} == {"section.tiff", "patch.png"}
    names = {"section.tissue.png", "section.heat.png", "section.geojson"}
    assert {p.name for p in out.iterdir()} == names
    assert "tiles of 128 px at 0.25 µm per pixel" in capsys.readouterr().out
    for option, value in (("heat", "Tumor"), ("mpp", 0.5), ("tile", 64), ("heat_range", "0:1")):
        with pytest.raises(ConfigError) as refused:
            _classify([patch], csv, **{option: value})
        assert refused.value.key == f"--{option.replace('_', '-')}", "without a slide nothing would use it"
    with pytest.raises(ConfigError) as refused:
        _classify([patch], csv, heat="Tumour")
    assert refused.value.key == "--heat"
    assert "'Tumor'" in str(refused.value.fix)
    with pytest.raises(ConfigError) as refused:
        _classify([slide], csv)
    assert (refused.value.where, refused.value.key) == ("tiny", "--mpp")
    twin = tmp_path / "section.png"
    twin.write_bytes(patch.read_bytes())
    with pytest.raises(ConfigError) as refused:
        _classify([slide, twin], csv, slide=True, mpp=0.25)
    assert refused.value.key == "section"


def test_a_slide_is_tiled_at_the_microns_per_pixel_of_the_models_training_patches(
    slide: Path,
    model: DualEncoder,
    real_tiles: Sequence[np.ndarray],
    write_patches: Callable[..., ShardSet],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mpps = [0.5, 0.5, None, *[0.5] * 13]
    known = patch_scale(write_patches(real_tiles, mpp=mpps), "select")
    assert known == {"size": 128, "mpp": 0.5}
    checkpoint = save_checkpoint(tmp_path / "trained", model, meta={"patch": known})
    _classify([slide], tmp_path / "rows.csv", model=str(checkpoint), out=tmp_path / "out")
    assert "tiles of 128 px at 0.5 µm per pixel" in capsys.readouterr().out
    _, *tiles = json.loads((tmp_path / "out/section.geojson").read_text())["features"]
    xs = [feature["geometry"]["coordinates"][0][0][0] for feature in tiles]
    assert all(x % 256 == 0 for x in xs), "level 0 has 0.25 µm per pixel"


def test_patches_with_unknown_microns_per_pixel_have_no_scale(
    real_tiles: Sequence[np.ndarray], write_patches: Callable[..., ShardSet]
) -> None:
    assert patch_scale(write_patches(real_tiles), "select") is None


def test_a_map_does_not_replace_an_image_that_is_read(real_ihc: np.ndarray, tmp_path: Path) -> None:
    """Such as the map of an earlier call, which lies beside its slide."""
    for name in ("a.png", "a.tissue.png"):
        (tmp_path / name).write_bytes(encode_png(real_ihc))
    options: dict[str, Any] = {"slide": True, "image_mpp": 0.25, "mpp": 0.25, "tile": 128}
    with pytest.raises(ConfigError) as refused:
        classify_command([tmp_path], model="tiny", out=tmp_path, **options)
    assert refused.value.key == "--out"
    assert (tmp_path / "a.tissue.png").read_bytes() == encode_png(real_ihc)


def test_a_slide_without_microns_per_pixel_is_named_and_the_others_are_answered(
    slide: Path,
    pixels: np.ndarray,
    real_ihc: np.ndarray,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, csv, out = tmp_path / "in", tmp_path / "rows.csv", tmp_path / "out"
    folder.mkdir()
    (folder / "section.tiff").write_bytes(slide.read_bytes())
    (folder / "patch.png").write_bytes(encode_png(real_ihc))
    unscaled = folder / "unscaled.tiff"
    tifffile.imwrite(unscaled, pixels, photometric="rgb", tile=(256, 256), compression="zlib")
    lines = _classify([folder], csv, mpp=0.25, tile=128, out=out)
    assert {Path(line.split(",")[0]).name for line in lines[1:]} == {"section.tiff", "patch.png"}
    _, named = capsys.readouterr().out.split("not read: ")
    assert str(unscaled) in named.replace("\n", "")
    assert "--slide-mpp" in named
    (_, own) = _classify([unscaled], csv, mpp=0.25, tile=128, image_mpp=0.25, out=out)
    (_, same) = _classify([slide], csv, mpp=0.25, tile=128, out=out)
    assert own.split(",")[1:5] == same.split(",")[1:5], "the same pixels at the same scale"
    with pytest.raises(ImageError):
        _classify([unscaled], csv, mpp=0.25, tile=128, out=out)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({}, "--mpp"),
        ({"mpp": 0.25, "heat": "Tumor", "heat_range": "0.4:0.1"}, "--heat-range"),
    ],
)
def test_options_of_slides_are_refused_before_a_patch_is_read(
    slide: Path,
    real_ihc: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    key: str,
) -> None:
    (tmp_path / "patch.png").write_bytes(encode_png(real_ihc))
    seen: list[object] = []
    see = Classifier.see

    def counted(self: Classifier, *arguments: Any) -> Any:
        seen.append(arguments)
        return see(self, *arguments)

    monkeypatch.setattr(Classifier, "see", counted)
    with pytest.raises(ConfigError) as refused:
        _classify([slide, tmp_path / "patch.png"], tmp_path / "rows.csv", out=tmp_path, **options)
    assert (refused.value.key, seen) == (key, [])
