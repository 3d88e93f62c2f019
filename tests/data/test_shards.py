"""Shards: written completely or not at all, with a digest of the content; other files are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from his2lip.data.cards.card import Card, Split
from his2lip.data.images.codec import encode_png
from his2lip.data.shards.info import SCHEMA_VERSION, PartInfo, summarise
from his2lip.data.shards.reader import ShardSet, open_shards
from his2lip.data.shards.schema import SCHEMA, Patch
from his2lip.data.shards.writer import ShardWriter
from his2lip.errors import DatasetError

CARD = Card(name="toy", reader="folder", splits={"train": Split(role="train"), "test": Split(role="report")})


def patch(i: int, **more: object) -> Patch:
    pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    fields: dict = {"split": "test" if i % 5 == 0 else "train", "label": f"class{i % 3}", "mpp": 0.25}
    fields |= {"image": encode_png(pixels), "width": 16, "height": 16} | more
    return Patch(patch_id=f"toy/{i}.png", dataset="toy", **fields)


def write(uri: Path | str, patches: list[Patch], **options: int) -> ShardSet:
    with ShardWriter(uri, card=CARD, **options) as writer:
        for one in patches:
            writer.add(one)
    return open_shards(uri)


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    patches = [patch(i, x=i, score="2+", tissue="Tumor", biomarker="CD3") for i in range(20)]
    shards = write(tmp_path / "a", patches, row_group_bytes=2000, part_bytes=6000)
    rows = [
        row
        for split in shards.splits
        for batch in shards.iter_rows(split, SCHEMA.names, 3)
        for row in batch.to_pylist()
    ]
    assert {Patch(**row) for row in rows} == set(patches)
    assert shards.info.counts["test"] == {"class0": 2, "class1": 1, "class2": 1}
    assert shards.info.roles == {"test": "report", "train": "train"}
    assert len(shards.info.parts) > 2


def test_digest_is_the_same_in_any_order_and_layout_and_changes_with_the_content(tmp_path: Path) -> None:
    patches = [patch(i) for i in range(20)]
    first = write(tmp_path / "a", patches)
    assert write(tmp_path / "b", patches[::-1], row_group_bytes=1000, part_bytes=3000).digest == first.digest
    changed = [*patches[:-1], patch(19, label="class9")]
    assert write(tmp_path / "c", changed).digest != first.digest
    pixels = [
        *patches[:-1],
        Patch(
            patch_id="toy/19.png",
            image=b"other",
            dataset="toy",
            split="train",
            width=16,
            height=16,
            label="class1",
            mpp=0.25,
        ),
    ]
    assert write(tmp_path / "d", pixels).digest != first.digest
    assert write(tmp_path / "e", patches[:-1]).digest != first.digest


def test_row_groups_are_bounded_by_bytes_and_have_all_rows(tmp_path: Path) -> None:
    shards = write(tmp_path / "a", [patch(i) for i in range(50)], row_group_bytes=4000)
    groups = shards.row_groups("train")
    assert len(groups) > 5
    assert sum(g.rows for g in groups) == 40
    assert max(g.rows for g in groups) <= 6
    assert shards.table("train").num_rows == 40
    assert "image" not in shards.table("train").column_names


def test_image_column_is_neither_compressed_nor_described_by_statistics(tmp_path: Path) -> None:
    write(tmp_path / "a", [patch(i) for i in range(10)])
    column = (
        pq.read_metadata(tmp_path / "a/train/part-00000.parquet")
        .row_group(0)
        .column(SCHEMA.names.index("image"))
    )
    assert column.compression == "UNCOMPRESSED"
    assert column.statistics is None


def test_shards_can_be_at_any_fsspec_address() -> None:
    shards = write("memory://shards-test/toy", [patch(i) for i in range(10)])
    assert shards.table("train").num_rows == 8


def test_interrupted_writing_leaves_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as refused:
        write(tmp_path / "a", [patch(1), patch(2, split="nowhere")])
    assert refused.value.key == "nowhere"
    with pytest.raises(DatasetError) as refused:
        open_shards(tmp_path / "a")
    assert (refused.value.where, refused.value.key) == (str(tmp_path / "a"), "dataset.json")
    assert list((tmp_path / "a").iterdir())
    assert not list((tmp_path / "a").rglob("*.tmp"))


def test_duplicate_patch_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as refused:
        write(tmp_path / "a", [patch(1), patch(1)])
    assert (refused.value.where, refused.value.key) == ("toy/1.png", "patch_id")


def test_patch_id_in_two_parts_is_refused() -> None:
    one = {"split": "train", "rows": 1, "bytes": 1, "counts": {}, "content": 0, "keys": [7]}
    parts = [PartInfo(path=f"train/part-0000{i}.parquet", **one) for i in (0, 1)]
    with pytest.raises(DatasetError) as refused:
        summarise(parts, CARD, generated=False)
    assert (refused.value.where, refused.value.key) == ("train/part-00001.parquet", "patch_id")


def test_split_that_is_not_on_the_card_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as refused:
        write(tmp_path / "a", [patch(1, split="trian")])
    assert (refused.value.where, refused.value.key) == ("toy/1.png", "trian")
    assert "'train'" in (refused.value.fix or "")


def test_finished_dataset_is_not_overwritten(tmp_path: Path) -> None:
    first = write(tmp_path / "a", [patch(1)])
    with pytest.raises(DatasetError) as refused:
        write(tmp_path / "a", [patch(2)])
    assert (refused.value.where, refused.value.key) == (str(tmp_path / "a"), "--out")
    assert open_shards(tmp_path / "a").digest == first.digest


def test_dataset_of_another_schema_version_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", [patch(1)])
    path = tmp_path / "a/dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 99}))
    with pytest.raises(DatasetError) as refused:
        open_shards(tmp_path / "a")
    assert (refused.value.where, refused.value.key) == (str(tmp_path / "a"), "schema_version")
    assert "99" in refused.value.what
    assert str(SCHEMA_VERSION) in refused.value.what


def test_shard_of_another_schema_version_is_refused(tmp_path: Path) -> None:
    shards = write(tmp_path / "a", [patch(1)])
    path = tmp_path / "a/train/part-00000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({"his2lip.schema_version": "99"}), path)
    with pytest.raises(DatasetError) as refused:
        shards.row_groups("train")
    assert (refused.value.where, refused.value.key) == (str(path), "schema_version")
    assert "99" in refused.value.what


def test_parquet_file_without_a_column_of_shards_is_refused(tmp_path: Path) -> None:
    shards = write(tmp_path / "a", [patch(1)])
    path = tmp_path / "a/train/part-00000.parquet"
    pq.write_table(pq.read_table(path).drop_columns("label"), path)
    with pytest.raises(DatasetError) as refused:
        shards.row_groups("train")
    assert (refused.value.where, refused.value.key) == (str(path), "schema")


def test_shard_with_an_extension_type_is_refused(tmp_path: Path) -> None:
    shards = write(tmp_path / "a", [patch(1)])
    path = tmp_path / "a/train/part-00000.parquet"
    table = pq.read_table(path)
    evil = pa.field("label", pa.string(), metadata={"ARROW:extension:name": "evil.pickle"})
    at = table.column_names.index("label")
    pq.write_table(table.set_column(at, evil, table["label"]), path)
    with pytest.raises(DatasetError) as refused:
        shards.row_groups("train")
    assert (refused.value.where, refused.value.key) == (str(path), "label")


@pytest.mark.parametrize(("damage", "key"), [("missing", None), ("truncated", None), ("short", "parts")])
def test_damaged_shard_is_refused_with_its_path(tmp_path: Path, damage: str, key: str | None) -> None:
    shards = write(tmp_path / "a", [patch(i) for i in range(10)])
    path = tmp_path / "a/train/part-00000.parquet"
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:200])
    else:
        pq.write_table(pq.read_table(path).slice(0, 3), path)
    for _ in range(2):  # a second call checks the file again
        with pytest.raises(DatasetError) as refused:
            shards.row_groups("train")
        assert (refused.value.where, refused.value.key) == (str(path), key)


def test_damaged_page_is_refused_when_it_is_read(tmp_path: Path) -> None:
    shards = write(tmp_path / "a", [patch(i) for i in range(50)])
    path = tmp_path / "a/train/part-00000.parquet"
    column = pq.read_metadata(path).row_group(0).column(SCHEMA.names.index("patch_id"))
    data = bytearray(path.read_bytes())
    data[column.data_page_offset : column.data_page_offset + 40] = b"\xff" * 40
    path.write_bytes(data)
    (group,) = shards.row_groups("train")  # the footer is intact
    with pytest.raises(DatasetError) as refused:
        shards.read(group, ["patch_id"])
    assert refused.value.where == str(path)
    assert shards.read(group, ["label"]).num_rows == group.rows


def test_dataset_json_that_cannot_be_read_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "a/dataset.json").mkdir(parents=True)
    with pytest.raises(DatasetError) as refused:
        open_shards(tmp_path / "a")
    assert (refused.value.where, refused.value.key) == (str(tmp_path / "a"), "dataset.json")
    assert "directory" in refused.value.what


def test_unknown_split_and_column_are_refused_with_the_nearest(tmp_path: Path) -> None:
    shards = write(tmp_path / "a", [patch(1)])
    with pytest.raises(DatasetError) as refused:
        shards.row_groups("trian")
    assert (refused.value.where, refused.value.key) == (shards.uri, "trian")
    assert "'train'" in (refused.value.fix or "")
    with pytest.raises(DatasetError) as refused:
        shards.table("train", ["biomarkr"])
    assert refused.value.key == "biomarkr"
    assert "'biomarker'" in (refused.value.fix or "")


def test_a_row_group_that_is_read_in_parts_is_read_from_its_file_once(tmp_path: Path) -> None:
    shards = write(tmp_path / "a", [patch(i) for i in range(20)], row_group_bytes=2000)
    first, second, *_ = shards.row_groups("train")
    table = shards.read_once(first, ["patch_id", "image"])
    assert table.equals(shards.read(first, ["patch_id", "image"]))
    assert shards.read_once(first, ["patch_id", "image"]) is table
    assert shards.read_once(first, ["patch_id"]).column_names == ["patch_id"]
    assert shards.read_once(second, ["patch_id"]).equals(shards.read(second, ["patch_id"]))
    assert len(shards._kept) == 1, "one row group at a time is in memory"
