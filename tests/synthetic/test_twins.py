"""Twins: reproducible bytes, no case in two splits, and rows that the protocols of the cards can score."""

from __future__ import annotations

import math
import os
import select
import subprocess
import sys
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


def test_bytes_depend_on_the_seed_and_not_on_the_order_of_drawing() -> None:
    rows = twin_rows("mihic", scale=TINY)[:12]
    forward = [draw(row) for row in rows]
    backward = [draw(row) for row in reversed(rows)][::-1]
    other = [draw(row) for row in twin_rows("mihic", seed=1, scale=TINY)[:12]]
    assert forward == backward
    assert not set(forward) & set(other)


def test_two_processes_draw_the_same_bytes_as_one(tmp_path: Path) -> None:
    with process_mapper(2) as mapper:
        several = write_twin("pantumor", tmp_path / "several", scale=0.4, mapper=mapper)
    one = write_twin("pantumor", tmp_path / "one", scale=0.4)
    assert several.digest == one.digest
    assert one.rows == 48


def test_a_larger_twin_has_the_same_patch_for_the_same_case() -> None:
    small = {p.patch_id: p.sha256 for p in twin_patches("pantumor", scale=0.3)}
    rows = {r.patch_id: r for r in twin_rows("pantumor", scale=0.7)}
    shared = [r for name, r in rows.items() if name in small][:5]
    assert len(shared) == 5
    import hashlib

    assert all(hashlib.sha256(draw(r)).hexdigest() == small[r.patch_id] for r in shared)


@pytest.mark.parametrize("name", twin_names())
def test_no_case_is_in_two_splits(name: str) -> None:
    splits = defaultdict(set)
    for row in twin_rows(name):
        splits[row.case].add(row.split)
    assert all(len(found) == 1 for found in splits.values())


@pytest.mark.parametrize("name", twin_names())
def test_twin_has_every_split_and_every_class_of_the_protocols_of_its_card(name: str, tmp_path: Path) -> None:
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
        classes = [set(values) for values in protocol.classes.values()]
        kept = [
            value
            for value, row in zip(column, table, strict=True)
            if all(row[c] in allowed for c, allowed in protocol.where.items())
        ]
        if protocol.where.get("biomarker"):  # so small a twin may lack a class of one biomarker
            assert set(kept) <= wanted
        else:
            assert all(values & set(kept) for values in classes)


@pytest.mark.parametrize("name", twin_names())
def test_images_have_the_size_that_their_row_states(name: str) -> None:
    for patch, _ in zip(twin_patches(name, scale=TINY), range(3), strict=False):
        image = decode(patch.image)
        assert image.shape == (patch.height, patch.width, 3)
        assert patch.patch_id.startswith(f"{name}/")


def test_mihic_twin_has_the_84_pairs_in_every_split_and_published_file_names() -> None:
    rows = twin_rows("mihic")
    for split in ("train", "val", "test"):
        pairs = {(r.columns["tissue"], r.columns["biomarker"]) for r in rows if r.split == split}
        assert len(pairs) == len(TISSUES) * len(MIHIC_BIOMARKERS)
    assert 2000 <= sum(r.split == "train" for r in rows) <= 2600
    assert sum(r.split == "test" for r in rows) >= 500
    names = {r.patch_id for r in rows}
    assert "mihic/train/Tumor/0011-CD68-6-1.png" in names


def test_every_dataset_has_a_scanner_with_its_own_white_point() -> None:
    from his2lip.synthetic.scanners import SCANNERS

    assert len({SCANNERS[name].white for name in twin_names()}) == 10


@pytest.mark.parametrize("name", ["acrobat", "anhir-lung", "hnscc"])
def test_serial_sections_show_the_same_field_in_several_stains(name: str) -> None:
    from his2lip.synthetic.rows import pixels

    fields = defaultdict(list)
    for row in twin_rows(name, scale=TINY * 4):
        fields[row.case, row.field].append(row)
    sections, others = sorted(fields.items())[0][1], sorted(fields.items())[-1][1]
    assert len({row.slide for row in sections}) == len(sections) >= 4
    dark = [pixels(row)[..., 0].ravel() for row in [*sections, *others[:2]]]  # in red light: haematoxylin
    correlation = np.corrcoef(dark)
    same = correlation[: len(sections), : len(sections)]
    assert same[np.triu_indices(len(sections), 1)].mean() > 0.5
    assert np.abs(correlation[: len(sections), len(sections) :]).max() < 0.3


def test_hnscc_is_stained_by_aec_or_by_haematoxylin_only() -> None:
    rows = [r for r in twin_rows("hnscc") if r.marker == "PanCK" and r.columns["label"] == "core"]
    assert {r.stain for r in rows} == {"AEC"}
    assert {r.columns["biomarker"] for r in twin_rows("hnscc") if r.stain == "haematoxylin"} == {None}


@pytest.mark.parametrize(
    ("name", "scale", "key"),
    [("nothing", 1.0, "nothing"), ("mihic", 0.0, "--scale"), ("mihic", math.inf, "--scale")],
)
def test_unknown_twins_and_scales_are_refused(name: str, scale: float, key: str) -> None:
    with pytest.raises(DatasetError) as refused:
        twin_rows(name, scale=scale)
    assert refused.value.key == key


def test_twins_fill_the_same_columns_as_the_reader_of_the_real_dataset(tmp_path: Path) -> None:
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


def test_drawing_processes_end_with_a_command_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "draws.py"
    script.write_text(
        "import time\n"
        "from his2lip.synthetic import process_mapper\n"
        "def pid(row):\n"
        "    time.sleep(0.02)\n"
        "    return row\n"
        "if __name__ == '__main__':\n"
        "    with process_mapper(1) as mapper:\n"
        "        for found in mapper(pid, range(10_000)):\n"
        "            print(found, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE) as command:
        assert command.stdout is not None
        assert os.read(command.stdout.fileno(), 100)
        command.kill()
        while select.select([command.stdout], [], [], 30)[0]:
            if not os.read(command.stdout.fileno(), 100_000):
                return  # nobody is left who could write
    pytest.fail("a process is still there")
