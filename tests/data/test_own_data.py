"""A user's own images, in folders of classes or from a table: each is read, or reported with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from layouts import Cutter, refusal
from unprivileged import needs_setpriv, run_as_user

from his2lip.data.cards.card import Card, load_card
from his2lip.data.prepare.dataset import PrepareReport, prepare
from his2lip.data.readers import get_reader
from his2lip.data.shards.reader import open_shards
from his2lip.errors import ConfigError, DatasetError

OWN: dict[str, Any] = {"name": "mine", "splits": {"test": {"role": "report"}}}

# How programs write a missing value.
MISSING = ("NA", "N/A", "n/a", "None", "null", "NULL", "<NA>", "nan", "")


def rows(uri: Path) -> dict[str, dict]:
    shards = open_shards(uri)
    return {row["patch_id"]: row for split in shards.splits for row in shards.table(split).to_pylist()}


def adds_up(report: PrepareReport) -> bool:
    return report.read + report.passed_over.total() + len(report.quarantined) == report.found


def test_folders_of_classes_become_a_dataset(tmp_path: Path, real_ihc: np.ndarray) -> None:
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
def test_a_manifest_becomes_a_dataset(tmp_path: Path, real_ihc: np.ndarray, kind: str) -> None:
    cut = Cutter(real_ihc)
    for name in ("a.png", "b/c.png", "d.png"):
        cut.write(tmp_path / "in" / name)
    table = pd.DataFrame(
        {
            "path": ["a.png", "b/c.png", "gone.png", "../x.png", "a.png", "d.png"],
            "split": ["train", "test", "train", "train", "train", "nowhere"],
            "tissue": ["tumour", "", "", "", "tumour", ""],
            "mpp": ["0.5", "", "", "", "0.5", ""],
            "label": ["x", "y", "", "", "x", ""],
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
    assert (report.found, report.read) == (5 + 1, 2)  # paths that rows name, and the manifest
    row = rows(tmp_path / "out")["mine/a.png"]
    assert (row["tissue"], row["label"], row["split"]) == ("Tumor", "x", "train")
    assert row["mpp"] == pytest.approx(0.5)


def test_manifest_with_an_unknown_column_is_refused_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text("path,biomarkr\na.png,CD3\n")
    card = Card.model_validate({"name": "mine", "reader": "manifest", "splits": {"test": {"role": "report"}}})
    with pytest.raises(DatasetError) as refused:
        prepare(card, tmp_path, tmp_path / "out")
    assert refused.value.key == "biomarkr"
    assert "'biomarker'" in (refused.value.fix or "")


def test_manifest_row_with_too_many_values_is_quarantined(tmp_path: Path, real_ihc: np.ndarray) -> None:
    cut = Cutter(real_ihc)
    for name in ("a.png", "b.png"):
        cut.write(tmp_path / "in" / name)
    (tmp_path / "in/manifest.csv").write_text("label,path\nx,a.png\ny,b.png,left,over\nz\n")
    report = prepare(Card.model_validate(OWN | {"reader": "manifest"}), tmp_path / "in", tmp_path / "out")
    assert adds_up(report)
    assert (report.found, report.read, len(report.quarantined)) == (3 + 1, 1, 2)
    error = refusal(get_reader(Card.model_validate(OWN | {"reader": "manifest"}), tmp_path / "in"), "b.png")
    assert error.key == "columns"
    assert dict(report.quarantined)["b.png"] == error.what


def test_first_row_of_a_manifest_may_have_too_many_values_too(tmp_path: Path, real_ihc: np.ndarray) -> None:
    Cutter(real_ihc).write(tmp_path / "in/b.png")
    (tmp_path / "in/manifest.csv").write_text("path,label\na.png,x,over\nb.png,y\n")
    report = prepare(Card.model_validate(OWN | {"reader": "manifest"}), tmp_path / "in", tmp_path / "out")
    assert (report.found, report.read, len(report.quarantined)) == (2 + 1, 1, 1)


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_manifest_as_a_spreadsheet_writes_it_is_read(
    tmp_path: Path, real_ihc: np.ndarray, delimiter: str
) -> None:
    Cutter(real_ihc).write(tmp_path / "in/a,b.png")
    (tmp_path / "in/manifest.csv").write_text(delimiter.join(["path", "case_id\na,b.png", "P1\n"]))
    report = prepare(Card.model_validate(OWN | {"reader": "manifest"}), tmp_path / "in", tmp_path / "out")
    assert report.read == 1
    assert rows(tmp_path / "out")["mine/a,b.png"]["case_id"] == "P1"


@pytest.mark.parametrize("mpp", ["inf", "-0.5", "0", "half", "0.04", "352.8", "1.234,5"])
def test_manifest_row_with_impossible_microns_per_pixel_is_quarantined(
    tmp_path: Path, real_ihc: np.ndarray, mpp: str
) -> None:
    for name in ("a.png", "b.png"):
        Cutter(real_ihc).write(tmp_path / "in" / name)
    (tmp_path / "in/manifest.csv").write_text(f"path;mpp\na.png;{mpp}\nb.png;0.5\n")
    report = prepare(Card.model_validate(OWN | {"reader": "manifest"}), tmp_path / "in", tmp_path / "out")
    ((place, reason),) = report.quarantined
    assert place == "a.png"
    assert f"'{mpp}'" in reason


def manifest(root: Path, text: str, pixels: np.ndarray, *names: str) -> None:
    for name in names:
        Cutter(pixels).write(root / name)
    (root / "manifest.csv").write_text(text)


@pytest.mark.parametrize(
    "text",
    [
        "path;mpp\na.png;0,25\n",
        'path,mpp\na.png,"0,25"\n',
        "path\tmpp\na.png\t0,25\n",
        "path;slide_id;mpp\na.png;1.5;0,25\n",
    ],
)
def test_decimal_commas_of_a_manifest_are_read(tmp_path: Path, real_ihc: np.ndarray, text: str) -> None:
    manifest(tmp_path / "in", text, real_ihc, "a.png")
    prepare(Card.model_validate(OWN | {"reader": "manifest"}), tmp_path / "in", tmp_path / "out")
    assert rows(tmp_path / "out")["mine/a.png"]["mpp"] == pytest.approx(0.25)


def test_the_stain_of_a_manifest_is_known_in_any_case(tmp_path: Path, real_ihc: np.ndarray) -> None:
    """Measuring and the gates compare it with `LOOKS`; another stain stays as it is, for the check."""
    text = "path,stain\na.png,dab\nb.png,h&e\nc.png,\nd.png,Fast Red\n"
    manifest(tmp_path / "in", text, real_ihc, "a.png", "b.png", "c.png", "d.png")
    card = Card.model_validate(OWN | {"reader": "manifest", "stain": "AEC"})
    prepare(card, tmp_path / "in", tmp_path / "out")
    stains = {name: row["stain"] for name, row in rows(tmp_path / "out").items()}
    assert stains == {
        "mine/a.png": "DAB",
        "mine/b.png": "H&E",
        "mine/c.png": "AEC",
        "mine/d.png": "Fast Red",
    }


def test_white_space_case_and_nan_of_a_manifest_make_no_new_values(
    tmp_path: Path, real_ihc: np.ndarray
) -> None:
    text = " Path ,SPLIT,case_id,label\na.png, TEST ,C1,pos\n ./b.png,test,C1 , pos \nc.png,Test,NaN,nan\n"
    manifest(tmp_path / "in", text, real_ihc, "a.png", "b.png", "c.png")
    report = prepare(Card.model_validate(OWN | {"reader": "manifest"}), tmp_path / "in", tmp_path / "out")
    assert report.info.counts == {"test": {"pos": 2, "(none)": 1}}
    cases = [row["case_id"] for row in rows(tmp_path / "out").values()]
    assert sorted(cases, key=str) == ["C1", "C1", None]


@pytest.mark.parametrize(
    ("column", "first", "second"),
    [("case_id", "C1", "c1"), ("label", "pos", "Pos"), ("label", "caf\u00e9", "CAFE\u0301")],
)
def test_one_name_in_two_spellings_is_an_error(
    tmp_path: Path, real_ihc: np.ndarray, column: str, first: str, second: str
) -> None:
    manifest(tmp_path / "in", f"path,{column}\na.png,{first}\nb.png,{second}\n", real_ihc, "a.png", "b.png")
    with pytest.raises(DatasetError) as refused:
        prepare(Card.model_validate(OWN | {"reader": "manifest"}), tmp_path / "in", tmp_path / "out")
    assert (refused.value.key, refused.value.where) == (column, tmp_path / "in/manifest.csv")


@pytest.mark.parametrize("missing", MISSING)
def test_a_missing_value_of_a_manifest_is_no_name_however_it_is_written(
    tmp_path: Path, real_ihc: np.ndarray, missing: str
) -> None:
    text = f"path,case_id,tissue,label,mpp\na.png,{missing},{missing},{missing},{missing}\nb.png,C1,,x,\n"
    manifest(tmp_path / "in", text, real_ihc, "a.png", "b.png")
    card = Card.model_validate(OWN | {"reader": "manifest"})
    report = prepare(card, tmp_path / "in", tmp_path / "out")
    assert report.quarantined == []
    row = rows(tmp_path / "out")["mine/a.png"]
    assert [row[name] for name in ("case_id", "tissue", "label", "mpp")] == [None] * 4


def test_a_class_of_the_card_is_a_label_even_if_it_is_written_like_a_missing_value(
    tmp_path: Path, real_ihc: np.ndarray
) -> None:
    text = "path,label,case_id\na.png,None,none\nb.png,NA,P1\n"
    manifest(tmp_path / "in", text, real_ihc, "a.png", "b.png")
    card = Card.model_validate(OWN | {"reader": "manifest", "classes": {"none": [], "some": []}})
    prepare(card, tmp_path / "in", tmp_path / "out")
    labels = {name: (row["label"], row["case_id"]) for name, row in rows(tmp_path / "out").items()}
    assert labels == {"mine/a.png": ("none", None), "mine/b.png": (None, "P1")}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_manifest_with_a_column_twice_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    names = ["path", "Case_ID", "case_id"]
    if kind == "csv":
        (tmp_path / "m.csv").write_text(",".join(names) + "\na.png,P1,P2\n")
    else:
        pd.DataFrame([["a.png", "P1", "P2"]], columns=names).to_parquet(tmp_path / "m.parquet")
    card = Card.model_validate(OWN | {"reader": "manifest", "options": {"manifest": f"m.{kind}"}})
    with pytest.raises(DatasetError) as refused:
        prepare(card, tmp_path, tmp_path / "out")
    assert (refused.value.where, refused.value.key) == (tmp_path / f"m.{kind}", "case_id")
    assert "twice" in refused.value.what


def test_one_path_with_two_labels_is_quarantined_and_equal_rows_count_once(
    tmp_path: Path, real_ihc: np.ndarray
) -> None:
    text = "path,label\na.png,x\n./a.png,y\nb.png,x\nb.png,x\n"
    manifest(tmp_path / "in", text, real_ihc, "a.png", "b.png")
    report = prepare(Card.model_validate(OWN | {"reader": "manifest"}), tmp_path / "in", tmp_path / "out")
    error = refusal(get_reader(Card.model_validate(OWN | {"reader": "manifest"}), tmp_path / "in"), "a.png")
    assert error.key == "row"
    assert report.quarantined == [("a.png", error.what)]
    assert list(rows(tmp_path / "out")) == ["mine/b.png"]
    assert adds_up(report)


def test_rows_that_name_no_file_or_a_folder_are_quarantined_by_what_they_are(
    tmp_path: Path, real_ihc: np.ndarray
) -> None:
    manifest(tmp_path / "in", "path,label\na/1.png,x\n,x\na,x\n", real_ihc, "a/1.png")
    report = prepare(Card.model_validate(OWN | {"reader": "manifest"}), tmp_path / "in", tmp_path / "out")
    assert report.quarantined == [
        ("a", "a folder, a link to one, or one that may not be listed: nothing in it is read"),
        ("manifest.csv (row 3)", "the row names no file"),
    ]


def test_a_file_is_found_in_either_unicode_form_of_its_name(tmp_path: Path, real_ihc: np.ndarray) -> None:
    composed, decomposed = "caf\u00e9.png", "cafe\u0301.png"
    manifest(tmp_path / "in", f"path\n{composed}\n", real_ihc, decomposed)
    report = prepare(Card.model_validate(OWN | {"reader": "manifest"}), tmp_path / "in", tmp_path / "out")
    assert report.read == 1
    assert list(rows(tmp_path / "out")) == [f"mine/{composed}"]


def test_a_split_s_folder_is_known_in_any_case_and_two_spellings_are_an_error(
    tmp_path: Path, real_ihc: np.ndarray
) -> None:
    Cutter(real_ihc).write(tmp_path / "in/TEST/pos/1.png")
    card = Card.model_validate(OWN | {"reader": "folder"})
    report = prepare(card, tmp_path / "in", tmp_path / "out")
    assert report.info.counts == {"test": {"pos": 1}}
    for extra, key in (("Test/pos/2.png", "split"), ("TEST/Pos/2.png", "label")):
        Cutter(real_ihc).write(tmp_path / "in" / extra)
        with pytest.raises(DatasetError) as refused:
            prepare(card, tmp_path / "in", tmp_path / "out2")
        assert refused.value.key == key
        (tmp_path / "in" / extra).unlink()


BY_CASE: dict[str, Any] = {
    "name": "mine",
    "reader": "folder",
    "splits": {"train": {"role": "train"}, "test": {"role": "report"}},
    "carve": [{"source": "train", "into": "test", "fraction": 0.5, "by": "case"}],
}


def test_a_case_pattern_that_misses_paths_is_an_error_where_cases_are_kept_whole(
    tmp_path: Path, real_ihc: np.ndarray
) -> None:
    for name in ("P1_a", "P2_a", "p1_b", "p2_b"):
        Cutter(real_ihc).write(tmp_path / f"in/pos/{name}.png")
    options = {"case_pattern": "/(P\\d)_"}
    with pytest.raises(DatasetError) as refused:
        prepare(Card.model_validate(BY_CASE | {"options": options}), tmp_path / "in", tmp_path / "out")
    assert refused.value.key == "options.case_pattern"
    assert "2 of 4" in refused.value.what
    by_file = BY_CASE | {"carve": [BY_CASE["carve"][0] | {"by": "file"}], "options": options}
    report = prepare(Card.model_validate(by_file), tmp_path / "in", tmp_path / "out")
    assert [place for place, _ in report.left_out] == ["pos/p1_b.png", "pos/p2_b.png"]


def test_a_folder_without_a_case_pattern_is_not_carved_by_case(tmp_path: Path, real_ihc: np.ndarray) -> None:
    for name in ("P1_a", "P1_b", "P2_a"):
        Cutter(real_ihc).write(tmp_path / f"in/pos/{name}.png")
    with pytest.raises(DatasetError) as refused:
        prepare(Card.model_validate(BY_CASE), tmp_path / "in", tmp_path / "out")
    assert refused.value.key == "options.case_pattern"


def test_one_case_in_two_spellings_in_the_names_of_images_is_an_error(
    tmp_path: Path, real_ihc: np.ndarray
) -> None:
    for name in ("P01_1", "p01_2", "P02_1"):
        Cutter(real_ihc).write(tmp_path / f"in/pos/{name}.png")
    card = Card.model_validate(BY_CASE | {"options": {"case_pattern": "(?i)(p[0-9]+)_"}})
    with pytest.raises(DatasetError) as refused:
        prepare(card, tmp_path / "in", tmp_path / "out")
    assert (refused.value.where, refused.value.key) == (tmp_path / "in", "case_id")
    assert "'P01' and 'p01'" in refused.value.what


def test_a_case_pattern_whose_group_is_empty_misses_the_path(tmp_path: Path, real_ihc: np.ndarray) -> None:
    for name in ("P1_a", "_b", "_c"):
        Cutter(real_ihc).write(tmp_path / f"in/pos/{name}.png")
    card = Card.model_validate(BY_CASE | {"options": {"case_pattern": "/(P?[0-9]*)_"}})
    with pytest.raises(DatasetError) as refused:
        prepare(card, tmp_path / "in", tmp_path / "out")
    assert refused.value.key == "options.case_pattern"
    assert "2 of 3" in refused.value.what


@pytest.mark.parametrize(
    "text",
    ["path,label\na.png,x\nb.png,x\n", *(f"path,case_id\na.png,P1\nb.png,{m}\n" for m in MISSING)],
)
def test_rows_without_a_case_are_an_error_where_cases_are_kept_whole(
    tmp_path: Path, real_ihc: np.ndarray, text: str
) -> None:
    manifest(tmp_path / "in", text, real_ihc, "a.png", "b.png")
    with pytest.raises(DatasetError) as refused:
        prepare(Card.model_validate(BY_CASE | {"reader": "manifest"}), tmp_path / "in", tmp_path / "out")
    assert refused.value.key == "case_id"


def test_every_file_is_read_passed_over_by_a_rule_or_quarantined(
    tmp_path: Path, real_ihc: np.ndarray
) -> None:
    root = tmp_path / "in"
    for name in ("pos/1.png", "pos/._1.png", "@eaDir/1.png/SYNOPHOTO_THUMB_XL.jpg", ".thumbnails/1.png"):
        Cutter(real_ihc).write(root / name)
    for name in ("pos/Thumbs.db", "__MACOSX/pos/1.png", "pos/notes.txt", ".DS_Store"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    report = prepare(Card.model_validate(OWN | {"reader": "folder"}), root, tmp_path / "out")
    assert (report.found, report.read) == (8, 1)
    assert report.passed_over == {"a hidden file, or one of a file manager, server or archiver": 6}
    assert [place for place, _ in report.quarantined] == ["pos/notes.txt"]


def test_an_error_has_the_most_common_reason_where_no_file_could_be_read(tmp_path: Path) -> None:
    for name in ("a/a.csv", "b.jpg", "c.jpg"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text("no image")
    card = Card.model_validate(OWN | {"reader": "folder"})
    with pytest.raises(DatasetError) as refused:
        prepare(card, tmp_path / "in", tmp_path / "out")
    assert (refused.value.where, refused.value.key) == (tmp_path / "in", "--root")
    reason = refusal(get_reader(card, tmp_path / "in"), "b.jpg")
    assert reason.key == "path"
    assert refused.value.what.endswith(f"b.jpg: {reason.what}")
    assert " 3 files" in refused.value.what


@pytest.mark.parametrize("pattern", ["case-(", "case", "(c)(a)se"])
def test_case_pattern_that_is_not_a_regular_expression_with_one_group_is_refused(
    tmp_path: Path, real_ihc: np.ndarray, pattern: str
) -> None:
    Cutter(real_ihc).write(tmp_path / "in/a/1.png")
    card = Card.model_validate(OWN | {"reader": "folder", "options": {"case_pattern": pattern}})
    with pytest.raises(ConfigError) as refused:
        prepare(card, tmp_path / "in", tmp_path / "out")
    assert refused.value.key == "case_pattern"
    assert "card mine" in str(refused.value.where)


def test_folder_that_is_a_link_is_quarantined(tmp_path: Path, real_ihc: np.ndarray) -> None:
    Cutter(real_ihc).write(tmp_path / "in/a/1.png")
    Cutter(real_ihc).write(tmp_path / "elsewhere/2.png")
    (tmp_path / "in/b").symlink_to(tmp_path / "elsewhere")
    report = prepare(Card.model_validate(OWN | {"reader": "folder"}), tmp_path / "in", tmp_path / "out")
    assert (report.found, report.read) == (2, 1)
    assert report.quarantined == [
        ("b", "a folder, a link to one, or one that may not be listed: nothing in it is read")
    ]


_PREPARE = """
import json, sys
from his2lip.data.cards import Card
from his2lip.data.prepare import prepare

card, root, out = sys.argv[1:]
print(json.dumps(prepare(Card.model_validate_json(card), root, out).quarantined))
"""


@needs_setpriv
def test_folder_that_cannot_be_listed_is_quarantined(tmp_path: Path, real_ihc: np.ndarray) -> None:
    for name in ("a", "b"):
        Cutter(real_ihc).write(tmp_path / "in" / name / "1.png")
    (tmp_path / "in/b").chmod(0)
    done = run_as_user(_PREPARE, json.dumps(OWN | {"reader": "folder"}), "in", "out", cwd=tmp_path)
    (tmp_path / "in/b").chmod(0o700)
    assert done.returncode == 0, done.stderr
    assert [place for place, _ in json.loads(done.stdout)] == ["b"]


LESIONS = load_card("benchmarks/datasets/own/anhir-lesions.yaml")
NAMES = [f"29-041-Izd2-w35-{stain}-les{i}" for stain in ("CD31-3", "proSPC-4", "He") for i in (1, 3)]


def test_anhir_is_tiled_and_split_by_lesion(tmp_path: Path, real_ihc: np.ndarray) -> None:
    for name in NAMES:
        path = tmp_path / f"in/lung-lesion_1/scale-25pc/{name}.jpg"
        Cutter(real_ihc, 480).write(path)
        Cutter(real_ihc, 96).write(tmp_path / f"in/lung-lesion_1/scale-5pc/{name}.jpg")
    report = prepare(LESIONS, tmp_path / "in", tmp_path / "out", view="tiles(size=96)")
    assert (report.found, report.read) == (12, 4)
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
    assert (report.found, report.read, report.passed_over) == (5, 4, {"an H&E twin": 1})
    for split in ("train", "test"):
        assert min(report.info.counts[split][stain] for stain in ("CD31", "proSPC")) >= 8
    assert {row["case_id"] for row in rows(tmp_path / "out").values()} == {"29-041-Izd2-w35"}
