"""Drafting: keys, representative patches spread over cases, pictures with context and a scale bar."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from attempts import attempt
from PIL import Image

from his2lip.captioning import Project, Source, draft_project
from his2lip.captioning.context import CONTEXT_UM, PatchInContext, Surroundings, _font, draw
from his2lip.captioning.draft import Drafted, ShareEncoder, _Member, medoids
from his2lip.captioning.fields import sentence
from his2lip.data.cards.card import load_card
from his2lip.data.images import encode_png
from his2lip.data.shards import Patch, ShardWriter, open_shards
from his2lip.errors import DatasetError
from his2lip.models import load_model

# Share of the tissue that is brown, by the band that it is.
SHARES = {"negative": 0.0, "weak": 0.03, "moderate": 0.1, "strong": 0.5}
TISSUE, BROWN, GLASS = (196, 170, 205), (110, 70, 40), (244, 243, 245)


def painted(rng: np.random.Generator, share: float) -> bytes:
    """A patch of 64 px: pale tissue on glass, of which a share is brown."""
    pixels = np.full((64, 64, 3), GLASS, dtype=np.uint8)
    pixels[4:] = TISSUE
    places = rng.permutation(60 * 64)[: round(share * 60 * 64)]
    pixels[4 + places // 64, places % 64] = BROWN
    return encode_png((pixels + rng.integers(-3, 4, pixels.shape)).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Painted patches of two pairs in four bands and five cases, some without a scale or without labels."""
    place, rng = tmp_path_factory.mktemp("draft") / "mihic", np.random.default_rng(0)
    with ShardWriter(place, card=load_card("mihic"), generated=True) as writer:
        for n, (tissue, band) in enumerate((t, b) for t in ("Tumor", "Stroma", None) for b in SHARES):
            for i in range(12 - 2 * (n % 4)):
                writer.add(
                    Patch(
                        patch_id=f"mihic/{n}-{i}.png", image=painted(rng, SHARES[band]), dataset="mihic",
                        split="test" if i == 5 else "train", width=64, height=64, case_id=f"case {i % 5}",
                        tissue=tissue, biomarker="Ki67" if tissue else None, stain="DAB",
                        mpp=None if i == 0 else 0.5,
                    )
                )  # fmt: skip
        writer.close()
    return str(place)


@pytest.fixture(scope="module")
def drafted(twin: str, tmp_path_factory: pytest.TempPathFactory) -> Drafted:
    folder = tmp_path_factory.mktemp("drafted")
    sources, model = [Source(shards=open_shards(twin))], load_model("tiny")
    return draft_project(folder / "project", sources, model, cache=str(folder / "cache"))


def test_a_draft_has_keys_by_coverage_with_representative_patches_of_several_cases(
    twin: str, drafted: Drafted
) -> None:
    shards, folder = open_shards(twin), drafted.project.folder
    keys = Project.open(folder).keys
    assert [key.patches for key in keys] == sorted((key.patches for key in keys), reverse=True)
    assert (
        drafted.covered + sum(drafted.left_out.values()) == drafted.patches == shards.table("train").num_rows
    )
    assert len({key.id for key in keys}) == len(keys)
    assert {(key.tissue, key.staining) for key in keys} == {
        (t, b) for t in ("Tumor", "Stroma") for b in SHARES
    }
    assert drafted.left_out == {"neither tissue type nor biomarker": 32}
    rows = {row["patch_id"]: row for row in shards.table("train").to_pylist()}
    for key in keys:
        assert len(key.pictures) == min(4, key.patches)
        of = [rows[picture.patch] for picture in key.pictures]
        assert len({picture.patch for picture in key.pictures}) == len(of)
        assert {(row["tissue"], row["biomarker"]) for row in of} == {(key.tissue, key.biomarker)}
        for picture in key.pictures:
            assert (picture.scale_bar_um is None) == (rows[picture.patch]["mpp"] is None)
            with Image.open(folder / picture.file) as image:
                assert max(image.size) == 512
        assert len({row["case_id"] for row in of}) >= min(4, len(of))
        assert key.text == sentence(key.tissue, key.biomarker, key.fields)
    assert "no proliferating cells with nuclear staining are seen" in keys[0].text  # most are negative


def test_a_second_draft_embeds_and_measures_no_image_again(
    twin: str, drafted: Drafted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources, model = [Source(shards=open_shards(twin))], load_model("tiny")
    folder, cache = drafted.project.folder, str(drafted.project.folder.parent / "cache")
    monkeypatch.setattr(model, "encode_image", None)
    monkeypatch.setattr("his2lip.captioning.draft.stained_share", None)
    second = draft_project(tmp_path / "b", sources, model, cache=cache)
    assert second.project.keys == drafted.project.keys
    with pytest.raises(DatasetError) as refused:
        draft_project(folder, sources, model, cache=cache)
    assert refused.value.key == "name"


def test_report_splits_are_not_drafted(twin: str, tmp_path: Path) -> None:
    source = Source(shards=open_shards(twin), splits=["test"])
    with pytest.raises(DatasetError) as refused:
        draft_project(tmp_path / "p", [source], load_model("tiny"), cache=str(tmp_path / "cache"))
    assert refused.value.key == "--split"


def test_no_option_is_advised_where_all_splits_are_for_reporting(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "hnscc", card=load_card("hnscc"), generated=True) as writer:
        image = painted(np.random.default_rng(0), 0.5)
        writer.add(Patch(patch_id="a", image=image, dataset="hnscc", split="test", width=64, height=64))
        writer.close()
    with pytest.raises(DatasetError) as refused:
        _ = Source(shards=open_shards(str(tmp_path / "hnscc"))).chosen
    assert refused.value.key == "--split"
    assert "--split" not in str(refused.value.fix), "every split would be refused"


def test_equal_names_of_cases_in_two_datasets_are_two_cases() -> None:
    place = {"case_id": "P1", "slide_id": "s", "patch_id": "p"}
    here, there = (_Member(source, "train", 0, place).case for source in (0, 1))
    assert here != there
    assert here == _Member(0, "val", 3, {**place, "patch_id": "q"}).case


def test_stained_areas_are_measured_again_where_another_library_decodes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = ShareEncoder().key
    monkeypatch.setattr("his2lip.captioning.draft.decoder_version", lambda: "another")
    assert ShareEncoder().key != before


def test_medoids_represent_each_cluster_and_prefer_new_cases() -> None:
    rng = np.random.default_rng(0)
    centres = np.eye(4, 8, dtype=np.float32) * 5
    features = np.concatenate([centre + rng.normal(0, 0.1, (20, 8)) for centre in centres]).astype(np.float32)
    cases = [f"case {i % 5}" for i in range(80)]
    chosen = medoids(features, cases, count=4)
    assert {i // 20 for i in chosen} == {0, 1, 2, 3}
    assert len({cases[i] for i in chosen}) == 4
    only = medoids(features, ["one"] * 80, count=4)
    assert len(set(only)) == 4
    same = medoids(np.ones((6, 8), dtype=np.float32), list("aabbcc"), count=4)
    assert len(set(same)) == 4
    assert {"aabbcc"[i] for i in same[:3]} == set("abc")


@pytest.fixture(scope="module")
def tiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, np.ndarray]:
    """Tiles of 32 px that were cut from an image of 1,024 px and halved in size, and that image."""
    root = tmp_path_factory.mktemp("tiles")
    pixels = (
        np.random.default_rng(1).integers(0, 255, (16, 16, 3), dtype=np.uint8).repeat(64, 0).repeat(64, 1)
    )
    (root / "raw").mkdir()
    (root / "raw/slide.png").write_bytes(encode_png(pixels))
    card = load_card("mihic").model_copy(update={"mpp": 2.0})
    with ShardWriter(root / "shards", card=card, generated=True, view="tiles") as writer:
        for y in range(0, 1024, 64):
            for x in range(0, 1024, 64):
                tile = Image.fromarray(pixels[y : y + 64, x : x + 64]).resize((32, 32))
                data = io.BytesIO()
                tile.save(data, "PNG")
                writer.add(
                    Patch(
                        patch_id=f"mihic/slide.png#{x}_{y}", image=data.getvalue(), dataset="mihic",
                        split="train", width=32, height=32, tissue="Tumor", biomarker="Ki67",
                        x=x, y=y, mpp=4.0,
                    )
                )  # fmt: skip
        writer.close()
    return str(root / "shards"), root / "raw", pixels


@pytest.mark.parametrize("source", ["shards", "slide"])
def test_context_comes_from_neighbours_and_from_the_slide(
    tiled: tuple[str, Path, np.ndarray], source: str
) -> None:
    uri, root, pixels = tiled
    shards = open_shards(uri)
    rows = shards.table("train").to_pylist()
    row = next(i for i, r in enumerate(rows) if (r["x"], r["y"]) == (448, 512))
    surroundings = Surroundings(shards, root if source == "slide" else None)
    (view,) = surroundings.views("train", {row: rows[row]}, context_um=CONTEXT_UM)
    left, top, right, bottom = view.box
    assert (right - left, bottom - top) == (32, 32)
    assert view.context_um == pytest.approx(CONTEXT_UM, abs=4)
    inner = view.pixels[top + 4 : bottom - 4, left + 4 : right - 4].astype(int)  # resizing blurs the borders
    assert np.abs(inner - pixels[512, 448]).max() <= 2
    west, south = (
        view.pixels[top + 16, left - 16].astype(int),
        view.pixels[bottom + 16, left + 16].astype(int),
    )
    assert np.abs(west - pixels[512, 447]).max() <= 2
    assert np.abs(south - pixels[576, 448]).max() <= 2
    picture, bar = draw(view)
    assert bar == 100  # a third of 432 µm holds 100 µm
    assert picture.shape == (512, 1032, 3)  # the patch, and beside it what lies around it
    assert np.abs(picture[256, 256].astype(int) - pixels[512, 448]).max() <= 2
    assert np.abs(picture[256, 520 + 256].astype(int) - pixels[512, 448]).max() <= 2


def test_a_patch_at_a_corner_shows_what_there_is(tiled: tuple[str, Path, np.ndarray]) -> None:
    shards = open_shards(tiled[0])
    rows = shards.table("train").to_pylist()
    (view,) = Surroundings(shards).views("train", {0: rows[0]}, context_um=CONTEXT_UM)
    assert view.box == (0, 0, 32, 32)
    assert view.context_um == pytest.approx(CONTEXT_UM, abs=4)


def test_without_a_scale_there_is_no_bar_and_the_picture_says_so() -> None:
    plain = np.full((64, 64, 3), 255, np.uint8)
    unknown, bar = draw(PatchInContext(plain, (0, 0, 64, 64), None, None))
    assert bar is None
    assert (unknown[-40:] < 128).any()  # the words
    assert not (unknown[:-40] < 128).any()
    known, bar = draw(PatchInContext(plain, (0, 0, 64, 64), 0.5, None))
    assert bar == 10
    assert bytes(_font().getmask("µ")) != bytes(_font().getmask("\uffff"))  # the font has the letter
    black = (known[-16:-12] < 64).all(axis=2).any(axis=0).sum()
    assert black == pytest.approx(10 / 0.5 * 8, abs=2)  # 10 µm at 0.5 µm per pixel, eight times enlarged


def test_the_command_lists_the_keys_with_coverage_and_minutes(
    twin: str, drafted: Drafted, tmp_path: Path
) -> None:
    cache = str(drafted.project.folder.parent / "cache")
    command = (
        "captions",
        "draft",
        str(tmp_path / "p"),
        "--shards",
        twin,
        "--model",
        "tiny",
        "--cache",
        cache,
    )
    done = attempt(*command)
    assert done.ended == "done", done.said
    assert f"8 keys cover {drafted.covered} of {drafted.patches} patches; 11 minutes" in done.said
    assert attempt(*command).ended == "refused"
