"""Check of shards: damaged rows and images, differences from the published counts, and leaks are found."""

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
CASE_LEAK = "1 case is in test and train, such as toy/99.png and toy/1.png"
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


def test_undamaged_dataset_has_no_problem(tmp_path: Path, patches: list[Patch]) -> None:
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
    assert [(leak.kind, leak.count) for leak, problem in report.leaks if problem] == [("pixels", 1)]
    (problem,) = report.problems
    assert problem.endswith(" in test and train, such as toy/92.png and toy/90.png")


def test_images_that_look_alike_are_a_warning(tmp_path: Path, patches: list[Patch]) -> None:
    again = decode(encode_jpeg(decode(patches[1].image), quality=60))
    report = check(write(tmp_path / "a", [*patches, patch(92, again, split="test")]))
    assert [(leak.kind, leak.count, problem) for leak, problem in report.leaks] == [("look", 1, False)]
    (warning,) = report.warnings
    assert warning.endswith(" in test and train, such as toy/92.png and toy/1.png")
    assert report.problems == []


def test_stain_that_the_pixels_contradict_is_a_warning(tmp_path: Path, patches: list[Patch]) -> None:
    (warning,) = check(write(tmp_path / "a", [replace(p, stain="haematoxylin") for p in patches])).warnings
    assert "'haematoxylin'" in warning
    assert warning.endswith("DAB")


def test_unknown_stain_is_a_warning_with_the_known_ones(tmp_path: Path, patches: list[Patch]) -> None:
    report = check(write(tmp_path / "s", [replace(patch, stain="brown") for patch in patches]))
    (warning,) = report.warnings
    assert "16 images" in warning
    assert "'brown'; known: DAB, AEC" in warning


def test_changed_image_is_found(tmp_path: Path, patches: list[Patch]) -> None:
    path = write(tmp_path / "a", patches) / "test/part-00000.parquet"
    table = pq.read_table(path)
    images = table["image"].to_pylist()
    images[0] = images[1]
    at = table.column_names.index("image")
    pq.write_table(table.set_column(at, table.schema.field("image"), [images]), path)
    (problem,) = check(tmp_path / "a").problems
    assert problem.startswith("toy/0.png: ")
    assert "sha256" in problem


def test_changed_label_is_found(tmp_path: Path, patches: list[Patch]) -> None:
    path = write(tmp_path / "a", patches) / "test/part-00000.parquet"
    table = pq.read_table(path)
    at = table.column_names.index("label")
    pq.write_table(table.set_column(at, table.schema.field("label"), [["b", "a", "a", "a"]]), path)
    counts, digest = check(tmp_path / "a").problems
    assert "`counts`" in counts
    assert "{'a': 4}" in counts
    assert "{'b': 1, 'a': 3}" in counts
    assert "`digest`" in digest


def test_missing_shard_is_a_problem(tmp_path: Path, patches: list[Patch]) -> None:
    path = write(tmp_path / "a", patches) / "test/part-00000.parquet"
    path.unlink()
    (problem,) = check(tmp_path / "a").problems
    assert str(path) in problem
    assert "missing" in problem


def test_difference_from_the_published_counts_is_a_warning_with_both(
    tmp_path: Path, patches: list[Patch]
) -> None:
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


@pytest.mark.parametrize(
    ("fault", "key"),
    [
        ({"counts": [1]}, "counts"),
        ({"odd": 1}, "odd"),
        ({"parts": {"a": "b"}}, "parts.a"),
        ({"quarantined": [["a"]]}, "quarantined.0.1"),
        ({"digest": None}, "digest"),
    ],
)
def test_dataset_json_with_a_wrong_value_is_refused_by_its_key(
    tmp_path: Path, patches: list[Patch], fault: dict[str, object], key: str
) -> None:
    file = write(tmp_path / "s", patches) / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fault))
    with pytest.raises(DatasetError) as refused:
        check(tmp_path / "s")
    assert (refused.value.where, refused.value.key) == (str(tmp_path / "s"), key)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema_version": 1}'])
def test_dataset_json_that_is_not_one_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DatasetError) as refused:
        check(tmp_path)
    assert refused.value.where == str(tmp_path)
    assert refused.value.key is not None


def test_a_place_without_a_prepared_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as refused:
        check(tmp_path)
    assert (refused.value.where, refused.value.key) == (str(tmp_path), "dataset.json")
    with pytest.raises(DatasetError) as refused:
        check("")
    assert refused.value.key == "uri"
