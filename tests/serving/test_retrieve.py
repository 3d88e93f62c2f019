"""Retrieval of real tiles by an image or a sentence; each patch is embedded only once."""

from __future__ import annotations

import copy
import csv as csv_format
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from his2lip.cli.retrieve import retrieve as retrieve_command
from his2lip.data.images.codec import encode_png
from his2lip.data.shards.reader import ShardSet
from his2lip.errors import ConfigError, DatasetError, ImageError, TaxonomyError
from his2lip.models.encoder import DualEncoder
from his2lip.serving.basis import Scale
from his2lip.serving.retrieval import Match, Query, build_index

Write = Callable[..., ShardSet]


def retrieve(query: Query, model: DualEncoder, shards: str, *, cache: str, top: int = 10) -> list[Match]:
    return build_index(shards, model, cache=cache).find(query, top=top)


@pytest.fixture
def labelled(real_tiles: Sequence[np.ndarray], write_patches: Write) -> ShardSet:
    """16 real tiles: 12 in `train` and 4 in `select`. Every second one is Tumor, and every third is Ki67."""
    return write_patches(
        real_tiles,
        split=["train"] * 12 + ["select"] * 4,
        tissue=["Tumor" if i % 2 else "Stroma" for i in range(16)],
        biomarker=["CD3" if i % 3 else "Ki67" for i in range(16)],
    )


def test_a_patch_is_its_own_best_match_and_left_out_by_default(
    shards: ShardSet, model: DualEncoder, tmp_path: Path
) -> None:
    index = build_index(shards.uri, model, cache=str(tmp_path / "cache"))
    table = shards.table(shards.splits[0], ["patch_id", "image"])
    for patch_id, image in zip(*(table[c].to_pylist()[:3] for c in ("patch_id", "image")), strict=True):
        first, second, *_ = index.find(image, top=4, keep_query=True)
        assert (first.rank, first.patch_id) == (1, patch_id)
        assert first.similarity == pytest.approx(1, abs=1e-5)
        assert second.similarity < first.similarity
        without = index.find(image, top=16)
        assert len(without) == 15
        assert patch_id not in {match.patch_id for match in without}
        assert without[0].patch_id == second.patch_id


def test_a_patch_with_the_querys_pixels_in_another_encoding_is_left_out_too(
    labelled: ShardSet, model: DualEncoder, real_tiles: Sequence[np.ndarray], tmp_path: Path
) -> None:
    out = io.BytesIO()
    Image.fromarray(real_tiles[5]).save(out, format="TIFF")
    found = build_index(labelled.uri, model, cache=str(tmp_path)).find(out.getvalue(), top=16)
    assert "real/5.png" not in {match.patch_id for match in found}
    assert len(found) == 15


def test_a_sentence_ranks_all_patches_by_similarity(
    shards: ShardSet, model: DualEncoder, tmp_path: Path
) -> None:
    matches = retrieve("brown nuclei", model, shards.uri, cache=str(tmp_path), top=100)
    assert [m.rank for m in matches] == list(range(1, 17))
    assert [m.similarity for m in matches] == sorted((m.similarity for m in matches), reverse=True)


def test_a_released_model_ranks_by_dot_product(
    labelled: ShardSet, model: DualEncoder, real_tiles: Sequence[np.ndarray], tmp_path: Path
) -> None:
    released = copy.copy(model)
    released.similarity = "dot"
    found = retrieve("stroma", released, labelled.uri, cache=str(tmp_path), top=16)
    wanted = {}
    for number, tile in enumerate(real_tiles):
        image = model.encode_image(model.preprocess(tile)[None], normalize=False)
        text = model.encode_text(["stroma"], normalize=False)
        wanted[f"real/{number}.png"] = float((image @ text.T).detach())
    assert [m.patch_id for m in found] == sorted(wanted, key=lambda key: -wanted[key])
    assert [m.similarity for m in found] == pytest.approx(sorted(wanted.values(), reverse=True), rel=1e-4)


def test_the_second_query_needs_no_image_forward(
    labelled: ShardSet, model: DualEncoder, real_ihc: np.ndarray, tmp_path: Path
) -> None:
    seen: list[int] = []
    hook = model.clip.visual.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    query = encode_png(real_ihc[40:168, 40:168])
    try:
        retrieve(query, model, labelled.uri, cache=str(tmp_path))
        assert sum(seen) == 17
        seen.clear()
        retrieve(query, model, labelled.uri, cache=str(tmp_path), top=3)
        retrieve("lymphocytes", model, labelled.uri, cache=str(tmp_path))
    finally:
        hook.remove()
    assert seen == []


def test_the_search_is_restricted_by_split_tissue_and_biomarker(
    labelled: ShardSet, model: DualEncoder, tmp_path: Path
) -> None:
    cache = str(tmp_path)
    whole = build_index(labelled.uri, model, cache=cache)
    found = whole.find("nuclei", top=16, tissue="tumor", biomarker="KI-67")
    assert sorted(m.patch_id for m in found) == ["real/15.png", "real/3.png", "real/9.png"]
    assert {(m.tissue, m.biomarker) for m in found} == {("Tumor", "Ki67")}
    basis = whole.check("nuclei", scale=Scale(), tissue="tumor", biomarker="KI-67").basis
    every = f"{len(whole.table):,} patches of "
    assert basis.coverage.startswith(f"3 of {every}")
    assert whole.check("nuclei", scale=Scale()).basis.coverage.startswith(every)
    part = build_index(labelled.uri, model, cache=cache, splits=["select"])
    assert {m.split for m in part.find("nuclei", top=16)} == {"select"}
    with pytest.raises(DatasetError) as absent:
        whole.find("nuclei", biomarker="HER2")
    assert absent.value.key == "HER2"
    assert "CD3, Ki67" in str(absent.value.fix)
    with pytest.raises(TaxonomyError) as unknown:
        whole.find("nuclei", biomarker="Ki68")
    assert "'Ki67'" in str(unknown.value.fix)
    with pytest.raises(DatasetError) as no_split:
        build_index(labelled.uri, model, cache=cache, splits=["tran"])
    assert "'train'" in str(no_split.value.fix)


def test_labels_that_no_patch_has_together_are_refused_with_those_that_are_left(
    real_tiles: Sequence[np.ndarray], model: DualEncoder, write_patches: Write, tmp_path: Path
) -> None:
    tissues, biomarkers = ["Tumor", "Tumor", "Stroma"], ["CD3", "CD8", "Ki67"]
    shards = write_patches(real_tiles[:3], tissue=tissues, biomarker=biomarkers)
    with pytest.raises(DatasetError) as absent:
        build_index(shards.uri, model, cache=str(tmp_path)).find("nuclei", tissue="tumor", biomarker="Ki67")
    assert "Tumor" in absent.value.what
    assert absent.value.fix == "choose one of its biomarkers: CD3, CD8"


def test_a_split_that_is_named_twice_is_searched_once(
    labelled: ShardSet, model: DualEncoder, tmp_path: Path
) -> None:
    twice = build_index(labelled.uri, model, cache=str(tmp_path), splits=["select", "select"])
    assert len(twice.find("nuclei", top=16)) == len(twice.table) == 4


def test_the_images_of_matches_are_those_of_their_rows(
    labelled: ShardSet, model: DualEncoder, real_tiles: Sequence[np.ndarray], tmp_path: Path
) -> None:
    index = build_index(labelled.uri, model, cache=str(tmp_path))
    found = index.find("nuclei", top=16)
    for match, image in zip(found, index.images(found), strict=True):
        assert image == encode_png(real_tiles[int(re.sub(r"\D", "", match.patch_id))])


def test_a_query_may_be_pixels_bytes_or_a_file(
    shards: ShardSet, model: DualEncoder, real_ihc: np.ndarray, tmp_path: Path
) -> None:
    index = build_index(shards.uri, model, cache=str(tmp_path / "cache"))
    file = tmp_path / "query.png"
    file.write_bytes(encode_png(real_ihc[:128, :128]))
    asked = [real_ihc[:128, :128], file.read_bytes(), file, str(file)]
    assert len({(m.patch_id, m.similarity) for q in asked for m in index.find(q, top=1)}) == 1
    assert index.cache.counts.images == 16, "the query is the first tile, which is in the cache"
    with pytest.raises(ImageError) as refused:
        index.find("absent.png")
    assert refused.value.where == "absent.png"
    assert len(index.find("a sentence " * 400, top=2)) == 2


def test_an_index_without_shards_or_patches_is_refused(
    labelled: ShardSet, model: DualEncoder, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError) as absent:
        build_index(str(tmp_path / "nothing"), model, cache=str(tmp_path / "cache"))
    assert str(absent.value.where) == str(tmp_path / "nothing")
    with pytest.raises(DatasetError) as empty:
        build_index(labelled.uri, model, cache=str(tmp_path / "cache"), splits=[])
    assert (empty.value.where, empty.value.key) == (labelled.uri, "splits")


def test_the_command_writes_rows_and_a_page_that_needs_no_other_file(
    labelled: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page, csv = tmp_path / "page.html", tmp_path / "rows.csv"
    options: dict[str, Any] = {"model": "tiny", "index": labelled.uri, "top": 3, "split": ["train"]}
    options |= {"csv": csv, "page": page}
    retrieve_command("<script>alert(1)</script> & nuclei", **options)
    rows = list(csv_format.DictReader(csv.open()))
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    assert {row["patch_biomarker"] for row in rows} <= {"CD3", "Ki67"}
    assert {row["biomarker"] for row in rows} == {"none was asked for"}, "the basis, as in every output"
    html = page.read_text()
    assert html.count("<img ") == 3
    assert not re.findall(r"(?:src|href)=\"(?!data:)", html)
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert all(row["patch_id"] in html for row in rows)
    assert "12 patches searched, 12 images embedded now" in capsys.readouterr().out
    retrieve_command("nuclei", **options | {"top": 100, "biomarker": "Ki67"})
    rows = list(csv_format.DictReader(csv.open()))
    assert f"{len(rows)} patches searched" in capsys.readouterr().out
    assert all(row["coverage"].startswith(f"{len(rows)} of 12 patches of ") for row in rows)
    (tmp_path / "Stroma").mkdir()
    for name in ("absent.png", "absent.svs", "in a folder/absent.NDPI", "absent.gif", "a/b.jp2", "Stroma"):
        with pytest.raises(ConfigError) as refused:
            retrieve_command(name, **options)
        assert (refused.value.where, refused.value.key) == (name, "QUERY")
    for sentence in ("T cells stained for CD3.", "CD3.", "p.53", "stroma"):
        retrieve_command(sentence, **options)
    for option, value in (("keep_query", True), ("image_mpp", 0.5)):
        with pytest.raises(ConfigError) as refused:
            retrieve_command("nuclei", **options, **{option: value})
        assert refused.value.key == f"--{option.replace('_', '-')}", "it is about an image"
    with pytest.raises(ConfigError) as refused:
        retrieve_command(" ", **options)
    assert refused.value.key == "QUERY"
