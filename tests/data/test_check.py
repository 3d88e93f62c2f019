"""data check finds what is broken, what differs from the published counts, and what leaks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from his2lip.data.cards.card import Card
from his2lip.data.check.dataset import check
from his2lip.data.images.codec import decode, encode_jpeg, encode_png
from his2lip.data.shards.schema import Patch
from his2lip.data.shards.writer import ShardWriter
from his2lip.errors import DatasetError

CARD = {"name": "toy", "reader": "folder"}
CASE_LEAK = "1 case stands in test and train, such as toy/99.png and toy/1.png"
SPLITS = {"train": {"role": "train", "groups": "case"}, "test": {"role": "report", "groups": "case"}}


def write(uri: Path, patches: list[Patch], *, generated: bool = True, **more: object) -> Path:
    card = Card.model_validate(CARD | {"splits": SPLITS} | more)
    with ShardWriter(uri, card=card, generated=generated) as writer:
        for one in patches:
            writer.add(one)
    return uri


@pytest.fixture
def patches(real_ihc: np.ndarray) -> list[Patch]:
    """Sixteen squares of real pixels, each of its own case, four of them in test."""
    corners = [(96 * r, 96 * c) for r in range(4) for c in range(4)]
    return [patch(i, real_ihc[y : y + 64, x : x + 64]) for i, (y, x) in enumerate(corners)]


def patch(i: int, pixels: np.ndarray, **more: object) -> Patch:
    fields: dict = {"split": "test" if i % 4 == 0 else "train", "label": "a", "case_id": f"case{i}"}
    fields |= {"image": encode_png(pixels), "width": 64, "height": 64} | more
    return Patch(patch_id=f"toy/{i}.png", dataset="toy", **fields)


def test_sound_dataset_has_no_problem(tmp_path: Path, patches: list[Patch]) -> None:
    report = check(write(tmp_path / "a", patches))
    assert report.problems == report.warnings == []


def test_a_scale_that_a_column_cannot_hold_exactly_is_no_problem(
    tmp_path: Path, patches: list[Patch]
) -> None:
    report = check(write(tmp_path / "a", [replace(p, mpp=0.2264) for p in patches]))
    assert report.problems == []


def test_case_in_two_splits_is_a_problem(tmp_path: Path, patches: list[Patch], real_ihc: np.ndarray) -> None:
    leak = patch(99, real_ihc[400:464, 400:464], split="test", case_id="case1")
    report = check(write(tmp_path / "a", [*patches, leak]))
    assert report.problems == [CASE_LEAK]
    assert [(found.kind, problem) for found, problem in report.leaks] == [("case", True)]


def test_case_in_two_splits_by_region_is_a_warning(
    tmp_path: Path, patches: list[Patch], real_ihc: np.ndarray
) -> None:
    splits = {name: split | {"groups": "region"} for name, split in SPLITS.items()}
    leak = patch(99, real_ihc[400:464, 400:464], split="test", case_id="case1")
    report = check(write(tmp_path / "a", [*patches, leak], splits=splits))
    assert (report.problems, report.warnings) == ([], [CASE_LEAK])


def test_same_pixels_in_other_bytes_are_found(tmp_path: Path, patches: list[Patch]) -> None:
    jpeg = encode_jpeg(decode(patches[1].image))
    twins = [patch(90, decode(jpeg), split="train"), patch(92, decode(jpeg), split="test", image=jpeg)]
    report = check(write(tmp_path / "a", [*patches[2:], *twins]))
    assert report.problems == [
        "1 image, pixel for pixel, stands in test and train, such as toy/92.png and toy/90.png"
    ]


def test_images_that_look_alike_are_a_warning(tmp_path: Path, patches: list[Patch]) -> None:
    again = decode(encode_jpeg(decode(patches[1].image), quality=60))
    report = check(write(tmp_path / "a", [*patches, patch(92, again, split="test")]))
    said = "1 look-alike image stands in test and train, such as toy/92.png and toy/1.png"
    assert (report.problems, report.warnings) == ([], [said])


def test_stain_column_that_the_pixels_deny_is_a_warning(tmp_path: Path, patches: list[Patch]) -> None:
    said = [replace(p, stain="haematoxylin") for p in patches]
    (warning,) = check(write(tmp_path / "a", said)).warnings
    assert warning.endswith("images that should be haematoxylin look like DAB")


def test_stain_of_no_known_name_is_a_warning(tmp_path: Path, patches: list[Patch]) -> None:
    report = check(write(tmp_path / "s", [replace(patch, stain="brown") for patch in patches]))
    assert any("stained 'brown', none of DAB, AEC" in said for said in report.warnings)


def test_changed_image_is_found(tmp_path: Path, patches: list[Patch]) -> None:
    path = write(tmp_path / "a", patches) / "test/part-00000.parquet"
    table = pq.read_table(path)
    harmed = table["image"].to_pylist()
    harmed[0] = harmed[1]
    at = table.column_names.index("image")
    pq.write_table(table.set_column(at, table.schema.field("image"), [harmed]), path)
    assert check(tmp_path / "a").problems == ["toy/0.png: the image is not the one that was written"]


def test_changed_label_is_found(tmp_path: Path, patches: list[Patch]) -> None:
    path = write(tmp_path / "a", patches) / "test/part-00000.parquet"
    table = pq.read_table(path)
    at = table.column_names.index("label")
    pq.write_table(table.set_column(at, table.schema.field("label"), [["b", "a", "a", "a"]]), path)
    problems = check(tmp_path / "a").problems
    assert "the digest of the rows is not the one in dataset.json" in problems
    assert any("the rows count" in line for line in problems)


def test_missing_shard_is_a_problem(tmp_path: Path, patches: list[Patch]) -> None:
    (write(tmp_path / "a", patches) / "test/part-00000.parquet").unlink()
    (problem,) = check(tmp_path / "a").problems
    assert "this shard is missing" in problem


def test_difference_from_published_counts_names_both(tmp_path: Path, patches: list[Patch]) -> None:
    published = {"counts": {"test": {"a": 5}, "train": {"all": 12}}}
    report = check(write(tmp_path / "a", patches, generated=False, published=published))
    assert (report.problems, report.warnings) == ([], ["test, a: 4 patches here, 5 published"])


def test_carved_split_counts_with_its_source(tmp_path: Path, patches: list[Patch]) -> None:
    splits = SPLITS | {"select": {"role": "select", "origin": "ours", "groups": "case"}}
    carve = [{"source": "train", "into": "select", "fraction": 0.5, "by": "case"}]
    moved = [patch(i, decode(p.image), split="select") if i in (1, 2) else p for i, p in enumerate(patches)]
    published = {"counts": {"train": {"all": 12}}}
    uri = write(tmp_path / "a", moved, generated=False, splits=splits, carve=carve, published=published)
    assert check(uri).warnings == []


def test_dataset_json_of_another_shape_is_one_clear_error(tmp_path: Path, patches: list[Patch]) -> None:
    file = write(tmp_path / "s", patches) / "dataset.json"
    tree = json.loads(file.read_text())
    for key, value, said in (
        ("counts", [1], "counts is not"),
        ("odd", 1, "odd"),
        ("parts", {"a": "b"}, "parts"),
    ):
        file.write_text(json.dumps(tree | {key: value}))
        with pytest.raises(DatasetError, match=f"dataset.json is broken.*{said}"):
            check(tmp_path / "s")


def test_nothing_prepared_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no place is named"):
        check("")
    with pytest.raises(DatasetError, match="no prepared dataset"):
        check(tmp_path)
    (tmp_path / "dataset.json").write_text(json.dumps({"schema_version": 1}))
    with pytest.raises(DatasetError, match="broken"):
        check(tmp_path)
