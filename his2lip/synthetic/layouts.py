"""Writes small folders in the layouts that the datasets' authors publish, for tests and for rehearsals."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from his2lip.data.images import encode_jpeg, encode_png
from his2lip.errors import DatasetError, did_you_mean

# (side in pixels, tissue type or None, biomarker or None for H&E) -> the next image, uint8 (side, side, 3).
DrawImage = Callable[[int, str | None, str | None], np.ndarray]


def write_layout(name: str, root: Path, draw: DrawImage, *, each: int = 2) -> None:
    """Writes the layout of the card `name` under `root`, with `each` images per class.

    Irregular file and folder names of the published dataset are included. Raises DatasetError for a name
    without a layout.
    """
    if name not in _LAYOUTS:
        raise DatasetError(f"no layout is known for '{name}'", key=name, fix=did_you_mean(name, _LAYOUTS))
    _LAYOUTS[name](root, draw, each)


def layout_names() -> list[str]:
    """Names of the cards whose layout can be written."""
    return list(_LAYOUTS)


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    encode = encode_jpeg if path.suffix.lower() in (".jpg", ".jpeg") else encode_png
    path.write_bytes(encode(pixels))


def _mihic(root: Path, draw: DrawImage, each: int) -> None:
    """Folder names have mixed case and a space; two of the stains contain `-`, the separator of fields."""
    folders = ("alveoli", "background", "Immune cells", "Necrosis", "Other", "Stroma", "Tumor")
    for first, split in enumerate(("train", "val", "test")):
        for i, folder in enumerate(folders):
            for n in range(each):
                stain = ("CD3", "CD34", "D2-40", "cyclin-D1")[(i + n) % 4]
                file = f"{first * each + n:04d}-{stain}-1-{n + 1}.png"
                _save(root / "MIHIC_dataset/dataset" / split / folder / file, draw(128, folder, stain))


def _bci(root: Path, draw: DrawImage, each: int) -> None:
    """The HER2 score is in the file name; each IHC image has an H&E twin in another folder."""
    for split in ("train", "test"):
        for i, score in enumerate(("0", "1+", "2+", "3+")):
            for n in range(each):
                file = f"{i * each + n:05d}_{split}_{score}.png"
                _save(root / "BCI_dataset/IHC" / split / file, draw(256, None, "HER2"))
                _save(root / "BCI_dataset/HE" / split / file, draw(256, None, None))


def _mist(root: Path, draw: DrawImage, each: int) -> None:
    """Folders that end in A have H&E, in B have IHC; the first field of a file name is the slide."""
    for stain in ("HER2", "Ki67", "ER", "PR"):
        for split in ("train", "val"):
            for n in range(each):
                file = f"{60 + n}M21006{40 + n}_15_{18 + n}.jpg"
                _save(root / stain / "TrainValAB" / f"{split}B" / file, draw(256, None, stain))
                _save(root / stain / "TrainValAB" / f"{split}A" / file, draw(256, None, None))


def _her2_ihc_40x(root: Path, draw: DrawImage, each: int) -> None:
    """The two splits that the authors publish, by slide and by patch; their folders have two spellings."""
    for base, partition in (("Patch-based-dataset", "patch"), ("WSI-based-dataset", "wsi")):
        for split in ("train", "test"):
            for i, label in enumerate(("class_0", "class_1+", "class_2+", "class_3+")):
                for n in range(each):
                    folder = f"{split}_data_{partition}" if i % 2 else split
                    _save(root / base / folder / label / f"{split}_{n}.png", draw(256, None, "HER2"))


def _hnscc(root: Path, draw: DrawImage, each: int) -> None:
    """Two layouts in one folder, the second with `-` or `_` after mIHC_Data; PanCK is also spelt PCK.

    Hematoxylin images have the counterstain only. Masks are in a folder, or have a prefix.
    """
    for n in range(1, each + 1):
        for letter in "TMS":
            for stain in ("Hematoxylin", "CD3", "CD8", "FoxP3", "PCK" if n % 2 else "PanCK"):
                pixels = draw(256, None, None if stain == "Hematoxylin" else stain)
                field = f"{letter}{n}_0_0_{stain}.png"
                if n % 2:
                    _save(root / f"mIHC_Data/Case{n}_{field}", pixels)
                else:
                    _save(root / f"Case{n}/mIHC_Data{'_' if letter == 'T' else '-'}{field}", pixels)
        _save(root / f"Segmentation/Case{n}_T{n}_0_0_CD3.png", draw(256, None, "CD3"))
        _save(root / f"Case{n}/Segmentation-T{n}_0_0_CD3.png", draw(256, None, "CD3"))


def _ihc4bc(root: Path, draw: DrawImage, each: int) -> None:
    """HER2 is spelt Her2; a table per biomarker has the status (a, 0 or d) and the nuclei of each image.

    The second field of an image's name is the patient; the number in the name of the folder is another. The
    third column of a table is the number of nuclei of the H&E twin.
    """
    for stain in ("ER", "Her2", "Ki67", "PR"):
        rows = [["name", "status", "nuclei", "mean DAB"]]
        for n in range(4 * each):
            name = f"{n}_{1000 + n}_11_1_2"
            folder = root / f"Images/IHC/{stain}/Patient_{n}_{2000 + n}/Subregion_5"
            _save(folder / f"{name}.jpg", draw(256, None, stain))
            status = "a0da"[n % 4]
            stained, plain = {0: (2, 2), 4: (1, 9), 7: (1, 3)}.get(n, (0, 4))  # 50, 10 and 25 %
            dab = [0.7, 0.6][:stained] + [0.01, 0.02, *[0.01] * plain][:plain]
            rows.append([name, status, "100", " ".join(map(str, dab))])
        table = root / f"Labels/{stain}_labels.csv"
        table.parent.mkdir(parents=True, exist_ok=True)
        with table.open("w", newline="") as out:
            csv.writer(out).writerows(rows)


def _bcdata(root: Path, draw: DrawImage, each: int) -> None:
    """Points (x, y) in HDF5 under `coordinates`, int64 (M, 2); positive and negative points in two files."""
    import h5py

    points = {"positive": [(100, 120), (5, 9), (300, 310)], "negative": [(200, 40), (330, 100)]}
    for split in ("train", "validation", "test"):
        for n in range(each):
            _save(root / f"BCData/images/{split}/{n}.png", draw(384, None, "Ki67"))
            for kind, places in points.items():
                path = root / f"BCData/annotations/{split}/{kind}/{n}.h5"
                path.parent.mkdir(parents=True, exist_ok=True)
                with h5py.File(path, "w") as file:
                    file["coordinates"] = np.array(places, np.int64)


def _anhir(root: Path, draw: DrawImage, each: int) -> None:
    """Each image at two scales; the stain is a token of the file name; one section of each set is H&E."""
    for number in range(1, each + 1):
        of_set, region = ("lung-lesion", "les") if number % 2 else ("lung-lobes", "lob")
        for stain in ("CD31-3", "proSPC-4", "Ki67-7", "Cc10-5", "He"):
            for scale, side in (("scale-5pc", 96), ("scale-25pc", 480)):
                file = f"29-041-Izd2-w35-{stain}-{region}{number}.jpg"
                _save(root / f"{of_set}_{number}" / scale / file, draw(side, None, stain[:-2] or None))


def _acrobat(root: Path, draw: DrawImage, each: int) -> None:
    """Pyramidal TIFF, `.tif` and `.tiff`; one section of each case is H&E; the right third is bare glass."""
    for n in range(each):
        for stain in ("HE", "ER", "PGR", "HER2", "KI67"):
            for split, folder, suffix in (
                ("train", "acrobat_train_pyramid_1_of_9", "tif"),
                ("val", "acrobat_validation_pyramid_1_of_1", "tiff"),
            ):
                pixels = np.full((672, 1008, 3), 244, np.uint8)
                pixels[:, :672] = draw(672, None, None if stain == "HE" else stain)
                path = root / folder / f"{n}_{stain}_{split}.{suffix}"
                write_pyramid(path, pixels, mpp=0.92)


def _pantumor(root: Path, draw: DrawImage, each: int) -> None:
    """Slides of two tumour types, with annotated nuclei as boxes in a COCO file."""
    names = ("IMMUNE CELL", "NON-TUMOR CELL", "TUMOR CELL")
    pictures: list[dict] = []
    boxes: list[dict] = []
    for n in range(each):
        file = f"{('HNSCC', 'NSCLC')[n % 2]}_{n}.tiff"
        write_pyramid(root / file, draw(1024, None, "CD3"), mpp=0.25)
        pictures.append({"id": n, "file_name": file})
        for i in range(9):
            box = [40 + 100 * i, 60 + 90 * i, 20, 20]
            boxes.append({"id": len(boxes), "image_id": n, "category_id": i % 3, "bbox": box})
    categories = [{"id": i, "name": name} for i, name in enumerate(names)]
    tree = {"images": pictures, "annotations": boxes, "categories": categories}
    (root / "annotations.json").write_text(json.dumps(tree))


def write_pyramid(path: Path, pixels: np.ndarray, *, mpp: float) -> None:
    """Writes uint8 (H, W, 3) as a tiled, pyramidal TIFF of three levels, as scanners do.

    mpp  microns per pixel of the largest level
    """
    import tifffile

    path.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"photometric": "rgb", "tile": (256, 256), "compression": "zlib"}
    options["compressionargs"] = {"level": 1}
    with tifffile.TiffWriter(path) as out:
        for step in (1, 2, 4):
            per_cm = 10_000 / (mpp * step)
            kind: dict[str, Any] = {"resolution": (per_cm, per_cm), "resolutionunit": "CENTIMETER"}
            kind["subfiletype"] = int(step > 1)
            out.write(np.ascontiguousarray(pixels[::step, ::step]), **options, **kind)


_LAYOUTS: dict[str, Callable[[Path, DrawImage, int], None]] = {
    "acrobat": _acrobat,
    "anhir-lung": _anhir,
    "bcdata": _bcdata,
    "bci": _bci,
    "her2-ihc-40x": _her2_ihc_40x,
    "hnscc": _hnscc,
    "ihc4bc": _ihc4bc,
    "mihic": _mihic,
    "mist": _mist,
    "pantumor": _pantumor,
}
