"""Each published layout is read with the right labels, and its faults are quarantined."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from layouts import refusal

from his2lip.data.cards.card import list_cards, load_card
from his2lip.data.images.codec import decode, encode_jpeg, encode_png
from his2lip.data.images.slides import PlainSlide, around, open_slide
from his2lip.data.images.tiling import cut_share
from his2lip.data.prepare.dataset import PrepareReport, prepare
from his2lip.data.readers import get_reader
from his2lip.data.readers.annotated_cells import read_annotations
from his2lip.data.shards.reader import open_shards
from his2lip.errors import DatasetError, ImageError
from his2lip.evaluation.protocols import select
from his2lip.synthetic.layouts import write_layout, write_pyramid

Read = Callable[..., tuple[PrepareReport, pd.DataFrame]]


@pytest.fixture
def draw(real_ihc: np.ndarray) -> Callable[..., np.ndarray]:
    """Returns another square of real pixels at each call."""
    pixels, rng = np.tile(real_ihc, (3, 3, 1)), np.random.default_rng(0)

    def one(side: int, tissue: str | None, biomarker: str | None) -> np.ndarray:
        y, x = rng.integers(0, pixels.shape[0] - side + 1, 2)
        return pixels[y : y + side, x : x + side]

    return one


@pytest.fixture
def read(tmp_path: Path, draw: Callable) -> Read:
    """Writes the layout of a card, changes it by `change(root)`, prepares it; rows by patch id."""

    def one(
        name: str, *, change: Callable[[Path], object] = lambda root: None, into: str = "", **options: object
    ):
        root = tmp_path / f"{name}{into}"
        root.mkdir()
        write_layout(name, root, draw)
        change(root)
        card = load_card(name)
        card = card.model_copy(update={"options": card.options | options})
        report = prepare(card, root, tmp_path / f"out-{root.name}")
        assert report.read + report.passed_over.total() + len(report.quarantined) == report.found
        shards = open_shards(tmp_path / f"out-{root.name}")
        tables = [shards.table(split).to_pandas() for split in shards.splits]
        return report, pd.concat(tables).set_index("patch_id")

    return one


@pytest.mark.parametrize("name", list_cards())
def test_every_layout_is_read_completely(read: Read, name: str) -> None:
    report, rows = read(name)
    assert report.quarantined == report.left_out == []
    assert report.info.rows == len(rows) > 0
    assert set(rows["stain"]) <= {"DAB", "AEC", "haematoxylin"}
    assert rows.index.str.startswith(f"{name}/").all()


def test_bci_score_and_twin(read: Read) -> None:
    report, rows = read("bci")
    row = rows.loc["bci/IHC/test/00002_test_1+.png"]
    assert (row["score"], row["label"], row["biomarker"], row["split"]) == ("1+", "1+", "HER2", "test")
    assert row["twin_id"] == "bci/HE/test/00002_test_1+.png"
    assert report.passed_over == {"an H&E twin": 16}


def test_mist_biomarker_slide_and_twin(read: Read) -> None:
    _, rows = read("mist")
    row = rows.loc["mist/Ki67/valB/60M2100640_15_18.jpg"]
    assert (row["biomarker"], row["slide_id"], row["split"]) == ("Ki67", "60M2100640", "val")
    assert row["twin_id"] == "mist/Ki67/valA/60M2100640_15_18.jpg"
    assert row["mpp"] == pytest.approx(0.4661)
    train, select = (set(rows.loc[rows["split"] == s, "slide_id"]) for s in ("train", "select"))
    assert train | select == {"60M2100640", "61M2100641"}
    assert not train & select


def test_her2_reads_the_split_by_slides_and_the_test_set_of_the_split_by_patches(read: Read) -> None:
    report, rows = read("her2-ihc-40x")
    assert rows.loc["her2-ihc-40x/test_data_wsi/class_3+/test_0.png", ["score", "split"]].tolist() == [
        "3+",
        "test",
    ]
    assert rows.loc["her2-ihc-40x/test_data_patch/class_0/test_1.png", "split"] == "patch_test"
    assert report.passed_over == {"of the split by patches, whose slides are in train and test": 8}
    assert rows.groupby("split").size()[["patch_test", "test"]].tolist() == [8, 8]


@pytest.mark.parametrize(("partition", "splits"), [("wsi", {"train", "test"}), ("patch", {"patch_test"})])
def test_her2_folders_train_and_test_are_of_the_partition_of_the_card(
    read: Read, partition: str, splits: set[str]
) -> None:
    def flatten(root: Path) -> None:
        (root / "Patch-based-dataset").rename(root.parent / "elsewhere")
        (root / "WSI-based-dataset").rename(root / "Patches")
        for split in ("train", "test"):
            for folder in sorted((root / f"Patches/{split}_data_wsi").iterdir()):
                folder.rename(root / "Patches" / split / folder.name)

    _, rows = read("her2-ihc-40x", change=flatten, partition=partition)
    assert set(rows["split"]) - {"select"} == splits


def test_hnscc_regions_and_stains_in_both_layouts(read: Read) -> None:
    _, rows = read("hnscc")
    first = rows.loc["hnscc/Case1_M1_0_0_PCK.png"]
    assert (first["label"], first["biomarker"], first["stain"], first["case_id"]) == (
        "margin",
        "PanCK",
        "AEC",
        "Case1",
    )
    second = rows.loc["hnscc/Case2_T2_0_0_Hematoxylin.png"]
    assert (second["label"], second["stain"]) == ("core", "haematoxylin")
    assert pd.isna(second["biomarker"])
    assert second["region_id"] == "Case2_T2_0_0"
    assert rows.loc["hnscc/Case1_S1_0_0_FoxP3.png", "biomarker"] == "FOXP3"


def test_hnscc_second_layout_is_read_with_a_hyphen_and_masks_are_passed_over(read: Read) -> None:
    report, rows = read("hnscc")
    assert set(rows["case_id"]) == {"Case1", "Case2"}
    assert rows.groupby("case_id").size().tolist() == [15, 15]
    assert rows.loc["hnscc/Case2_S2_0_0_PanCK.png", "label"] == "stroma"  # mIHC_Data-S2_0_0_PanCK.png
    assert report.passed_over == {"a mask of a segmentation": 4}


def test_ihc4bc_labels_follow_the_fraction_of_nuclei(read: Read) -> None:
    report, rows = read("ihc4bc")
    named = rows.reset_index().set_index(["biomarker", "case_id"])
    assert named.loc[("ER", "1000"), "label"] == "positive"  # half of the nuclei at 1+ or more
    assert named.loc[("ER", "1001"), "label"] == "negative"  # status 0
    assert named.loc[("PR", "1003"), "label"] == "negative"  # status a, no nucleus at 1+
    assert report.passed_over["discarded by the authors (status d)"] == 6
    assert report.passed_over["HER2, of which the label format is not known"] == 8
    cases = rows.groupby("case_id")["split"].nunique()
    assert (cases == 1).all()


@pytest.mark.parametrize(("biomarker", "label"), [("Ki67", "5 to 20 %"), ("ER", "low")])
def test_ihc4bc_thresholds_are_of_the_biomarker(read: Read, biomarker: str, label: str) -> None:
    def relabel(root: Path) -> None:
        for stain in ("ER", "Ki67", "PR"):
            path = root / f"Labels/{stain}_labels.csv"
            path.write_text(
                "\n".join(f"{n}_{1000 + n}_11_1_2.jpg;a;10;0.5;{';'.join(['0.01'] * 9)}" for n in range(8))
            )

    _, rows = read("ihc4bc", change=relabel)  # one nucleus of ten: over 1 %, under 20 %
    assert set(rows.loc[rows["biomarker"] == biomarker, "label"]) == {label}


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        # 30 of 100 nuclei of the IHC patch are stained; its H&E twin has 1,000 nuclei.
        ({}, {"ER": "positive", "Ki67": "positive"}),
        ({"denominator": "h&e"}, {"ER": "low", "Ki67": "negative"}),
        # H-score: (10 x 1 + 10 x 2 + 10 x 3) per 100 or per 1,000 nuclei = 60 or 6.
        (
            {"measure": "h-score", "h_score_from": {"ER": 60, "PR": 1, "Ki67": 61}},
            {"ER": "positive", "Ki67": "negative"},
        ),
        (
            {"measure": "h-score", "denominator": "h&e", "h_score_from": {"ER": 6, "PR": 1, "Ki67": 7}},
            {"ER": "positive", "Ki67": "negative"},
        ),
    ],
)
def test_ihc4bc_label_is_by_percent_or_h_score_of_the_nuclei_of_the_ihc_patch_or_its_twin(
    read: Read, options: dict, labels: dict[str, str]
) -> None:
    def relabel(root: Path) -> None:
        dab = " ".join(["0.2"] * 10 + ["0.4"] * 10 + ["0.6"] * 10 + ["0.01"] * 70)
        rows = [f"{n}_{1000 + n}_11_1_2.jpg,a,1000,{dab}" for n in range(8)]
        for stain in ("ER", "Ki67", "PR"):
            (root / f"Labels/{stain}_labels.csv").write_text("\n".join(rows))

    _, rows = read("ihc4bc", change=relabel, **options)
    assert {b: set(rows.loc[rows["biomarker"] == b, "label"]) for b in labels} == {
        b: {label} for b, label in labels.items()
    }


@pytest.mark.parametrize(
    ("stained", "er", "ki67"),
    [
        (0, "negative", "negative"),
        (1, "low", "negative"),
        (10, "low", "5 to 20 %"),
        (11, "positive", "5 to 20 %"),
        (20, "positive", "20 to 30 %"),
        (30, "positive", "positive"),
    ],
)
def test_ihc4bc_bands_have_the_limits_of_the_guidelines(read: Read, stained: int, er: str, ki67: str) -> None:
    def relabel(root: Path) -> None:
        dab = " ".join(["0.9"] * stained + ["0.01"] * (100 - stained))
        for stain in ("ER", "Ki67", "PR"):
            rows = [f"{n}_{1000 + n}_11_1_2.jpg,a,100,{dab}" for n in range(8)]
            (root / f"Labels/{stain}_labels.csv").write_text("\n".join(rows))

    _, rows = read("ihc4bc", change=relabel)
    found = rows.groupby("biomarker")["label"].unique()
    assert [found[b].tolist() for b in ("ER", "PR", "Ki67")] == [[er], [er], [ki67]]


def test_ihc4bc_patient_is_in_the_name_of_the_image(read: Read) -> None:
    _, rows = read("ihc4bc")
    row = rows.loc["ihc4bc/ER/Patient_4_2004/Subregion_5/4_1004_11_1_2.jpg"]
    assert (row["case_id"], row["slide_id"], row["region_id"]) == ("1004", "1004/ER", "1004/ER/11")


def test_ihc4bc_copies_of_both_sizes_are_read_with_the_same_labels(read: Read, real_ihc: np.ndarray) -> None:
    def resize(root: Path) -> None:
        for path in (root / "Images").rglob("*.jpg"):
            path.write_bytes(encode_jpeg(np.tile(decode(path.read_bytes()), (2, 2, 1))[:300, :300]))

    _, compressed = read("ihc4bc")
    _, full = read("ihc4bc", change=resize, into="full")
    assert set(compressed["width"]) == {256}
    assert set(full["width"]) == set(full["height"]) == {300}
    assert compressed[["label", "split", "case_id"]].equals(full[["label", "split", "case_id"]])


def test_ihc4bc_image_without_a_label_row_is_quarantined(read: Read, tmp_path: Path) -> None:
    report, _ = read("ihc4bc", change=lambda root: (root / "Labels/PR_labels.csv").unlink())
    reader = get_reader(load_card("ihc4bc"), tmp_path / "ihc4bc")
    errors = {path: refusal(reader, path) for path, _ in report.quarantined}
    assert {path: error.what for path, error in errors.items()} == dict(report.quarantined)
    assert [error.key for error in errors.values()] == ["label"] * 8


def test_bcdata_patches_are_centred_on_points(read: Read, tmp_path: Path) -> None:
    _, rows = read("bcdata")
    image = decode((tmp_path / "bcdata/BCData/images/test/0.png").read_bytes())
    patches = stored("bcdata", tmp_path)
    name = "bcdata/images/test/0.png#positive-100_120"
    assert (rows.loc[name, "x"], rows.loc[name, "y"], rows.loc[name, "label"]) == (68, 88, "positive")
    assert (patches[name] == image[88:152, 68:132]).all()
    border = patches["bcdata/images/test/0.png#positive-5_9"]
    padded = np.pad(image, ((64, 64), (64, 64), (0, 0)), mode="reflect")
    assert (border == padded[9 + 32 : 9 + 96, 5 + 32 : 5 + 96]).all()


def test_bcdata_does_not_name_its_slides(read: Read, tmp_path: Path) -> None:
    """Intervals are then over images, and the board does not call these slides."""
    read("bcdata")
    protocol = load_card("bcdata").protocols["default"]
    clusters = select(open_shards(tmp_path / "out-bcdata"), protocol).clusters
    images = {patch_id.partition("#")[0] for patch_id in stored("bcdata", tmp_path)}
    assert (clusters.kind, clusters.count) == ("file", len(images))


def test_bcdata_patches_without_nuclei_have_no_point_inside(read: Read) -> None:
    _, rows = read("bcdata")
    points = np.array([(100, 120), (5, 9), (300, 310), (200, 40), (330, 100)])
    empty = rows[rows["label"] == "none"]
    for x, y in zip(empty["x"], empty["y"], strict=True):
        inside = ((points >= (x, y)) & (points < (x + 64, y + 64))).all(axis=1)
        assert not inside.any()


def test_bcdata_faults_are_quarantined_or_left_out(read: Read, tmp_path: Path) -> None:
    def change(root: Path) -> None:
        base = root / "BCData/annotations/test"
        with h5py.File(base / "positive/0.h5", "w") as file:
            file["coordinates"] = np.array([(9999, 5), (100, 120), (100, 120), (-4, 3), (60, 61)], np.int64)
        with h5py.File(base / "negative/0.h5", "w") as file:
            file["coordinates"] = np.array([(60, 61), (200, 201)], np.int64)
        (base / "positive/77.h5").write_bytes(b"no image has this number")
        (base / "negative/1.h5").write_bytes(b"not h5")
        for kind in ("positive", "negative"):
            (root / f"BCData/annotations/train/{kind}/1.h5").unlink()

    report, rows = read("bcdata", change=change)
    assert not rows.index.str.contains("-60_61").any()
    assert rows.index.str.endswith("images/test/0.png#negative-200_201").any()
    reader = get_reader(load_card("bcdata"), tmp_path / "bcdata")
    errors = {path: refusal(reader, path) for path, _ in report.quarantined}
    assert {path: error.what for path, error in errors.items()} == dict(report.quarantined)
    assert {path: error.key for path, error in errors.items()} == {
        "BCData/annotations/test/positive/77.h5": "image",
        "BCData/images/train/1.png": "annotations",
        "BCData/images/test/1.png": "1.h5",
    }
    assert sorted(r for _, r in report.left_out) == [
        "a positive and a negative point have this position",
        "the point lies outside the image",
        "the point lies outside the image",
        "two points have this position",
        "two points have this position",
    ]


def test_bcdata_cuts_no_patch_without_nuclei_where_cells_of_one_kind_have_no_file(read: Read) -> None:
    def change(root: Path) -> None:
        shutil.rmtree(root / "BCData/annotations/test/negative")

    report, rows = read("bcdata", change=change)
    counts = rows.groupby(["split", "label"]).size()
    assert counts["test", "positive"] > 0
    assert ("test", "none") not in counts, "a negative cell could lie in it"
    assert counts["train", "none"] > 0
    assert report.left_out, "dataset.json says what was not cut"


def test_bcdata_files_with_upper_case_suffixes_are_read_as_others(read: Read) -> None:
    def change(root: Path) -> None:
        for kind in ("positive", "negative"):
            file = root / f"BCData/annotations/test/{kind}/0.h5"
            file.rename(file.with_suffix(".H5"))

    report, rows = read("bcdata", change=change)
    test = rows[rows.index.str.contains("images/test/0.png")]
    assert set(test["label"]) == {"positive", "negative", "none"}
    assert report.quarantined == []


def test_real_bcdata_points_are_brown_nuclei(shared: Path, tmp_path: Path) -> None:
    sample = shared / "real_ihc/BCData_sample"
    for folder in ("images/test", "annotations/test/positive", "annotations/test/negative"):
        (tmp_path / "in" / folder).mkdir(parents=True)
    with h5py.File(tmp_path / "in/annotations/test/negative/0.h5", "w") as file:
        file["coordinates"] = np.empty((0, 2), np.int64)
    (tmp_path / "in/images/test/0.png").write_bytes((sample / "images/test/0.png").read_bytes())
    (tmp_path / "in/annotations/test/positive/0.h5").write_bytes((sample / "annotations/0.h5").read_bytes())
    report = prepare(load_card("bcdata"), tmp_path / "in", tmp_path / "out")
    assert report.info.counts["test"]["positive"] == 32
    red_minus_blue: dict[str, list[float]] = {"positive": [], "none": []}
    for batch in open_shards(tmp_path / "out").iter_rows("test", ["label", "image"]):
        for row in batch.to_pylist():
            centre = decode(row["image"])[28:36, 28:36].astype(float)
            red_minus_blue[row["label"]].append((centre[..., 0] - centre[..., 2]).mean())
    assert np.mean(red_minus_blue["positive"]) > np.mean(red_minus_blue["none"]) + 10


def test_anhir_microns_per_pixel_are_those_of_the_set_at_its_scale(read: Read) -> None:
    _, rows = read("anhir-lung")
    assert rows["mpp"].groupby(rows.index.str.split("/").str[1]).unique().str[0].to_dict() == pytest.approx(
        {"lung-lesion_1": 0.174 / 0.25, "lung-lobes_2": 1.274 / 0.25}
    )


def test_anhir_reads_its_sets_at_the_largest_scale(read: Read) -> None:
    report, rows = read("anhir-lung", change=lambda root: (root / "lung-lobes_2").rename(root / "kidney_2"))
    assert sorted(rows["label"]) == ["CD31", "Cc10", "Ki67", "proSPC"]
    assert rows.index.str.startswith("anhir-lung/lung-lesion_1/scale-25pc/").all()
    assert report.passed_over["of another set"] == 10
    row = rows.loc["anhir-lung/lung-lesion_1/scale-25pc/29-041-Izd2-w35-proSPC-4-les1.jpg"]
    assert (row["case_id"], row["region_id"]) == ("29-041-Izd2-w35", "29-041-Izd2-w35-les1")


def test_anhir_image_without_a_copy_at_the_largest_scale_is_read_at_its_own(read: Read) -> None:
    name = "29-041-Izd2-w35-proSPC-4-les1.jpg"
    report, rows = read("anhir-lung", change=lambda root: (root / "lung-lesion_1/scale-25pc" / name).unlink())
    row = rows.loc[f"anhir-lung/lung-lesion_1/scale-5pc/{name}"]
    assert (row["label"], row["mpp"]) == ("proSPC", pytest.approx(0.174 / 0.05))
    assert sorted(rows["label"]) == sorted(["CD31", "Cc10", "Ki67", "proSPC"] * 2)
    assert report.passed_over["the same image at a smaller scale"] == 9


@pytest.mark.parametrize("spelling", ["Ki67", "KI-67", "ki_67", "MIB-1", "CKi67"])
def test_anhir_case_is_the_same_however_the_stain_is_spelt(read: Read, spelling: str) -> None:
    def respell(root: Path) -> None:
        for path in root.rglob("*Ki67-7*"):
            path.rename(path.with_name(path.name.replace("Ki67-7", f"{spelling}-7")))

    _, rows = read("anhir-lung", change=respell)
    assert set(rows.loc[rows["biomarker"] == "Ki67", "case_id"]) == {"29-041-Izd2-w35"}
    assert rows.groupby("region_id").size().tolist() == [4, 4]


def test_acrobat_slides_are_tiled_only_on_tissue(read: Read) -> None:
    report, rows = read("acrobat", max_tiles=None)
    assert set(rows["biomarker"]) == {"ER", "PR", "HER2", "Ki67"}
    assert set(rows["split"]) >= {"train", "test", "validation"}
    assert rows["x"].max() < 672
    assert (rows["width"] == 224).all()
    assert rows["mpp"].to_numpy() == pytest.approx(0.92, abs=0.01)
    row = rows[rows["split"] == "validation"].iloc[0]
    assert row.name == f"acrobat/{row['slide_id']}.tiff#{row['x']}_{row['y']}"
    assert report.passed_over == {"an H&E twin": 4}


def test_acrobat_slides_have_at_most_max_tiles(read: Read) -> None:
    report, rows = read("acrobat", max_tiles=3)
    assert (rows.groupby("slide_id").size() == 3).all()
    assert {place.rpartition(".")[0] for place, _ in report.left_out} == set(rows["slide_id"])
    assert {cut_share(reason) for _, reason in report.left_out} == {3 / 9}


def test_pantumor_patches_are_centred_on_cells_in_microns(read: Read, tmp_path: Path) -> None:
    report, rows = read("pantumor")
    assert report.info.counts["test"] == {"immune cell": 6, "other cell": 6, "tumour cell": 6}
    row = rows.loc["pantumor/HNSCC_0.tiff#cell-1"]
    assert (row["label"], row["region_id"], row["width"]) == ("other cell", "HNSCC", 116)  # 29 µm at 0.25
    assert (row["x"], row["y"]) == (150 - 58, 160 - 58)


@pytest.mark.parametrize(("most", "each"), [(1, 2), (2, 4), (None, 6)])
def test_pantumor_classes_are_kept_or_capped_as_the_card_says(
    read: Read, most: int | None, each: int
) -> None:
    report, _ = read("pantumor", max_cells=most)  # two slides, three cells of a class on each
    assert report.info.counts["test"] == {"immune cell": each, "other cell": each, "tumour cell": each}


@pytest.mark.parametrize(("most", "expected"), [(1, (6, 6)), (2, (12, 12)), (None, (18, 12))])
def test_bcdata_classes_are_kept_or_capped_as_the_card_says(
    read: Read, most: int | None, expected: tuple[int, int]
) -> None:
    _, rows = read("bcdata", per_image=most)  # six images, three positive points and two negative on each
    counts = rows["label"].value_counts()
    assert (counts["positive"], counts["negative"]) == expected
    assert counts["none"] == 6 * most if most else counts["none"] > 12


def test_pantumor_patch_at_the_border_is_completed_by_reflection(read: Read, tmp_path: Path) -> None:
    def add(root: Path) -> None:
        (root / "edge.csv").write_text(
            "filename,xmin,ymin,xmax,ymax,label\nHNSCC_0.tiff,0,1014,10,1024,TUMOR CELL\n"
        )

    _, rows = read("pantumor", change=add)
    with open_slide(tmp_path / "pantumor/HNSCC_0.tiff") as slide:
        padded = np.pad(slide.region(0, 0, 1024, 1024), ((58, 58), (58, 58), (0, 0)), mode="reflect")
    row = rows.loc["pantumor/HNSCC_0.tiff#cell-0.1"]
    assert (row["x"], row["y"]) == (5 - 58, 1019 - 58)
    assert (stored("pantumor", tmp_path)[row.name] == padded[1019 : 1019 + 116, 5 : 5 + 116]).all()


def stored(name: str, tmp_path: Path) -> dict[str, np.ndarray]:
    """Decoded pixels of the test split by patch id."""
    batches = open_shards(tmp_path / f"out-{name}").iter_rows("test", ["patch_id", "image"])
    return {row["patch_id"]: decode(row["image"]) for batch in batches for row in batch.to_pylist()}


def test_pantumor_faults_are_quarantined_or_left_out(read: Read) -> None:
    def change(root: Path) -> None:
        (root / "extra.csv").write_text(
            "filename,xmin,ymin,xmax,ymax,label\n"
            "gone.tiff,1,1,20,20,TUMOR CELL\n"
            "HNSCC_0.tiff,9000,1,9020,20,TUMOR CELL\n"
            "HNSCC_0.tiff,100,100,120,120,FUNGUS\n"
            "HNSCC_0.tiff,100,100,120,120,TUMOR CELL\n"  # where only a cell of no known class lies
        )
        write_pyramid(root / "bare.tiff", np.full((300, 300, 3), 200, np.uint8), mpp=0.25)

    report, rows = read("pantumor", change=change)
    assert len(rows) == 18 + 1
    assert dict(report.quarantined) == {
        "gone.tiff": "annotations without their slide",
        "bare.tiff": "a slide without annotations",
    }
    assert sorted(reason for _, reason in report.left_out) == [
        "'FUNGUS' is not a class of this dataset",
        "the annotated cell lies outside the slide",
    ]


def test_cells_of_three_formats_are_the_same(tmp_path: Path, draw: Callable) -> None:
    write_layout("pantumor", tmp_path, draw)
    coco = read_annotations(tmp_path / "annotations.json")
    cells = [(slide, cell) for slide, of_slide in coco.items() for cell in of_slide]
    table = [(slide, c.x - 10, c.y - 10, 20, 20, c.label) for slide, c in cells]
    pd.DataFrame(table, columns=["image", "x", "y", "w", "h", "class"]).to_csv(
        tmp_path / "a.csv", index=False
    )
    with sqlite3.connect(tmp_path / "a.sqlite") as base:
        base.execute("CREATE TABLE Slides (uid INTEGER, filename TEXT)")
        base.execute("CREATE TABLE Classes (uid INTEGER, name TEXT)")
        base.execute("CREATE TABLE Annotations (uid INTEGER, slide INTEGER, agreedClass INTEGER)")
        base.execute("CREATE TABLE Annotations_coordinates (coordinateX, coordinateY, annoId INTEGER)")
        slides, labels = sorted(coco), sorted({c.label for _, c in cells})
        base.executemany("INSERT INTO Slides VALUES (?, ?)", list(enumerate(slides)))
        base.executemany("INSERT INTO Classes VALUES (?, ?)", list(enumerate(labels)))
        for i, (slide, c) in enumerate(cells):
            base.execute(
                "INSERT INTO Annotations VALUES (?, ?, ?)", (i, slides.index(slide), labels.index(c.label))
            )
            for at in (-10, 10):
                base.execute("INSERT INTO Annotations_coordinates VALUES (?, ?, ?)", (c.x + at, c.y + at, i))
    assert read_annotations(tmp_path / "a.csv") == coco
    assert read_annotations(tmp_path / "a.sqlite") == coco


def slide_database(path: Path, *, deleted: bool = True) -> Path:
    """A SlideRunner database: three cells, the last one removed, and two annotations of the whole slide."""
    with closing(sqlite3.connect(path)) as base, base:
        base.execute("CREATE TABLE Slides (uid INTEGER, filename TEXT)")
        base.execute("INSERT INTO Slides VALUES (1, 'HNSCC_0.tiff')")
        base.execute("CREATE TABLE Classes (uid INTEGER, name TEXT)")
        base.execute("INSERT INTO Classes VALUES (1, 'TUMOR CELL')")
        base.execute("CREATE TABLE Annotations (uid INTEGER, slide INTEGER, agreedClass INTEGER)")
        base.executemany("INSERT INTO Annotations VALUES (?, 1, 1)", [(uid,) for uid in range(5)])
        if deleted:
            base.execute("ALTER TABLE Annotations ADD COLUMN deleted INTEGER")
            base.executemany("UPDATE Annotations SET deleted = ? WHERE uid = ?", [(0, 1), (1, 2)])
        base.execute("CREATE TABLE Annotations_coordinates (coordinateX, coordinateY, annoId INTEGER)")
        places = [(490, 10, 0), (510, 30, 0), (600, 20, 1), (700, 20, 2), (None, None, 3)]  # and none of 4
        base.executemany("INSERT INTO Annotations_coordinates VALUES (?, ?, ?)", places)
    return path


@pytest.mark.parametrize(
    ("deleted", "kept"), [(True, ["cell-0", "cell-1"]), (False, ["cell-0", "cell-1", "cell-2"])]
)
def test_annotations_that_were_removed_from_a_slide_database_are_not_cut(
    tmp_path: Path, deleted: bool, kept: list[str]
) -> None:
    cells = read_annotations(slide_database(tmp_path / "a.sqlite", deleted=deleted))["HNSCC_0.tiff"]
    assert [cell.key for cell in cells if cell.fault is None] == kept
    assert (cells[0].x, cells[0].y) == (500, 20)


def test_annotations_of_a_whole_slide_are_left_out_and_the_cells_of_its_database_are_cut(
    read: Read,
) -> None:
    report, rows = read("pantumor", change=lambda root: slide_database(root / "a.sqlite"))
    assert len(rows) == 18 + 2
    assert [place for place, _ in report.left_out] == ["HNSCC_0.tiff#cell-3", "HNSCC_0.tiff#cell-4"]
    assert {reason for _, reason in report.left_out} == {
        "an annotation of the whole slide, without coordinates"
    }


@pytest.mark.parametrize(
    ("header", "row", "centre"),
    [
        ("x0,y0,x1,y1", "100,200,120,240", (110, 220)),
        ("x,y,x1,y1", "100,200,120,240", (110, 220)),
        ("left,top,x1,y1", "100,200,120,240", (110, 220)),
        ("x1,y1,x2,y2", "100,200,120,240", (110, 220)),
        ("x1,y1,w,h", "100,200,20,40", (110, 220)),
        ("x0,y0,w,h", "100,200,20,40", (110, 220)),
        ("width,height,x0,y0,x1,y1", "900,900,100,200,120,240", (110, 220)),
        ("width,height,xmin,ymin,xmax,ymax", "900,900,100,200,120,240", (110, 220)),
        ("x,y,xmin,ymin,xmax,ymax", "1,1,100,200,120,240", (110, 220)),
        ("X,Y", "100,200", (100, 200)),
    ],
)
def test_boxes_are_read_by_the_edges_that_the_header_names(
    tmp_path: Path, header: str, row: str, centre: tuple[float, float]
) -> None:
    (tmp_path / "a.csv").write_text(f"filename,label,{header}\ns.tiff,TUMOR CELL,{row}\n")
    ((cell,),) = read_annotations(tmp_path / "a.csv").values()
    assert (cell.x, cell.y) == centre


@pytest.mark.parametrize(
    "header",
    ["x,y,x1,y1,x2,y2", "x0,y0,x1,y1,x2,y2", "x,y,x1,y1,w,h", "x,y,x,y", "x0,y0,x1,y1,xmax,ymax"],
)
def test_a_header_of_boxes_that_fits_more_than_one_reading_is_refused(tmp_path: Path, header: str) -> None:
    row = ",".join("9" for _ in header.split(","))
    (tmp_path / "a.csv").write_text(f"filename,label,{header}\ns.tiff,TUMOR CELL,{row}\n")
    with pytest.raises(DatasetError) as refused:
        read_annotations(tmp_path / "a.csv")
    assert (refused.value.where, refused.value.key) == (tmp_path / "a.csv", "annotations")
    assert set(header.split(",")[::2]) <= set(refused.value.what.replace(",", "").split())
    assert "xmin" in (refused.value.fix or "")


@pytest.mark.parametrize("name", ["a.json", "a.csv", "a.sqlite"])
def test_broken_annotations_are_refused_with_their_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"images": 1}\nx,y\n')
    with pytest.raises(DatasetError) as refused:
        read_annotations(tmp_path / name)
    assert (refused.value.where, refused.value.key) == (tmp_path / name, "annotations")


def test_pyramid_and_plain_image_give_the_same_pixels(tmp_path: Path, real_ihc: np.ndarray) -> None:
    write_pyramid(tmp_path / "a.tiff", real_ihc, mpp=0.5)
    (tmp_path / "a.png").write_bytes(encode_png(real_ihc))
    with open_slide(tmp_path / "a.tiff") as pyramid, open_slide(tmp_path / "a.png", mpp=0.5) as plain:
        assert pyramid.mpp == pytest.approx(0.5, abs=1e-3)
        assert (pyramid.region(10, 20, 100, 100) == plain.region(10, 20, 100, 100)).all()
        assert isinstance(plain, PlainSlide)


def test_patch_past_the_border_is_reflected(real_ihc: np.ndarray) -> None:
    slide = PlainSlide(real_ihc, None)
    padded = np.pad(real_ihc, ((32, 32), (32, 32), (0, 0)), mode="reflect")
    for x, y in ((0, 0), (511, 511), (3, 500), (256, 256)):
        pixels, left, top = around(slide, x, y, 64, 64)
        assert (left, top) == (x - 32, y - 32)
        assert (pixels == padded[y : y + 64, x : x + 64]).all()


def test_truncated_slide_is_an_image_error(tmp_path: Path, real_ihc: np.ndarray) -> None:
    write_pyramid(tmp_path / "a.tiff", real_ihc, mpp=0.5)
    data = (tmp_path / "a.tiff").read_bytes()
    (tmp_path / "a.tiff").write_bytes(data[: len(data) // 3])
    with pytest.raises(ImageError), open_slide(tmp_path / "a.tiff") as slide:
        slide.region(0, 0, 512, 512)


def test_pantumor_cells_that_are_in_two_files_are_read_once(read: Read) -> None:
    def change(root: Path) -> None:
        of_json = read_annotations(root / "annotations.json")["HNSCC_0.tiff"]
        rows = [f"HNSCC_0.tiff,{c.x},{c.y},0,0,{c.label}" for c in of_json]
        text = "\n".join(["filename,x,y,w,h,label", *rows, "HNSCC_0.tiff,500,20,0,0,TUMOR CELL"])
        (root / "boxes.csv").write_text(text)

    report, rows = read("pantumor", change=change)
    assert len(rows) == 18 + 1
    assert [reason for _, reason in report.left_out] == ["two annotated cells have this position"] * 9


def test_pantumor_cells_of_two_classes_at_one_position_are_left_out(read: Read) -> None:
    def change(root: Path) -> None:
        rows = ["500,20,TUMOR CELL", "500,20,TUMOR CELL", "500,20,NON TUMOR CELL", "530,20,TUMOR CELL"]
        text = "\n".join(["filename,x,y,label", *(f"HNSCC_0.tiff,{row}" for row in rows)])
        (root / "points.csv").write_text(text)

    report, rows = read("pantumor", change=change)
    assert len(rows) == 18 + 1
    reason = "annotated cells of several classes have this position"
    assert [why for _, why in report.left_out] == [reason] * 3


def test_ihc4bc_table_that_is_not_utf8_is_refused_with_its_file(read: Read) -> None:
    with pytest.raises(DatasetError) as refused:
        read("ihc4bc", change=lambda root: (root / "Labels/PR_labels.csv").write_bytes(b"n\xe9,a,1,0.2\n"))
    assert Path(str(refused.value.where)).name == "PR_labels.csv"


def test_ihc4bc_image_with_two_different_label_rows_is_quarantined(read: Read) -> None:
    def contradict(root: Path) -> None:
        rows = ["0_1000_11_1_2,a,100,0.7 0.6 0.01 0.02", "1_1001_11_1_2,d,0"]  # the same again, and another
        (root / "Labels/more_ER_labels.csv").write_text("\n".join(rows))

    report, rows = read("ihc4bc", change=contradict)
    ((place, reason),) = report.quarantined
    assert place == "Images/IHC/ER/Patient_1_2001/Subregion_5/1_1001_11_1_2.jpg"
    assert reason == "two label rows name it, and they differ"
    assert rows["label"]["ihc4bc/ER/Patient_0_2000/Subregion_5/0_1000_11_1_2.jpg"] == "positive"


def test_ihc4bc_optical_densities_without_a_leading_zero_are_fractions(read: Read) -> None:
    def relabel(root: Path) -> None:
        rows = [f"{n}_{1000 + n}_11_1_2.jpg;a;2;.02 -0.3" for n in range(8)]
        for stain in ("ER", "Ki67", "PR"):
            (root / f"Labels/{stain}_labels.csv").write_text("\n".join(rows))

    _, rows = read("ihc4bc", change=relabel)
    assert set(rows["label"]) == {"negative"}


def test_bcdata_image_with_all_points_outside_is_quarantined(read: Read) -> None:
    def change(root: Path) -> None:
        (root / "BCData/images/test/1.png").write_bytes(encode_png(np.full((384, 384, 3), 250, np.uint8)))
        for kind in ("positive", "negative"):
            with h5py.File(root / f"BCData/annotations/test/{kind}/1.h5", "w") as file:
                file["coordinates"] = np.array([(9999, 5), (-4, 3)], np.int64)

    report, _ = read("bcdata", change=change)
    assert report.quarantined == [("BCData/images/test/1.png", "the point lies outside the image")]
    assert len(report.left_out) == 4


@pytest.mark.parametrize("inside", [True, False])
def test_ihc4bc_folder_of_ihc_is_known_in_any_case_and_as_the_root(
    tmp_path: Path, draw: Callable, inside: bool
) -> None:
    write_layout("ihc4bc", tmp_path / "a", draw)
    root = tmp_path / "a/Images/ihc"
    (tmp_path / "a/Images/IHC").rename(root)
    (root / "Ki67").rename(root / "Ki-67")
    for path in (tmp_path / "a/Labels").iterdir():
        path.rename(root / path.name)
    report = prepare(load_card("ihc4bc"), root if inside else tmp_path / "a", tmp_path / "out")
    assert report.quarantined == []
    assert report.read == sum(sum(labels.values()) for labels in report.info.counts.values()) > 0
    shards = open_shards(tmp_path / "out")
    found = {
        b for split in shards.splits for b in shards.table(split, ["biomarker"])["biomarker"].to_pylist()
    }
    assert found == {"ER", "PR", "Ki67"}


def test_ihc4bc_row_whose_image_is_only_there_as_he_is_reported(read: Read) -> None:
    def move(root: Path) -> None:
        place = "ER/Patient_0_2000/Subregion_5/0_1000_11_1_2.jpg"
        (root / "Images/HE" / place).parent.mkdir(parents=True)
        (root / "Images/IHC" / place).rename(root / "Images/HE" / place)

    report, _ = read("ihc4bc", change=move)
    ((place, reason),) = report.quarantined
    assert (place, "0_1000_11_1_2" in reason) == ("Labels/ER_labels.csv", True)


def test_upper_case_suffixes_and_folders_give_the_same_labels(read: Read) -> None:
    def rename(root: Path) -> None:
        for path in sorted(root.rglob("*_train.tif*")):
            path.rename(path.with_name(path.name.replace("_train.tif", "_TRAIN.TIF")))

    _, rows = read("acrobat", change=rename)
    assert rows["case_id"].str.startswith("train-").any()
    assert not rows["case_id"].str.startswith("TRAIN-").any()

    def capitalise(root: Path) -> None:
        for path in sorted(root.rglob("scale-*")):
            path.rename(path.with_name(path.name.capitalize()))

    _, rows = read("anhir-lung", change=capitalise)
    assert rows["mpp"].notna().all()


def test_hnscc_case_is_the_same_in_upper_and_lower_case(tmp_path: Path) -> None:
    reader = get_reader(load_card("hnscc"), tmp_path)
    one, other = (reader.item(f"mIHC_Data/{case}_M1_0_0_CD8.png") for case in ("Case1", "case1"))
    assert (one.case_id, one.region_id, one.name) == (other.case_id, other.region_id, other.name)


def test_an_error_says_that_all_files_were_passed_over(read: Read) -> None:
    with pytest.raises(DatasetError) as refused:
        read("bci", change=lambda root: shutil.rmtree(root / "BCI_dataset/IHC"))
    assert "an H&E twin" in refused.value.what


def test_a_layout_is_read_from_within_its_folder(
    tmp_path: Path, draw: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, folder in (("anhir-lung", "lung-lesion_1"), ("bcdata", "BCData/images")):
        write_layout(name, tmp_path / name, draw)
        monkeypatch.chdir(tmp_path / name / folder)
        report = prepare(load_card(name), ".", tmp_path / f"out-{name}")
        assert report.quarantined == []
        assert report.read > 0


@pytest.mark.parametrize(
    ("row", "label"),
    [
        ("{name}.jpg;a;2;0,01;0,02", "negative"),
        ("{name}.jpg;a;2;0,01 0,02", "negative"),
        ("{name}.jpg;a;2;0,91;0,02", "positive"),
        ("{name}.jpg;a;2;[0,01, 0,02]", "negative"),
        ("{name}.jpg,a,2,0.01,0.02", "negative"),
        ('{name}.jpg,a,2,"0,01","0,02"', "negative"),
        ("{name}.jpg\ta\t2\t0,01\t0,02", "negative"),
        ('{name}.jpg,a,2,"0.01,0.92"', "positive"),
    ],
)
def test_ihc4bc_numbers_are_read_with_the_delimiter_and_decimal_mark_of_the_table(
    read: Read, row: str, label: str
) -> None:
    def relabel(root: Path) -> None:
        for stain in ("ER", "Ki67", "PR"):
            rows = [row.format(name=f"{n}_{1000 + n}_11_1_2") for n in range(8)]
            (root / f"Labels/{stain}_labels.csv").write_text("\n".join(rows))

    report, rows = read("ihc4bc", change=relabel)
    assert report.quarantined == []
    assert set(rows["label"]) == {label}


@pytest.mark.parametrize("cell", ["0,01", "n/a", "nan", "1.234,5", "0.5.1"])
def test_ihc4bc_image_with_a_value_that_is_no_number_is_quarantined(read: Read, cell: str) -> None:
    def relabel(root: Path) -> None:
        rows = [f"{n}_{1000 + n}_11_1_2.jpg;a;2;{cell if n == 0 else '0.01'};0.02" for n in range(8)]
        (root / "Labels/ER_labels.csv").write_text("\n".join(rows))

    report, _ = read("ihc4bc", change=relabel)
    ((place, reason),) = report.quarantined
    assert place == "Images/IHC/ER/Patient_0_2000/Subregion_5/0_1000_11_1_2.jpg"
    assert "label row" in reason


def test_ihc4bc_images_of_two_patients_with_one_name_are_quarantined(read: Read) -> None:
    place = "Images/IHC/ER/{}/Subregion_5/0_1000_11_1_2.jpg"

    def copy(root: Path) -> None:
        other = root / place.format("Patient_9_1009")
        other.parent.mkdir(parents=True)
        other.write_bytes((root / place.format("Patient_0_2000")).read_bytes())

    report, _ = read("ihc4bc", change=copy)
    assert [key for key, _ in report.quarantined] == [
        place.format("Patient_0_2000"),
        place.format("Patient_9_1009"),
    ]


@pytest.mark.parametrize("named", ["path", "folder"])
def test_pantumor_patches_are_cut_from_the_slide_of_the_path(read: Read, tmp_path: Path, named: str) -> None:
    """Two slides with one file name in two folders. Annotations give the path, or are in the same folder."""

    def two(root: Path) -> None:
        header = "filename;xmin;ymin;xmax;ymax;label\n"
        rows = {"A": "{};100,5;100;120,5;120;TUMOR CELL\n", "B": "{};300;300;320;320;TUMOR CELL\n"}
        for folder, value in (("A", 80), ("B", 160)):
            pixels = np.full((512, 512, 3), value, np.uint8)
            write_pyramid(root / folder / "same.tiff", pixels, mpp=0.25)
            name = "same.tiff" if named == "folder" else f"{folder}\\same.tiff"
            place = root / (f"{folder}/cells.csv" if named == "folder" else f"{folder}_cells.csv")
            place.write_text(header + rows[folder].format(name))

    report, rows = read("pantumor", change=two)
    assert report.quarantined == []
    first, second = (f"pantumor/{folder}/same.tiff#cell-0" for folder in "AB")
    assert (rows.loc[first, "x"], rows.loc[second, "x"]) == (round(110.5 - 58), 310 - 58)
    pixels = stored("pantumor", tmp_path)
    assert (int(pixels[first].mean()), int(pixels[second].mean())) == (80, 160)
    assert rows.loc[first, "slide_id"] != rows.loc[second, "slide_id"]


def test_pantumor_annotations_that_may_belong_to_two_slides_are_used_for_neither(read: Read) -> None:
    def two(root: Path) -> None:
        for folder in "AB":
            write_pyramid(root / folder / "same.tiff", np.full((512, 512, 3), 90, np.uint8), mpp=0.25)
        (root / "more.csv").write_text(
            "filename,xmin,ymin,xmax,ymax,label\nsame.tiff,100,100,120,120,TUMOR CELL\n"
        )

    report, rows = read("pantumor", change=two)
    assert [place for place, _ in report.quarantined] == ["A/same.tiff", "B/same.tiff", "same.tiff"]
    assert all("same.tiff" in reason for _, reason in report.quarantined)
    assert not rows.index.str.contains("same").any()


def test_pantumor_slides_are_ambiguous_by_whole_folders_and_names(read: Read) -> None:
    """A slide whose name only ends in the same letters is read; one that a longer path ends with is not."""

    def change(root: Path) -> None:
        for place in ("A/1.tiff", "B/1.tiff", "11.tiff", "2.tiff", "B/2.tiff"):
            write_pyramid(root / place, np.full((512, 512, 3), 90, np.uint8), mpp=0.25)
        names = ("1.tiff", "11.tiff", "A/B/2.tiff", "2.tiff")
        rows = [f"{name},100,100,120,120,TUMOR CELL" for name in names]
        (root / "more.csv").write_text("\n".join(["filename,xmin,ymin,xmax,ymax,label", *rows]))

    report, rows = read("pantumor", change=change)
    kept = rows[~rows.index.str.contains("_")].index
    assert list(kept) == ["pantumor/11.tiff#cell-1"]
    assert dict(report.quarantined) == {
        "1.tiff": "annotations of more.csv: '1.tiff' may be A/1.tiff or B/1.tiff",
        "A/1.tiff": "annotations that may belong to it: more.csv names '1.tiff'",
        "B/1.tiff": "annotations that may belong to it: more.csv names '1.tiff'",
        "A/B/2.tiff": "annotations of more.csv: 'A/B/2.tiff' may be 2.tiff or B/2.tiff",
        "2.tiff": "annotations that may belong to it: more.csv names 'A/B/2.tiff'",
        "B/2.tiff": "annotations that may belong to it: more.csv names 'A/B/2.tiff'",
    }


def test_pantumor_annotations_without_a_slide_or_a_class_are_in_the_report(read: Read) -> None:
    def change(root: Path) -> None:
        slide_database(root / "a.sqlite")
        with closing(sqlite3.connect(root / "a.sqlite")) as base, base:
            base.execute("INSERT INTO Annotations VALUES (5, 1, NULL, 0), (6, 1, 0, 0), (7, 9, 1, 0)")
            places = [(650, 20, 5), (660, 20, 6), (670, 20, 7)]
            base.executemany("INSERT INTO Annotations_coordinates VALUES (?, ?, ?)", places)
        (root / "b.csv").write_text(
            "label,x,y,filename\nTUMOR CELL,9,9\n,9,9,HNSCC_0.tiff\nTUMOR CELL,9,9,s\n"
        )

    report, rows = read("pantumor", change=change)
    assert len(rows) == 18 + 2
    assert dict(report.quarantined) == {
        "a.sqlite (no slide)": "1 of its annotations name no slide",
        "b.csv (no slide)": "1 of its annotations name no slide",
        "s": "annotations without their slide",
    }
    assert sorted(place for place, why in report.left_out if why == "it has no class") == [
        f"HNSCC_0.tiff#cell-{key}" for key in ("1.2", "5", "6")
    ]


@pytest.mark.parametrize(
    ("header", "column"),
    [("xmin,ymin,label", "slide"), ("filename,ymin,label", "left edge"), ("filename,x,label", "top edge")],
)
def test_a_table_of_boxes_without_a_column_is_refused_by_what_it_lacks(
    tmp_path: Path, header: str, column: str
) -> None:
    (tmp_path / "a.csv").write_text(f"{header}\n1,2,3\n")
    with pytest.raises(DatasetError) as refused:
        read_annotations(tmp_path / "a.csv")
    assert column in refused.value.what
    assert "xmin" in (refused.value.fix or "")


def test_annotations_with_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    boxes = [{"id": 4, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20]}]
    images, classes = [{"id": 1, "file_name": "s.tiff"}], [{"id": 1, "name": "TUMOR CELL"}]
    tree = {"images": images, "categories": classes, "annotations": boxes}
    (tmp_path / "a.json").write_text(json.dumps(tree), encoding="utf-8-sig")
    ((cell,),) = read_annotations(tmp_path / "a.json").values()
    assert (cell.x, cell.y, cell.label) == (20, 20, "TUMOR CELL")


def test_pantumor_box_with_a_value_that_is_no_number_is_left_out(read: Read) -> None:
    def add(root: Path) -> None:
        rows = "HNSCC_0.tiff;200,5;200;220,5;220;TUMOR CELL\nHNSCC_0.tiff;1.234,5;1;20;20;TUMOR CELL\n"
        (root / "boxes.csv").write_text(f"filename;xmin;ymin;xmax;ymax;label\n{rows}")

    report, rows = read("pantumor", change=add)
    assert rows.loc["pantumor/HNSCC_0.tiff#cell-0.1", "x"] == round(210.5 - 58)
    ((place, reason),) = report.left_out
    assert place == "HNSCC_0.tiff#cell-1.1"
    assert "1.234,5" in reason


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("mihic", "train/Tumor/Copy of 0011-CD68-1-1.png"),
        ("anhir-lung", "lung-lesion_1/scale-25pc/Copy of 29-041-Izd2-w35-proSPC-4-les1.jpg"),
        ("anhir-lung", "lung-lesion_1/scale-25pc/29-041-Izd2-w35-proSPC-4-les1 (1).jpg"),
    ],
)
def test_a_copy_that_a_file_manager_made_is_no_image_of_another_case(
    tmp_path: Path, name: str, key: str
) -> None:
    (tmp_path / key).parent.mkdir(parents=True)
    (tmp_path / key).touch()
    with pytest.raises(DatasetError) as refused:
        get_reader(load_card(name), tmp_path).item(key)
    assert refused.value.key == "path"
