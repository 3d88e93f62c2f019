"""Over 200 bad files of every kind through every reader: each is in the report with its own reason."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
from layouts import Cutter, bad_images, refusal

from his2lip.data.cards.card import Card, load_card
from his2lip.data.images.codec import encode_jpeg, encode_png
from his2lip.data.prepare.dataset import prepare
from his2lip.data.readers import get_reader
from his2lip.synthetic.layouts import write_layout

CUTS = 110  # lengths to which a PNG and a JPEG are truncated
Faults = dict[str, tuple[str, ...]]  # path -> key of the reader's error, and texts in it
SPLITS = {"train": {"role": "train"}, "test": {"role": "report"}}


@dataclass
class Layout:
    """A published layout and its possible faults.

    bad       (i, suffix) -> path of the i-th image with bad pixels
    suffix    of every bad image, where the layout has only one
    annotate  writes what the layout needs to know of the bad images
    faults    writes the layout's own faults
    twice     an image; a copy of it in another folder has the same patch id
    outside   number of coordinates that lie outside of their image
    absent    number of reported places that are not files but names in tables
    dangling  key of the error for a link to nothing; None: the file system's error is reported
    """

    bad: Callable[[int, str], str]
    suffix: str | None = None
    annotate: Callable[[Path, list[str]], object] = lambda root, keys: None
    faults: Callable[[Path], Faults] = lambda root: {}
    twice: str | None = None
    outside: int = 0
    absent: int = 0
    dangling: str | None = None


def touch(root: Path, name: str, data: bytes = b"x") -> str:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return name


def named(faults: Faults) -> Callable[[Path], Faults]:
    """Files in folders, or with names, that the layout does not have."""
    return lambda root: {touch(root, name): fault for name, fault in faults.items()}


def ihc4bc_rows(root: Path, keys: list[str]) -> None:
    with (root / "Labels/ER_labels.csv").open("a") as table:
        table.writelines(f"{Path(key).stem},0,1,0.1\n" for key in keys if "/bad_" in key)


def ihc4bc_faults(root: Path) -> Faults:
    with (root / "Labels/PR_labels.csv").open("a") as table:
        table.write("gone_1,a,1,0.9\ngone_2,0,1,0.9\n8_8000_1_1_1,a,0,\n")
    place = "Images/IHC/PR/Patient_0_2000/Subregion_5"
    return {
        touch(root, f"{place}/7_7000_1_1_1.jpg"): ("label",),
        touch(root, f"{place}/unknown.jpg"): ("path", "CASEID"),
        touch(root, f"{place}/8_8000_1_1_1.jpg"): ("nuclei",),
        "Labels/PR_labels.csv": ("image", "2 of", "gone_1"),
        touch(root, "stray.jpg"): ("path",),
    }


def bcdata_points(root: Path, keys: list[str]) -> None:
    for key in keys:
        folder = root / Path(key.replace("/images/", "/annotations/")).parent / "positive"
        folder.mkdir(parents=True, exist_ok=True)
        write_points(folder / f"{Path(key).stem}.h5", [(5, 5)])


def write_points(path: Path, points: list[tuple[int, int]]) -> None:
    with h5py.File(path, "w") as file:
        file["coordinates"] = np.array(points, np.int64)


def bcdata_faults(root: Path) -> Faults:
    image = root / "BCData/images/train/0.png"
    for name in ("bare", "broken", "shape"):
        shutil.copy(image, image.with_name(f"{name}.png"))
    touch(root, "BCData/annotations/train/negative/broken.h5", b"not h5")
    with h5py.File(root / "BCData/annotations/train/negative/shape.h5", "w") as file:
        file["coordinates"] = np.zeros((3, 3), np.int64)
    write_points(root / "BCData/annotations/test/positive/0.h5", [(9999, 5), (100, 120), (-4, 3)])
    return {
        "BCData/images/train/bare.png": ("annotations",),
        "BCData/images/train/broken.png": ("broken.h5",),
        "BCData/images/train/shape.png": ("shape.h5", "(3, 3)"),
        touch(root, "BCData/annotations/train/positive/77.h5"): ("image",),
        touch(root, "BCData/images/trian/1.png"): ("split", "'trian'"),
    }


def pantumor_boxes(root: Path, keys: list[str]) -> None:
    rows = [f"{Path(key).name},1,1,20,20,TUMOR CELL" for key in (*keys, "gone.tiff")]
    rows += ["HNSCC_0.tiff,9000,1,9020,20,TUMOR CELL", "HNSCC_0.tiff,-90,1,-70,20,TUMOR CELL"]
    (root / "boxes.csv").write_text("\n".join(["filename,xmin,ymin,xmax,ymax,label", *rows]))


def pantumor_faults(root: Path) -> Faults:
    shutil.copy(root / "HNSCC_0.tiff", root / "bare.tiff")
    return {"bare.tiff": ("annotations",), "gone.tiff": ("slide",)}


def manifest_rows(root: Path, keys: list[str]) -> None:
    rows = [f"{path},train,,,x" for path in (*keys, "notes.txt", "gone.png")]
    rows += ["good/1.png,train,CD3,0.5,x"]
    rows += ["../out.png,train,,,x", "b/1.png,nowhere,,,x", "b/2.png,train,CD999,,x", "b/3.png,train,,wide,x"]
    rows += ["a/1.png,train,CD3,0.5,x", "a/1.png,train,CD3,0.5,again", "b/4.png,train,,,x,left over"]
    (root / "manifest.csv").write_text("\n".join(["path,split,biomarker,mpp,label", *rows]))


def manifest_faults(root: Path) -> Faults:
    image = (root / "a/1.png").read_bytes()
    for i in range(1, 5):
        touch(root, f"b/{i}.png", image)
    touch(root, "good/1.png", image)
    return {
        "gone.png": ("file",),
        "../out.png": ("path",),
        "b/1.png": ("split", "'nowhere'"),
        "b/2.png": ("CD999",),
        "b/3.png": ("mpp", "'wide'"),
        "b/4.png": ("columns",),
        "a/1.png": ("row",),
    }


def files_under(root: Path) -> int:
    """All files under the root, links and special files included."""
    return sum(len(files) for _, _, files in os.walk(root))


HER2 = "WSI-based-dataset/train_data_wsi"
MIHIC = "MIHIC_dataset/dataset/train/Tumor"
LAYOUTS = {
    "acrobat": Layout(
        bad=lambda i, s: f"acrobat_train_pyramid_1_of_9/{900 + i}_ER_train{s}",
        suffix=".tif",
        faults=named({"x/1_ER.tif": ("path", "CASE_STAIN_SPLIT"), "x/8_CD999_train.tif": ("CD999",)}),
        twice="acrobat_train_pyramid_1_of_9/0_ER_train.tif",
    ),
    "anhir-lung": Layout(
        bad=lambda i, s: f"lung-lesion_1/scale-25pc/30-{i:03d}-CD31-3-les1{s}",
        faults=named(
            {
                "lung-lesion_1/scale-25pc/1-CD3-les1.png": ("CD3",),
                "lung-lesion_1/scale-25pc/1-les1.png": ("biomarker",),
            }
        ),
    ),
    "bcdata": Layout(
        bad=lambda i, s: f"BCData/images/train/{900 + i}{s}",
        suffix=".png",
        annotate=bcdata_points,
        faults=bcdata_faults,
        twice="BCData/images/train/0.png",
        outside=2,
    ),
    "bci": Layout(
        bad=lambda i, s: f"BCI_dataset/IHC/train/{900 + i:05d}_train_1+{s}",
        faults=named(
            {
                "BCI_dataset/IHC/train/00009_train_4+.png": ("path", "NUMBER_SPLIT_SCORE"),
                "BCI_dataset/IF/train/00009_train_1+.png": ("path", "NUMBER_SPLIT_SCORE"),
                "BCI_dataset/IHC/trian/00009_train_1+.png": ("split", "'trian'"),
                "stray.png": ("path",),
            }
        ),
        twice="BCI_dataset/IHC/train/00000_train_0.png",
    ),
    "her2-ihc-40x": Layout(
        bad=lambda i, s: f"{HER2}/class_1+/bad_{i}{s}",
        faults=named(
            {
                f"{HER2}/class_4+/1.png": ("class_4+",),
                "Patch-based-dataset/class_0/1/2.png": ("path", "class_SCORE"),
                "stray.png": ("path",),
            }
        ),
        twice=f"{HER2}/class_1+/train_0.png",
    ),
    "hnscc": Layout(
        bad=lambda i, s: f"mIHC_Data/Case{900 + i}_T1_0_0_CD3{s}",
        faults=named(
            {
                "mIHC_Data/Case1_X1_0_0_CD3.png": ("path", "CASE_REGION"),
                "mIHC_Data/Case1_T9_0_0_CD999.png": ("CD999",),
                "stray.png": ("path",),
            }
        ),
        twice="mIHC_Data/Case1_T1_0_0_CD3.png",
    ),
    "ihc4bc": Layout(
        bad=lambda i, s: f"Images/IHC/ER/Patient_0_2000/Subregion_5/bad_9{i}_1_1_1{s}",
        annotate=ihc4bc_rows,
        faults=ihc4bc_faults,
        twice="Images/IHC/ER/Patient_0_2000/Subregion_5/0_1000_11_1_2.jpg",
    ),
    "mihic": Layout(
        bad=lambda i, s: f"{MIHIC}/{900 + i:04d}-CD3-1-1{s}",
        faults=named(
            {
                f"{MIHIC}/0009-CD999-1-1.png": ("CD999",),
                f"{MIHIC}/nonsense.png": ("path", "CORE-STAIN-REGION-PATCH"),
                "MIHIC_dataset/dataset/train/Muscle/0009-CD3-1-1.png": ("Muscle",),
                "MIHIC_dataset/dataset/trian/Tumor/0009-CD3-1-1.png": ("split", "'trian'"),
                "stray.png": ("path",),
            }
        ),
        twice=f"{MIHIC}/0000-D2-40-1-1.png",
    ),
    "mist": Layout(
        bad=lambda i, s: f"ER/TrainValAB/trainB/9M_1_{i}{s}",
        faults=named(
            {
                "ER/TrainValAB/trainB/one.png": ("path", "SLIDE_COLUMN_ROW"),
                "ER/TrainValAB/trainC/9M_1_1.png": ("path", "SLIDE_COLUMN_ROW"),
                "CD3/TrainValAB/trainB/9M_1_1.png": ("CD3",),
                "stray.png": ("path",),
            }
        ),
        twice="ER/TrainValAB/trainB/60M2100640_15_18.jpg",
    ),
    "pantumor": Layout(
        bad=lambda i, s: f"bad_{i}{s}",
        suffix=".tiff",
        annotate=pantumor_boxes,
        faults=pantumor_faults,
        outside=2,
        absent=1,  # gone.tiff
        dangling="slide",
    ),
    "folder": Layout(
        bad=lambda i, s: f"train/Tumor/{i}{s}",
        faults=named({"stray.png": ("path",), "train/stray.png": ("label",)}),
    ),
    "manifest": Layout(
        bad=lambda i, s: f"bad/{i}{s}",
        annotate=manifest_rows,
        faults=manifest_faults,
        absent=2,  # gone.png and ../out.png
        dangling="file",
    ),
}


def broken_pixels(pixels: np.ndarray) -> Iterator[tuple[str, bytes, str]]:
    """(suffix, bytes, key of the error): images of every bad kind, and two truncated at many lengths."""
    for name, data, key in bad_images(pixels):
        yield Path(name).suffix, data, key
    png, jpeg = encode_png(pixels), encode_jpeg(pixels)
    for cut in np.linspace(60, len(png) * 0.9, CUTS, dtype=int):
        yield ".png", png[:cut], "pixels"
    for cut in np.linspace(700, len(jpeg) * 0.9, CUTS, dtype=int):
        yield ".jpg", jpeg[:cut], "pixels"


def write_tree(name: str, root: Path, pixels: np.ndarray) -> Card:
    """A small good dataset of the layout; its card."""
    if name in ("folder", "manifest"):
        Cutter(pixels).write(root / "a/1.png")
        Cutter(pixels).write(root / "train/Tumor/good.png")
        return Card.model_validate({"name": "mine", "reader": name, "splits": SPLITS})
    wide = np.tile(pixels, (3, 3, 1))
    write_layout(name, root, lambda side, *_: wide[:side, :side], each=1)
    return load_card(name)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_bad_file_is_quarantined_with_its_reason(
    tmp_path: Path, real_ihc: np.ndarray, name: str
) -> None:
    layout, root = LAYOUTS[name], tmp_path / "in"
    card = write_tree(name, root, real_ihc)
    faults: Faults = {}  # of which the reader's error is the reason
    for i, (suffix, data, key) in enumerate(broken_pixels(real_ihc[:64, :64])):
        faults[touch(root, layout.bad(i, layout.suffix or suffix), data)] = (key,)
    images = list(faults)
    assert len(images) > 200
    faults |= layout.faults(root)
    faults[touch(root, "notes.txt")] = ("extension", ".txt")
    reasons: dict[str, str] = {}  # of the others
    special, dangling = layout.bad(8000, layout.suffix or ".png"), layout.bad(8001, layout.suffix or ".png")
    os.mkfifo(root / special)
    reasons[special] = "a pipe, socket or device"
    (root / dangling).symlink_to("nowhere")
    if layout.dangling:
        faults[dangling] = (layout.dangling,)
    else:
        reasons[dangling] = os.strerror(errno.ENOENT)
    images += [special, dangling]
    if layout.twice:
        images.append(touch(root, f"zz/{layout.twice}", (root / layout.twice).read_bytes()))
        reasons[images[-1]] = "another file has the same patch id"
    layout.annotate(root, images)
    (root / "empty/folder").mkdir(parents=True)
    with open(os.fsencode(root) + b"/\xff.png", "wb") as odd:
        odd.write(b"x")

    report = prepare(card, root, tmp_path / "out")
    reported = dict(report.quarantined)
    assert report.found == report.read + report.passed_over.total() + len(report.quarantined)
    assert report.found == files_under(root) + layout.absent
    reader = get_reader(card, root)
    list(reader.find())  # some readers find faults only here
    for path, (key, *texts) in faults.items():
        error = refusal(reader, path)
        assert (path, error.key, error.what) == (path, key, reported.get(path))
        assert [text for text in texts if text not in error.what] == []
    for path, reason in reasons.items():
        assert reason in reported.get(path, ""), path
    others = {path: reason for path, reason in reported.items() if path not in (*faults, *reasons)}
    assert others == ({} if name == "manifest" else {"\\udcff.png": "the name is not UTF-8"})
    assert report.read > 0
    assert sum("outside" in reason for _, reason in report.left_out) == layout.outside
