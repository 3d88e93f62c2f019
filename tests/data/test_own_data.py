"""Your own images, in folders of classes or from a table: read to the row, with a reason for each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from layouts import Cutter

from his2lip.data.cards import Card
from his2lip.data.prepare import PrepareReport, prepare
from his2lip.data.shards import open_shards
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
