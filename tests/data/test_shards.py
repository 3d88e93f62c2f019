"""Shards: written whole or not at all, the same content has the same digest, foreign files are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from his2lip.data.cards.card import Card, Split
from his2lip.data.images.codec import encode_png
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


def test_digest_ignores_order_and_layout_and_sees_every_change(tmp_path: Path) -> None:
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


def test_row_groups_are_bounded_by_bytes_and_number_all_rows(tmp_path: Path) -> None:
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


def test_any_fsspec_address_holds_shards() -> None:
    shards = write("memory://shards-test/toy", [patch(i) for i in range(10)])
    assert shards.table("train").num_rows == 8


def test_interrupted_writing_leaves_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no split"):
        write(tmp_path / "a", [patch(1), patch(2, split="nowhere")])
    with pytest.raises(DatasetError, match="no prepared dataset"):
        open_shards(tmp_path / "a")
    assert not list((tmp_path / "a").rglob("*.tmp"))


def test_duplicate_patch_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="twice"):
        write(tmp_path / "a", [patch(1), patch(1)])


def test_split_that_the_card_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="did you mean 'train'"):
        write(tmp_path / "a", [patch(1, split="trian")])


def test_finished_dataset_is_not_written_over(tmp_path: Path) -> None:
    write(tmp_path / "a", [patch(1)])
    with pytest.raises(DatasetError, match="stands here already"):
        write(tmp_path / "a", [patch(2)])


def test_dataset_of_another_schema_version_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", [patch(1)])
    path = tmp_path / "a/dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 99}))
    with pytest.raises(DatasetError, match="schema version 99, this his2lip reads 1"):
        open_shards(tmp_path / "a")


def rewrite(path: Path, table: pa.Table) -> None:
    pq.write_table(table, path)


def test_shard_of_another_schema_version_is_refused(tmp_path: Path) -> None:
    shards = write(tmp_path / "a", [patch(1)])
    path = tmp_path / "a/train/part-00000.parquet"
    table = pq.read_table(path)
    rewrite(path, table.replace_schema_metadata({"his2lip.schema_version": "99"}))
    with pytest.raises(DatasetError, match="schema version 99"):
        shards.row_groups("train")


def test_shard_with_an_extension_type_is_refused(tmp_path: Path) -> None:
    shards = write(tmp_path / "a", [patch(1)])
    path = tmp_path / "a/train/part-00000.parquet"
    table = pq.read_table(path)
    evil = pa.field("label", pa.string(), metadata={"ARROW:extension:name": "evil.pickle"})
    at = table.column_names.index("label")
    rewrite(path, table.set_column(at, evil, table["label"]))
    with pytest.raises(DatasetError, match="extension type"):
        shards.row_groups("train")


@pytest.mark.parametrize("harm", ["missing", "truncated", "short"])
def test_harmed_shard_is_refused_with_its_path(tmp_path: Path, harm: str) -> None:
    shards = write(tmp_path / "a", [patch(i) for i in range(10)])
    path = tmp_path / "a/train/part-00000.parquet"
    if harm == "missing":
        path.unlink()
    elif harm == "truncated":
        path.write_bytes(path.read_bytes()[:200])
    else:
        rewrite(path, pq.read_table(path).slice(0, 3))
    for _ in range(2):  # what was refused once is not kept for the next call
        with pytest.raises(DatasetError, match="part-00000"):
            shards.row_groups("train")


def test_harmed_page_of_a_shard_is_one_clear_error(tmp_path: Path) -> None:
    shards = write(tmp_path / "a", [patch(i) for i in range(50)])
    path = tmp_path / "a/train/part-00000.parquet"
    column = pq.read_metadata(path).row_group(0).column(SCHEMA.names.index("patch_id"))
    data = bytearray(path.read_bytes())
    data[column.data_page_offset : column.data_page_offset + 40] = b"\xff" * 40
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=r"cannot be read.*part-00000"):
        shards.table("train", ["patch_id"])


def test_dataset_that_may_not_be_read_is_not_called_missing(tmp_path: Path) -> None:
    (tmp_path / "a/dataset.json").mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"dataset\.json cannot be read"):
        open_shards(tmp_path / "a")


def test_unknown_split_and_column_name_the_nearest(tmp_path: Path) -> None:
    shards = write(tmp_path / "a", [patch(1)])
    with pytest.raises(DatasetError, match="did you mean 'train'"):
        shards.row_groups("trian")
    with pytest.raises(DatasetError, match="did you mean 'biomarker'"):
        shards.table("train", ["biomarkr"])
