"""prepare loses nothing: each file is read, quarantined with its reason, or passed over; counts add up."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layouts import Cutter, bad_images, refusal

from his2lip.data.cards.card import Card, Carve, Grouping, Split, load_card
from his2lip.data.images.codec import decode, encode_png
from his2lip.data.prepare.dataset import PrepareReport, prepare
from his2lip.data.prepare.listing import carve
from his2lip.data.readers import Item, base, get_reader
from his2lip.data.shards.reader import open_shards
from his2lip.data.shards.writer import ShardWriter
from his2lip.errors import ConfigError, DatasetError
from his2lip.synthetic.layouts import write_layout

MIHIC = load_card("mihic")
FOLDERS = {"train": 12, "val": 4, "test": 6}


def mihic_tree(root: Path, pixels: np.ndarray) -> Path:
    """MIHIC's layout with its mixed case, its space, and stains that contain the separator."""
    cut = Cutter(pixels, 64)
    for split, n in FOLDERS.items():
        for folder, stain in (("Immune cells", "D2-40"), ("background", "cyclin-D1"), ("Tumor", "CD34")):
            for i in range(n):
                cut.write(
                    root / f"MIHIC_dataset/dataset/{split}/{folder}/{i // 4:04d}-{stain}-{i % 2}-{i}.png"
                )
    return root


def rows(uri: Path) -> dict[str, dict]:
    shards = open_shards(uri)
    return {row["patch_id"]: row for split in shards.splits for row in shards.table(split).to_pylist()}


def adds_up(report: PrepareReport) -> bool:
    return report.read + report.passed_over.total() + len(report.quarantined) == report.found


def test_mihic_is_read_to_the_row(tmp_path: Path, real_ihc: np.ndarray) -> None:
    report = prepare(MIHIC, mihic_tree(tmp_path / "in", real_ihc), tmp_path / "out")
    assert (report.found, report.read, report.quarantined) == (66, 66, [])
    assert report.info.counts["train"] == {"Background": 12, "Immune cells": 12, "Tumor": 12}
    row = rows(tmp_path / "out")["mihic/train/Immune cells/0001-D2-40-1-5.png"]
    expected = {"tissue": "Immune cells", "biomarker": "D2-40", "label": "Immune cells", "stain": "DAB"}
    expected |= {"case_id": "0001", "slide_id": "0001-D2-40", "region_id": "0001-D2-40-1"}
    expected |= {"split": "train", "width": 64, "height": 64, "score": None, "x": None}
    assert {name: row[name] for name in expected} == expected
    assert row["mpp"] == pytest.approx(0.2264)


def test_published_bytes_are_kept(tmp_path: Path, real_ihc: np.ndarray) -> None:
    prepare(MIHIC, mihic_tree(tmp_path / "in", real_ihc), tmp_path / "out")
    dataset = tmp_path / "in/MIHIC_dataset/dataset"
    for batch in open_shards(tmp_path / "out").iter_rows("val", ["patch_id", "image"]):
        for row in batch.to_pylist():
            assert row["image"] == (dataset / row["patch_id"].removeprefix("mihic/")).read_bytes()


def test_bad_files_are_quarantined_and_the_rest_is_read(tmp_path: Path, real_ihc: np.ndarray) -> None:
    root = mihic_tree(tmp_path / "in", real_ihc)
    tumor = root / "MIHIC_dataset/dataset/train/Tumor"
    keys = {"notes.txt": "extension", "0009-CD999-1-1.png": "CD999", "nonsense.png": "path"}
    for i, (name, data, key) in enumerate(bad_images(real_ihc[:64, :64])):
        file = f"0009-CD3-1-{i}{Path(name).suffix}"
        (tumor / file).write_bytes(data)
        keys[file] = key
    (tumor / "notes.txt").write_text("x")
    (tumor / "0009-CD999-1-1.png").write_bytes(encode_png(real_ihc[:64, :64]))
    (tumor / "nonsense.png").write_bytes(encode_png(real_ihc[:64, :64]))
    (root / "stray.png").write_bytes(encode_png(real_ihc[:64, :64]))
    (tumor / ".DS_Store").write_bytes(b"litter")
    with open(os.fsencode(tumor) + b"/0009-CD3-1-\xff.png", "wb") as odd:
        odd.write(b"x")
    report = prepare(MIHIC, root, tmp_path / "out")
    assert report.read == 66
    assert report.found == 66 + len(keys) + 2 + 1  # .DS_Store is passed over
    assert adds_up(report)
    reported = dict(report.quarantined)
    reader = get_reader(MIHIC, root)
    paths = {f"{tumor.relative_to(root)}/{file}": key for file, key in keys.items()} | {"stray.png": "path"}
    for path, key in paths.items():
        error = refusal(reader, path)
        assert (error.key, error.what) == (key, reported[path])
    assert report.info.quarantined == report.quarantined
    assert [reason for path, reason in report.quarantined if "udcff" in path] == ["the name is not UTF-8"]


def test_two_copies_of_a_dataset_are_read_once(tmp_path: Path, real_ihc: np.ndarray) -> None:
    mihic_tree(tmp_path / "in/a", real_ihc)
    mihic_tree(tmp_path / "in/b", real_ihc)
    report = prepare(MIHIC, tmp_path / "in", tmp_path / "out")
    assert (report.found, report.read) == (132, 66)
    assert {reason for _, reason in report.quarantined} == {"another file has the same patch id"}


def test_classes_are_mixed_in_each_row_group(tmp_path: Path, real_ihc: np.ndarray) -> None:
    prepare(MIHIC, mihic_tree(tmp_path / "in", real_ihc), tmp_path / "out", row_group_bytes=60_000)
    tissues = open_shards(tmp_path / "out").table("train")["tissue"].to_pylist()
    changes = sum(a != b for a, b in pairwise(tissues))
    assert changes > len(tissues) / 3


def test_limit_takes_a_share_of_every_class(tmp_path: Path, real_ihc: np.ndarray) -> None:
    report = prepare(MIHIC, mihic_tree(tmp_path / "in", real_ihc), tmp_path / "out", limit=30)
    assert report.read == 30
    assert len(report.info.counts["train"]) == 3


@pytest.mark.parametrize(
    ("name", "view"),
    [("bcdata", "tiles(size=128)"), ("pantumor", "squash"), ("acrobat", "squash(size=224)")],
)
def test_a_view_that_the_reader_does_not_make_is_refused_before_anything_is_unpacked_or_written(
    tmp_path: Path, real_ihc: np.ndarray, name: str, view: str
) -> None:
    root = tmp_path / "in"
    write_layout(name, root, lambda side, *_: np.tile(real_ihc, (3, 3, 1))[:side, :side], each=1)
    shutil.make_archive(str(tmp_path / "zips/x"), "zip", root)
    with pytest.raises(ConfigError) as refused:
        prepare(load_card(name), tmp_path / "zips", tmp_path / "out", view=view)
    assert (refused.value.where, refused.value.key) == (f"card {name}", "--view")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "zips"]


def test_a_view_of_tiles_is_made_of_slides(tmp_path: Path, real_ihc: np.ndarray) -> None:
    write_layout(
        "acrobat", tmp_path / "in", lambda side, *_: np.tile(real_ihc, (3, 3, 1))[:side, :side], each=1
    )
    report = prepare(load_card("acrobat"), tmp_path / "in", tmp_path / "out", view="tiles(size=336)")
    assert report.info.view == "tiles(size=336, tissue=0.25, codec=png)"
    assert {(row["width"], row["x"] % 336) for row in rows(tmp_path / "out").values()} == {(336, 0)}


@pytest.mark.usefixtures("ray_local")
def test_same_input_gives_the_same_dataset_on_ray(
    tmp_path: Path, real_ihc: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, seen = mihic_tree(tmp_path / "in", real_ihc), []
    on_ray = prepare(MIHIC, root, tmp_path / "a", part_bytes=60_000, progress=lambda *at: seen.append(at))
    assert len(on_ray.info.parts) > 6
    assert seen[-1] == (66, 66)
    monkeypatch.setattr("his2lip.data.prepare.dataset.ray_runs", lambda: False)
    plain = prepare(MIHIC, root, tmp_path / "b", part_bytes=60_000)
    assert on_ray == plain
    assert rows(tmp_path / "a") == rows(tmp_path / "b")


def test_interrupted_prepare_resumes_where_it_stopped(
    tmp_path: Path, real_ihc: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out = mihic_tree(tmp_path / "in", real_ihc), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        prepare(MIHIC, root, out, part_bytes=60_000, progress=stop_after(40))
    with pytest.raises(DatasetError) as refused:
        open_shards(out)
    assert refused.value.where == str(out)
    assert not list(out.rglob("*.tmp"))
    read: list[str] = []
    decoded = decode
    monkeypatch.setattr(base, "decode", lambda data: read.append("x") or decoded(data))
    report = prepare(MIHIC, root, out, part_bytes=60_000)
    assert len(read) < 40
    assert report.read == 66
    assert report.info.digest == prepare(MIHIC, root, tmp_path / "whole", part_bytes=60_000).info.digest
    assert not (out / "_progress").exists()


def test_leftovers_of_another_prepare_are_not_used(tmp_path: Path, real_ihc: np.ndarray) -> None:
    root, out = mihic_tree(tmp_path / "in", real_ihc), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        prepare(MIHIC, root, out, part_bytes=60_000, progress=stop_after(40))
    report = prepare(MIHIC, root, out)
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.parquet")) == sorted(report.info.parts)


def test_two_datasets_are_not_mixed_in_one_place(tmp_path: Path, real_ihc: np.ndarray) -> None:
    root, out = mihic_tree(tmp_path / "in", real_ihc), tmp_path / "out"
    Cutter(real_ihc).write(tmp_path / "mine/a/1.png")
    refusals = []

    def meanwhile(done: int, total: int) -> None:
        with pytest.raises(DatasetError) as refusal:
            prepare(MIHIC, root, out)
        refusals.append(refusal.value.where)
        if done >= 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(MIHIC, root, out, part_bytes=60_000, progress=meanwhile)
    assert refusals == [out] * len(refusals)
    assert refusals
    with pytest.raises(DatasetError) as refused:
        prepare(MINE, tmp_path / "mine", out)
    assert (refused.value.where, refused.value.key) == (str(out), "--out")
    assert "mihic" in refused.value.what
    report = prepare(MIHIC, root, out, part_bytes=60_000)
    assert report.info.digest == prepare(MIHIC, root, tmp_path / "whole").info.digest
    assert {p.name for p in out.iterdir()} == {"dataset.json", "train", "val", "test"}


def interrupted(card: Card, root: Path, out: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        prepare(card, root, out, part_bytes=20_000, progress=stop_after(12))
    assert len(list(out.rglob("*.parquet"))) > 1


@pytest.mark.parametrize("harm", ["record", "shard"])
def test_a_damaged_part_of_an_interrupted_prepare_is_made_again(
    tmp_path: Path, real_ihc: np.ndarray, harm: str
) -> None:
    root, out = mihic_tree(tmp_path / "in", real_ihc), tmp_path / "out"
    interrupted(MIHIC, root, out)
    path = sorted((out / "_progress").glob("*part*.json"))[0]
    text = path.read_text()
    if harm == "record":
        path.write_text(text.replace('"rows": ', '"rows": 1', 1))
    else:
        (out / json.loads(text)["info"]["path"]).unlink()
    report = prepare(MIHIC, root, out, part_bytes=20_000)
    assert report.info == prepare(MIHIC, root, tmp_path / "whole", part_bytes=20_000).info
    assert len(open_shards(out).table("train")) == sum(report.info.counts["train"].values())


def test_a_manifest_that_is_corrected_after_an_interruption_is_read_again(
    tmp_path: Path, real_ihc: np.ndarray
) -> None:
    root, out, cut = tmp_path / "in", tmp_path / "out", Cutter(real_ihc)
    card = Card(name="mine", reader="manifest", splits={"train": Split(role="train")})
    names = [cut.write(root / f"{i}.png").name for i in range(20)]

    def write_labels(label: str) -> None:
        (root / "manifest.csv").write_text("path,label\n" + "".join(f"{name},{label}\n" for name in names))
        os.utime(root / "manifest.csv", ns=(0, 0))  # only the contents differ

    write_labels("neg")
    interrupted(card, root, out)
    write_labels("pos")
    assert prepare(card, root, out, part_bytes=20_000).info.counts == {"train": {"pos": 20}}


def test_a_picture_that_is_replaced_after_an_interruption_is_read_again(
    tmp_path: Path, real_ihc: np.ndarray
) -> None:
    root, out, cut = tmp_path / "in", tmp_path / "out", Cutter(real_ihc)
    card = Card(name="mine", reader="folder", splits={"train": Split(role="train")})
    paths = [cut.write(root / f"a/{i}.png") for i in range(20)]
    interrupted(card, root, out)
    for path in paths:
        cut.write(path)
    prepare(card, root, out, part_bytes=20_000)
    for batch in open_shards(out).iter_rows("train", ["patch_id", "image"]):
        for row in batch.to_pylist():
            assert row["image"] == (root / row["patch_id"].removeprefix("mine/")).read_bytes()


@pytest.mark.parametrize("name", ["bcdata", "pantumor"])
def test_annotations_that_are_corrected_after_an_interruption_are_read_again(
    tmp_path: Path, real_ihc: np.ndarray, name: str
) -> None:
    card, root, out = load_card(name), tmp_path / "in", tmp_path / "out"
    write_layout(name, root, lambda side, *_: np.tile(real_ihc, (3, 3, 1))[:side, :side], each=2)
    with pytest.raises(KeyboardInterrupt):
        prepare(card, root, out, part_bytes=1, progress=stop_after(1))
    for path in [*root.rglob("*.h5"), *root.rglob("*.json")]:
        if path.suffix == ".h5":
            import h5py

            with h5py.File(path, "r+") as file:
                file["coordinates"][0] = (60, 60)
        else:
            path.write_text(path.read_text().replace("[40, 60, 20, 20]", "[44, 66, 20, 20]"))
    assert (
        prepare(card, root, out, part_bytes=1).info.digest == prepare(card, root, tmp_path / "b").info.digest
    )


def test_own_data_in_an_archive_has_the_classes_and_splits_of_its_folders(
    tmp_path: Path, real_ihc: np.ndarray
) -> None:
    cut = Cutter(real_ihc)
    card = Card(name="mine", reader="folder", splits={s: Split(role="train") for s in ("train", "test")})
    for split in card.splits:
        for label in ("neg", "pos"):
            cut.write(tmp_path / f"in/{split}/{label}/1.png")
    shutil.make_archive(str(tmp_path / "zips/x"), "zip", tmp_path / "in")
    expected = prepare(card, tmp_path / "in", tmp_path / "plain").info
    shutil.make_archive(str(tmp_path / "one split/train"), "zip", tmp_path / "in/train")
    info = prepare(card, tmp_path / "one split/train.zip", tmp_path / "train").info
    assert info.counts == {"train": {"neg": 1, "pos": 1}}, "its name is that of a split"
    for i, root in enumerate((tmp_path / "zips/x.zip", tmp_path / "zips")):
        info = prepare(card, root, tmp_path / f"out{i}").info
        assert info.counts == expected.counts == {s: {"neg": 1, "pos": 1} for s in ("test", "train")}
        assert info.digest == expected.digest


def test_files_of_file_managers_are_counted_and_never_read_as_images(
    tmp_path: Path, real_ihc: np.ndarray
) -> None:
    cut = Cutter(real_ihc)
    cut.write(tmp_path / "in/a/1.png")
    litter = ("._1.png", ".thumbnails/1.png", "@eaDir/1.png/THUMB_M.png", "Thumbs.db.png", "__MACOSX/a/1.png")
    for name in litter:
        cut.write(tmp_path / "in/a" / name)
    (tmp_path / "in/a/Thumbs.db.png").rename(tmp_path / "in/a/Thumbs.db")
    (tmp_path / "in/.DS_Store").write_bytes(b"x")
    report = prepare(MINE, tmp_path / "in", tmp_path / "out")
    assert (report.found, report.read, report.quarantined) == (7, 1, [])
    assert list(report.passed_over.values()) == [6], "every other file under the root"
    assert report.info.counts == {"test": {"a": 1}}


def stop_after(files: int) -> Callable[[int, int], None]:
    def step(done: int, total: int) -> None:
        if done >= files:
            raise KeyboardInterrupt

    return step


def test_empty_folder_and_missing_folder_are_errors_that_name_the_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("in", "nowhere"):
        with pytest.raises(DatasetError) as refused:
            prepare(MIHIC, tmp_path / name, tmp_path / "out")
        assert refused.value.where == tmp_path / name
    assert not (tmp_path / "out/dataset.json").exists()


MINE = Card(name="mine", reader="folder", splits={"test": Split(role="report")})
GROUPS = st.sets(st.text(min_size=1, max_size=6), min_size=2, max_size=30)


def carved(case: str, *rules: Carve, split: str = "train") -> str:
    """The split of a file of that case."""
    return carve(split, lambda by: case, list(rules))


@given(GROUPS, st.floats(0.05, 0.95), st.integers(0, 5))
def test_carving_depends_on_the_group_and_the_rule_only(groups: set[str], fraction: float, seed: int) -> None:
    rule = Carve(source="train", into="select", fraction=fraction, by="case", seed=seed)
    split_of = {group: carved(group, rule) for group in groups}
    assert set(split_of.values()) <= {"train", "select"}
    assert {carved(group, rule, split="test") for group in groups} == {"test"}, (
        "other splits stay as they are"
    )
    larger = rule.model_copy(update={"fraction": 0.99 * fraction + 0.01})
    for group, split in split_of.items():
        assert split == "train" or carved(group, larger) == "select", "a larger share"


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_carving_moves_its_share_of_many_groups_and_each_rule_its_own(fraction: float) -> None:
    rules = [Carve(source="train", into=into, fraction=fraction, by="case") for into in ("select", "test")]
    splits = Counter(carved(f"P{i}", *rules) for i in range(4000))
    assert splits["select"] / 4000 == pytest.approx(fraction, abs=0.025)
    assert splits["test"] / (4000 - splits["select"]) == pytest.approx(fraction, abs=0.035)


def test_each_rule_moves_groups_of_its_own_kind() -> None:
    """A later rule of the same source that moves files leaves the cases of the earlier one whole."""
    case = Carve(source="train", into="test", fraction=0.4, by="case")
    file = Carve(source="train", into="select", fraction=0.3, by="file")
    items = [
        Item(key=f"{i}", name=f"P{i % 30}_{i}.png", split="train", case_id=f"P{i % 30}") for i in range(300)
    ]
    splits = {item.name: carve("train", item.group, [case, file]) for item in items}
    in_test = {item.case_id for item in items if splits[item.name] == "test"}
    assert {splits[item.name] for item in items if item.case_id in in_test} == {"test"}
    assert {splits[item.name] for item in items} == {"train", "select", "test"}


@pytest.mark.parametrize("by", ["slide", "region"])
def test_a_file_whose_group_is_unknown_is_not_carved_by_it(
    tmp_path: Path, real_ihc: np.ndarray, by: Grouping
) -> None:
    """As a group of its own, it could bring one slide into two splits."""
    card = Card(
        name="mine",
        reader="manifest",
        splits={"train": Split(role="train"), "test": Split(role="report")},
        carve=[Carve(source="train", into="test", fraction=0.5, by=by)],
    )
    for name in ("a", "b", "c"):
        Cutter(real_ihc).write(tmp_path / f"in/{name}.png")
    table = f"path,{by}_id,split\na.png,S1,train\nb.png,,train\nc.png,,test\n"
    (tmp_path / "in/manifest.csv").write_text(table)
    report = prepare(card, tmp_path / "in", tmp_path / "out")
    assert report.quarantined == [
        ("b.png", f"its {by} is unknown, and the card carves its split by {by}"),
    ]


def test_another_patient_moves_no_patient_to_another_split(tmp_path: Path, real_ihc: np.ndarray) -> None:
    card = Card(
        name="mine",
        reader="folder",
        splits={"train": Split(role="train"), "test": Split(role="report")},
        carve=[Carve(source="train", into="test", fraction=0.5, by="case")],
        options={"case_pattern": "(P[0-9]+)"},
    )
    cut, splits = Cutter(real_ihc), []
    for patients in (6, 9):
        for i in range(patients):
            cut.write(tmp_path / f"in/a/P{i}.png")
        prepare(card, tmp_path / "in", tmp_path / f"out{patients}")
        splits.append({row["case_id"]: row["split"] for row in rows(tmp_path / f"out{patients}").values()})
    before, after = splits
    assert len(set(before.values())) == 2
    assert {case: after[case] for case in before} == before


def test_peak_memory_does_not_grow_with_the_dataset(tmp_path: Path, real_ihc: np.ndarray) -> None:
    import tracemalloc

    def peak(n: int) -> int:
        root = tmp_path / f"in{n}/Tumor"
        root.mkdir(parents=True)
        data = encode_png(real_ihc[:96, :96])
        for i in range(n):
            (root / f"{i}.png").write_bytes(data)
        tracemalloc.start()
        prepare(MINE, root.parent, tmp_path / f"out{n}", row_group_bytes=1 << 20)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(10)
    small, large = peak(100), peak(600)
    assert large < small + (1 << 20)


@pytest.mark.parametrize("place", ["/proc/none/x", "file.txt", "file.txt/x"])
def test_place_that_cannot_be_written_is_an_error_that_names_it(
    tmp_path: Path, real_ihc: np.ndarray, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").write_text("x")
    Cutter(real_ihc).write(tmp_path / "in/a/1.png")
    for write in (lambda: prepare(MINE, tmp_path / "in", place), lambda: ShardWriter(place, card=MINE)):
        with pytest.raises(DatasetError) as refused:
            write()
        assert refused.value.where == place


def test_disk_that_fills_up_stops_a_prepare_and_quarantines_nothing(
    tmp_path: Path, real_ihc: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out = mihic_tree(tmp_path / "in", real_ihc), tmp_path / "out"

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("his2lip.data.shards.writer.PartWriter._flush", full)
        with pytest.raises(DatasetError) as refused:
            prepare(MIHIC, root, out, row_group_bytes=20_000)
        assert (refused.value.where, refused.value.key) == (str(out), "--out")
        assert os.strerror(errno.ENOSPC) in refused.value.what
    assert not list(out.rglob("*.parquet*"))
    assert prepare(MIHIC, root, out, row_group_bytes=20_000).read == 66


@pytest.mark.usefixtures("ray_local")
def test_node_that_does_not_see_the_files_is_an_error(tmp_path: Path, real_ihc: np.ndarray) -> None:
    root = mihic_tree(tmp_path / "in", real_ihc)

    def gone(done: int, total: int) -> None:
        if not done:
            root.rename(tmp_path / "elsewhere")

    with pytest.raises(DatasetError) as refused:
        prepare(MIHIC, root, tmp_path / "out", progress=gone)
    assert refused.value.where == root
