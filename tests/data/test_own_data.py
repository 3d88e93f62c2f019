"""Your own images, in folders of classes or from a table: read to the row, with a reason for each other."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from layouts import Cutter

from his2lip.data.cards.card import Card, load_card
from his2lip.data.prepare.dataset import PrepareReport, prepare
from his2lip.data.shards.reader import open_shards
from his2lip.errors import ConfigError, DatasetError

OWN: dict[str, Any] = {"name": "mine", "splits": {"test": {"role": "report"}}}


def rows(uri: Path) -> dict[str, dict]:
    shards = open_shards(uri)
    return {row["patch_id"]: row for split in shards.splits for row in shards.table(split).to_pylist()}


def adds_up(report: PrepareReport) -> bool:
    return report.read + len(report.quarantined) == report.found


def test_folder_of_ones_own_becomes_a_dataset(tmp_path: Path, real_ihc: np.ndarray) -> None:
    cut = Cutter(real_ihc)
    for split in ("train", "test"):
        for folder in ("lymphoid", "epithelium"):
            for case in "ab":
                cut.write(tmp_path / f"in/{split}/{folder}/case-{case}/1.jpg")
    card = Card.model_validate(
        {
            "name": "mine",
            "reader": "folder",
            "splits": {"train": {"role": "train"}, "test": {"role": "report"}},
            "options": {"biomarker": "Ki-67", "case_pattern": "case-(.)"},
        }
    )
    report = prepare(card, tmp_path / "in", tmp_path / "out")
    assert report.info.counts == {s: {"epithelium": 2, "lymphoid": 2} for s in ("train", "test")}
    row = rows(tmp_path / "out")["mine/train/lymphoid/case-b/1.jpg"]
    assert (row["case_id"], row["biomarker"], row["label"]) == ("b", "Ki67", "lymphoid")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_manifest_of_ones_own_becomes_a_dataset(tmp_path: Path, real_ihc: np.ndarray, kind: str) -> None:
    cut = Cutter(real_ihc)
    for name in ("a.png", "b/c.png", "d.png"):
        cut.write(tmp_path / "in" / name)
    table = pd.DataFrame(
        {
            "path": ["a.png", "b/c.png", "gone.png", "../x.png", "a.png", "d.png"],
            "split": ["train", "test", "train", "train", "train", "nowhere"],
            "tissue": ["tumour", "", "", "", "", ""],
            "mpp": ["0.5", "", "", "", "", ""],
            "label": ["x", "y", "", "", "", ""],
        }
    )
    if kind == "csv":
        table.to_csv(tmp_path / "in/m.csv", index=False)
    else:
        table.to_parquet(tmp_path / "in/m.parquet")
    card = Card.model_validate(
        {
            "name": "mine",
            "reader": "manifest",
            "splits": {"train": {"role": "train"}, "test": {"role": "report"}},
            "options": {"manifest": f"m.{kind}"},
        }
    )
    report = prepare(card, tmp_path / "in", tmp_path / "out")
    assert adds_up(report)
    assert (report.found, report.read) == (6, 2)
    row = rows(tmp_path / "out")["mine/a.png"]
    assert (row["tissue"], row["label"], row["split"]) == ("Tumor", "x", "train")
    assert row["mpp"] == pytest.approx(0.5)


def test_manifest_with_an_unknown_column_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text("path,biomarkr\na.png,CD3\n")
    card = Card.model_validate({"name": "mine", "reader": "manifest", "splits": {"test": {"role": "report"}}})
    with pytest.raises(DatasetError, match="did you mean 'biomarker'"):
        prepare(card, tmp_path, tmp_path / "out")


def test_manifest_row_with_too_many_cells_is_quarantined(tmp_path: Path, real_ihc: np.ndarray) -> None:
    cut = Cutter(real_ihc)
    for name in ("a.png", "b.png"):
        cut.write(tmp_path / "in" / name)
    (tmp_path / "in/manifest.csv").write_text("label,path\nx,a.png\ny,b.png,left,over\nz\n")
    report = prepare(Card.model_validate(OWN | {"reader": "manifest"}), tmp_path / "in", tmp_path / "out")
    assert adds_up(report)
    assert (report.found, report.read) == (3, 1)
    assert dict(report.quarantined)["b.png"] == "its row has more cells than the table has columns"


def test_first_row_of_a_manifest_may_have_too_many_cells_too(tmp_path: Path, real_ihc: np.ndarray) -> None:
    Cutter(real_ihc).write(tmp_path / "in/b.png")
    (tmp_path / "in/manifest.csv").write_text("path,label\na.png,x,over\nb.png,y\n")
    report = prepare(Card.model_validate(OWN | {"reader": "manifest"}), tmp_path / "in", tmp_path / "out")
    assert (report.found, report.read) == (2, 1)


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_manifest_as_a_spreadsheet_writes_it_is_read(
    tmp_path: Path, real_ihc: np.ndarray, delimiter: str
) -> None:
    Cutter(real_ihc).write(tmp_path / "in/a,b.png")
    (tmp_path / "in/manifest.csv").write_text(delimiter.join(["path", "case_id\na,b.png", "P1\n"]))
    report = prepare(Card.model_validate(OWN | {"reader": "manifest"}), tmp_path / "in", tmp_path / "out")
    assert report.read == 1
    assert rows(tmp_path / "out")["mine/a,b.png"]["case_id"] == "P1"


@pytest.mark.parametrize("mpp", ["nan", "inf", "-0.5", "0", "half"])
def test_manifest_row_whose_scale_is_no_scale_is_quarantined(
    tmp_path: Path, real_ihc: np.ndarray, mpp: str
) -> None:
    for name in ("a.png", "b.png"):
        Cutter(real_ihc).write(tmp_path / "in" / name)
    (tmp_path / "in/manifest.csv").write_text(f"path,mpp\na.png,{mpp}\nb.png,0.5\n")
    report = prepare(Card.model_validate(OWN | {"reader": "manifest"}), tmp_path / "in", tmp_path / "out")
    assert report.quarantined == [("a.png", f"'{mpp}' is not a number of microns a pixel")]


def test_the_commonest_reason_is_said_where_nothing_could_be_read(tmp_path: Path) -> None:
    for name in ("a/a.csv", "b.jpg", "c.jpg"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text("no image")
    with pytest.raises(DatasetError, match=r"none of 3 files could be read, such as b.jpg: not where"):
        prepare(Card.model_validate(OWN | {"reader": "folder"}), tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize(("pattern", "said"), [("case-(", "regular expression"), ("case", "one group")])
def test_case_pattern_that_finds_no_case_is_one_clear_error(
    tmp_path: Path, real_ihc: np.ndarray, pattern: str, said: str
) -> None:
    Cutter(real_ihc).write(tmp_path / "in/a/1.png")
    card = Card.model_validate(OWN | {"reader": "folder", "options": {"case_pattern": pattern}})
    with pytest.raises(ConfigError, match=said):
        prepare(card, tmp_path / "in", tmp_path / "out")


def test_folder_that_is_a_link_is_quarantined_not_lost(tmp_path: Path, real_ihc: np.ndarray) -> None:
    Cutter(real_ihc).write(tmp_path / "in/a/1.png")
    Cutter(real_ihc).write(tmp_path / "elsewhere/2.png")
    (tmp_path / "in/b").symlink_to(tmp_path / "elsewhere")
    report = prepare(Card.model_validate(OWN | {"reader": "folder"}), tmp_path / "in", tmp_path / "out")
    assert (report.found, report.read) == (2, 1)
    assert report.quarantined == [
        ("b", "a folder that is a link, or may not be listed: nothing in it is read")
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_folder_that_may_not_be_listed_is_quarantined_not_lost(tmp_path: Path, real_ihc: np.ndarray) -> None:
    for name in ("a", "b"):
        Cutter(real_ihc).write(tmp_path / "in" / name / "1.png")
    (tmp_path / "in/b").chmod(0)
    report = prepare(Card.model_validate(OWN | {"reader": "folder"}), tmp_path / "in", tmp_path / "out")
    (tmp_path / "in/b").chmod(0o700)
    assert [place for place, _ in report.quarantined] == ["b"]


LESIONS = load_card("benchmarks/datasets/own/anhir-lesions.yaml")
NAMES = [f"29-041-Izd2-w35-{stain}-les{i}" for stain in ("CD31-3", "proSPC-4", "He") for i in (1, 3)]


def test_anhir_is_tiled_and_split_by_lesion(tmp_path: Path, real_ihc: np.ndarray) -> None:
    for name in NAMES:
        path = tmp_path / f"in/lung-lesion_1/scale-25pc/{name}.jpg"
        Cutter(real_ihc, 480).write(path)
        Cutter(real_ihc, 96).write(tmp_path / f"in/lung-lesion_1/scale-5pc/{name}.jpg")
    report = prepare(LESIONS, tmp_path / "in", tmp_path / "out", view="tiles(size=96)")
    assert (report.found, report.read) == (4, 4)
    assert report.passed_over == {"an H&E twin": 2, "the same image at a smaller scale": 6}
    assert set(report.info.counts) == {"train", "test"}
    shards = open_shards(tmp_path / "out")
    regions = {split: set(shards.table(split)["region_id"].to_pylist()) for split in shards.splits}
    assert not regions["train"] & regions["test"]
    assert set(report.info.counts["test"]) == {"CD31", "proSPC"}
    row = next(iter(rows(tmp_path / "out").values()))
    assert row["patch_id"].endswith(f"#{row['x']}_{row['y']}")


def test_real_anhir_lesions_are_tiled_and_split_by_lesion(tmp_path: Path, shared: Path) -> None:
    root = shared / "real_ihc/anhir_cima_lung-lesion"
    report = prepare(LESIONS, root, tmp_path / "out", view="tiles(size=224)")
    assert (report.found, report.read, report.passed_over) == (4, 4, {"an H&E twin": 1})
    for split in ("train", "test"):
        assert min(report.info.counts[split][stain] for stain in ("CD31", "proSPC")) >= 8
    assert {row["case_id"] for row in rows(tmp_path / "out").values()} == {"29-041-Izd2-w35"}
