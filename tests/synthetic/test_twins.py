"""Twins: the same bytes whoever draws them, no case in two splits, rows that the cards' protocols score."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from his2lip.data.cards.card import load_card
from his2lip.data.images.codec import decode
from his2lip.data.shards.reader import open_shards
from his2lip.errors import DatasetError
from his2lip.synthetic.rows import draw
from his2lip.synthetic.twins import process_mapper, twin_names, twin_patches, twin_rows, write_twin
from his2lip.taxonomy import MIHIC_BIOMARKERS, TISSUES

TINY = 0.05


def test_ten_datasets_have_twins_under_the_names_of_their_cards() -> None:
    assert len(twin_names()) == 10
    for name in twin_names():
        assert load_card(name).name == name


def test_bytes_depend_on_the_seed_and_on_nothing_else() -> None:
    rows = twin_rows("mihic", scale=TINY)[:12]
    forward = [draw(row) for row in rows]
    backward = [draw(row) for row in reversed(rows)][::-1]
    other = [draw(row) for row in twin_rows("mihic", seed=1, scale=TINY)[:12]]
    assert forward == backward
    assert not set(forward) & set(other)


def test_processes_draw_the_same_bytes_as_one(tmp_path: Path) -> None:
    with process_mapper(2) as mapper:
        several = write_twin("pantumor", tmp_path / "several", scale=0.4, mapper=mapper)
    one = write_twin("pantumor", tmp_path / "one", scale=0.4)
    assert several.digest == one.digest
    assert one.rows == 48


def test_a_larger_twin_draws_the_same_patch_for_the_same_case() -> None:
    small = {p.patch_id: p.sha256 for p in twin_patches("pantumor", scale=0.3)}
    rows = {r.patch_id: r for r in twin_rows("pantumor", scale=0.7)}
    shared = [r for name, r in rows.items() if name in small][:5]
    assert len(shared) == 5
    import hashlib

    assert all(hashlib.sha256(draw(r)).hexdigest() == small[r.patch_id] for r in shared)


@pytest.mark.parametrize("name", twin_names())
def test_no_case_stands_in_two_splits(name: str) -> None:
    splits = defaultdict(set)
    for row in twin_rows(name):
        splits[row.case].add(row.split)
    assert all(len(found) == 1 for found in splits.values())


@pytest.mark.parametrize("name", twin_names())
def test_twin_fills_every_split_and_every_class_of_its_cards_protocols(name: str, tmp_path: Path) -> None:
    info = write_twin(name, tmp_path / name, scale=0.1)
    card, shards = load_card(name), open_shards(tmp_path / name)
    assert info.generated
    assert set(info.roles) == set(card.splits)
    for protocol in card.protocols.values():
        table = shards.table(protocol.split).to_pylist()
        column = [
            f"{r['tissue']} {r['biomarker']}" if protocol.label == "pair" else r[protocol.label]
            for r in table
        ]
        wanted = {v for values in protocol.classes.values() for v in values}
        kept = [
            value
            for value, row in zip(column, table, strict=True)
            if all(row[c] in allowed for c, allowed in protocol.where.items())
        ]
        if protocol.where.get(
            "biomarker"
        ):  # a class of one biomarker alone needs more cases than this scale has
            assert set(kept) <= wanted
        else:
            assert wanted <= set(kept)


@pytest.mark.parametrize("name", twin_names())
def test_images_decode_to_the_size_that_the_row_says(name: str) -> None:
    for patch, _ in zip(twin_patches(name, scale=TINY), range(3), strict=False):
        image = decode(patch.image)
        assert image.shape == (patch.height, patch.width, 3)
        assert patch.patch_id.startswith(f"{name}/")


def test_mihic_twin_covers_the_84_pairs_in_every_split_under_published_names() -> None:
    rows = twin_rows("mihic")
    for split in ("train", "val", "test"):
        pairs = {(r.columns["tissue"], r.columns["biomarker"]) for r in rows if r.split == split}
        assert len(pairs) == len(TISSUES) * len(MIHIC_BIOMARKERS)
    assert 2000 <= sum(r.split == "train" for r in rows) <= 2600
    assert sum(r.split == "test" for r in rows) >= 500
    names = {r.patch_id for r in rows}
    assert "mihic/train/Tumor/0011-CD68-6-1.png" in names


def test_other_scanners_see_the_same_glass_differently() -> None:
    from his2lip.synthetic.scanners import SCANNERS

    assert len({SCANNERS[name].white for name in twin_names()}) == 10


@pytest.mark.parametrize("name", ["bci", "mist"])
def test_haematoxylin_and_eosin_twin_shows_the_same_field(name: str) -> None:
    from his2lip.synthetic.rows import pixels

    beside = {row.patch_id: row for row in twin_rows(name, scale=TINY, he=True) if row.stain == "H&E"}
    row = twin_rows(name, scale=TINY)[0]
    pair = row, beside[row.columns["twin_id"]]
    dark = [255.0 - pixels(row)[..., 0] for row in pair]  # red light: haematoxylin, hardly eosin
    assert np.corrcoef(dark[0].ravel(), dark[1].ravel())[0, 1] > 0.5


def test_hnscc_is_red_where_the_others_are_brown() -> None:
    rows = [r for r in twin_rows("hnscc") if r.marker == "PanCK" and r.columns["label"] == "core"]
    assert {r.stain for r in rows} == {"AEC"}
    assert {r.columns["biomarker"] for r in twin_rows("hnscc") if r.stain == "haematoxylin"} == {None}


@pytest.mark.parametrize(("name", "scale"), [("nothing", "demo"), ("mihic", "huge"), ("mihic", 0.0)])
def test_unknown_twins_and_scales_are_refused(name: str, scale: str | float) -> None:
    with pytest.raises(DatasetError):
        twin_rows(name, scale=scale)


def test_columns_are_filled_as_the_reader_of_the_real_dataset_fills_them(tmp_path: Path) -> None:
    from his2lip.data.prepare.dataset import prepare
    from his2lip.synthetic.layouts import write_layout

    def draw(side: int, tissue: str | None, marker: str | None) -> np.ndarray:
        return np.random.default_rng(side).integers(60, 200, (side, side, 3)).astype(np.uint8)

    def filled(uri: Path, split: str) -> set[str]:
        table = open_shards(uri).table(split)
        return {name for name in table.column_names if table[name].null_count < len(table)}

    for name in ("mihic", "hnscc", "ihc4bc", "her2-ihc-40x", "bci", "mist", "anhir-lung"):
        write_layout(name, tmp_path / "files" / name, draw)
        prepare(load_card(name), tmp_path / "files" / name, tmp_path / "real" / name)
        write_twin(name, tmp_path / "twin" / name, scale=TINY)
        for split in open_shards(tmp_path / "real" / name).splits:
            assert filled(tmp_path / "twin" / name, split) == filled(tmp_path / "real" / name, split), name
