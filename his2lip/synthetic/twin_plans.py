"""The plans of the ten twins: the rows of each, like those of the real files and labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from his2lip import taxonomy
from his2lip.synthetic.biomarkers import HER2_READINGS, Reading
from his2lip.synthetic.cases import keyed_rng
from his2lip.synthetic.rows import TwinRow

FIELD_UM = 29.0  # side of a MIHIC patch in microns: 128 px at 0.2264 microns per pixel
# Microns per pixel, as on the cards; ANHIR's lesions at scale-25pc, its lobes at scale-100pc.
HNSCC_MPP, BCI_MPP, MIST_MPP, ACROBAT_MPP = 0.5, 0.46, 0.4661, 0.92
LESION_MPP, LOBE_MPP = 0.696, 1.274
DETAIL, REGION = 64, 128  # sides in pixels of small and of large patches


@dataclass(frozen=True, slots=True)
class TwinPlan:
    """What all rows of one twin have in common. `scale` is a factor of its numbers of cases."""

    name: str
    seed: int
    scale: float

    def count(self, base: int) -> int:
        """`base` times the scale, at least 1."""
        return max(1, round(base * self.scale))

    def row(self, split: str, case: str, slide: str, path: str, **rest: Any) -> TwinRow:
        """A row of this twin. Defaults: DAB, 64 px over 29 microns, PNG, its own field of tissue."""
        defaults: dict[str, Any] = {
            "marker": None, "stain": "DAB", "size": DETAIL, "mpp": FIELD_UM / DETAIL, "format": "png",
            "field": path, "columns": {},
        }  # fmt: skip
        return TwinRow(
            seed=self.seed, dataset=self.name, split=split, case=case, slide=slide,
            patch_id=f"{self.name}/{path}", **(defaults | rest),
        )  # fmt: skip


def _mihic(plan: TwinPlan) -> Iterator[TwinRow]:
    """One patch of every (tissue type, biomarker) from every case; one slide per case and biomarker."""
    first = 0
    for split, cases in (("train", 28), ("val", 3), ("test", 6)):
        for case in range(first, first := first + plan.count(cases)):
            for tissue, marker in product(taxonomy.TISSUES, taxonomy.MIHIC_BIOMARKERS):
                columns: dict[str, Any] = {"tissue": tissue, "label": tissue, "biomarker": marker}
                slide, region = f"{case:04d}-{marker}", taxonomy.tissue_id(tissue)
                columns |= {"case_id": f"{case:04d}", "slide_id": slide, "region_id": f"{slide}-{region}"}
                columns |= {"mpp": FIELD_UM / DETAIL}
                yield plan.row(
                    split, f"{case:04d}", marker, f"{split}/{tissue}/{slide}-{region}-1.png",
                    shows=tissue, marker=marker, columns=columns,
                )  # fmt: skip


# Annotated class -> (tissue type of the scene, kind of the cell in the middle), used in turn.
_PANTUMOR_CELLS = {
    "tumour cell": (("Tumor", "tumour"),),
    "immune cell": (("Immune cells", "T"), ("Tumor", "T")),
    "other cell": (("Stroma", "fibroblast"), ("Stroma", "endothelium"), ("Immune cells", "B")),
}


def _pantumor(plan: TwinPlan) -> Iterator[TwinRow]:
    """CD3: one patch around each annotated nucleus; region_id is the tumour type."""
    for organ, number in product(("HNSCC", "NSCLC", "TNBC", "GC"), range(plan.count(3))):
        slide = f"{organ}_{number:02d}"
        for (label, cells), k in product(_PANTUMOR_CELLS.items(), range(4)):
            shows, kind = cells[k % len(cells)]
            columns: dict[str, Any] = {
                "label": label,
                "biomarker": "CD3",
                "slide_id": slide,
                "region_id": organ,
            }
            columns |= {"mpp": FIELD_UM / DETAIL}
            yield plan.row(
                "test", slide, slide, f"{slide}.svs#{label.split()[0]}{k}",
                shows=shows, marker="CD3", centre=kind, columns=columns,
                reading=Reading(centre=True) if label == "immune cell" else None,
            )  # fmt: skip


def _bcdata(plan: TwinPlan) -> Iterator[TwinRow]:
    """Ki67: patches around positive and negative points, and of tissue without points; no cases or slides."""
    number = 0
    for split, images in (("train", 8), ("validation", 4), ("test", 16)):
        for image in range(number, number := number + plan.count(images)):
            for label, k in product(("positive", "negative", "none"), range(2)):
                shows = ("Stroma", "Immune cells")[k] if label == "none" else "Tumor"
                yield plan.row(
                    split, f"image{image}", "Ki67", f"images/{split}/{image}.png#{label}-{k}", shows=shows,
                    marker="Ki67", centre=None if label == "none" else "tumour",
                    reading=None if label == "none" else Reading(centre=label == "positive"),
                    columns={"label": label, "biomarker": "Ki67"},
                )  # fmt: skip


_HNSCC_REGIONS: dict[str, tuple[str, str, tuple[tuple[str, Any], ...]]] = {
    "core": ("T", "Tumor", (("cohesion", 0.99), ("infiltrate", 0.02), ("glands", 0.0))),
    "margin": ("M", "Tumor", (("cohesion", 0.5), ("infiltrate", 0.12), ("glands", 0.0))),
    "stroma": ("S", "Stroma", ()),
}
_HNSCC_STAINS = ("Hematoxylin", "CD3", "CD8", "FoxP3", "PanCK")


def _hnscc(plan: TwinPlan) -> Iterator[TwinRow]:
    """Each field of eight cases in serial stains: the counterstain only, then biomarkers in red AEC."""
    for case, (label, (letter, shows, biology)) in product(range(plan.count(8)), _HNSCC_REGIONS.items()):
        for name in _HNSCC_STAINS:
            marker = None if name == "Hematoxylin" else taxonomy.biomarker(name)
            place = f"Case{case + 1}_{letter}1_0_0"
            stain = "haematoxylin" if marker is None else "AEC"
            columns: dict[str, Any] = {"label": label, "biomarker": marker, "mpp": HNSCC_MPP}
            columns |= {"case_id": f"Case{case + 1}", "region_id": place}
            yield plan.row(
                "test", f"Case{case + 1}", name, f"{place}_{name}.png", shows=shows, marker=marker,
                stain=stain, size=REGION, mpp=HNSCC_MPP, field=place, biology=biology, columns=columns,
            )  # fmt: skip


# Ranges of the share of stained nuclei, well away from the thresholds: 1 % for ER and PR, 20 % for Ki67.
_IHC4BC_SHARES = {
    "ER": {"negative": (0.0, 0.0), "positive": (0.15, 0.98)},
    "PR": {"negative": (0.0, 0.0), "positive": (0.15, 0.9)},
    "Ki67": {"negative": (0.02, 0.10), "positive": (0.32, 0.85)},
}


def _ihc4bc(plan: TwinPlan) -> Iterator[TwinRow]:
    """Positive and negative cases of three biomarkers, which differ in the share of stained nuclei."""
    case = 0
    for split, cases in (("train", 6), ("select", 3), ("test", 12)):
        for number in range(case, case := case + max(2, plan.count(cases))):
            patient = f"Patient_{number}_{1009 + number}"
            for (marker, shares), k in product(_IHC4BC_SHARES.items(), range(2)):
                label = ("negative", "positive")[(number + (marker != "Ki67")) % 2]
                path = f"{marker}/{patient}/Subregion_{k}/{k}_{1009 + number}_{k}_0_0.jpg"
                share = float(keyed_rng(plan.seed, path).uniform(*shares[label]))
                case_id = str(1009 + number)
                columns: dict[str, Any] = {"label": label, "biomarker": marker, "case_id": case_id}
                columns |= {"slide_id": f"{case_id}/{marker}", "region_id": f"{case_id}/{marker}/{k}"}
                if marker == "Ki67" and label == "negative" and share >= 0.05:
                    columns["label"] = "5 to 20 %"
                yield plan.row(
                    split, patient, marker, path, shows="Tumor", marker=marker, size=REGION, format="jpeg",
                    reading=Reading(share=share), columns=columns,
                )  # fmt: skip


def _her2(plan: TwinPlan) -> Iterator[TwinRow]:
    """HER2 0 to 3+, without slide ids. The split by patches has a test set of its own."""
    number = 0
    for split, folder, each in (
        ("train", "train_data_wsi", 10),
        ("select", "train_data_wsi", 5),
        ("test", "test_data_wsi", 24),
        ("patch_test", "test_data_patch", 4),
    ):
        for score, k in product(HER2_READINGS, range(plan.count(each))):
            path = f"{folder}/class_{score}/{number:05d}.png"
            number += 1
            yield plan.row(
                split, f"{split}{k}", score, path, shows="Tumor", marker="HER2", size=REGION,
                reading=HER2_READINGS[score], biology=(("cohesion", 0.95),),
                columns={"label": score, "score": score, "biomarker": "HER2"},
            )  # fmt: skip


_BREAST = ("HER2", "Ki67", "ER", "PR")


def _bci(plan: TwinPlan) -> Iterator[TwinRow]:
    """HER2 0 to 3+. twin_id names the H&E image of the same field, which is not in the shards."""
    number = 0
    for split, folder, each in (("train", "train", 6), ("select", "train", 3), ("test", "test", 16)):
        for score, k in product(HER2_READINGS, range(plan.count(each))):
            name, number = f"{folder}/{number:05d}_{folder}_{score}.png", number + 1
            columns: dict[str, Any] = {
                "score": score,
                "label": score,
                "biomarker": "HER2",
                "twin_id": f"bci/HE/{name}",
                "mpp": BCI_MPP,
            }
            yield plan.row(
                split, f"{split}{k}", score, f"IHC/{name}", shows="Tumor", marker="HER2", size=REGION,
                mpp=BCI_MPP, field=name, reading=HER2_READINGS[score], columns=columns,
            )  # fmt: skip


def _mist(plan: TwinPlan) -> Iterator[TwinRow]:
    """Four biomarkers. twin_id names the H&E image of the same field, which is not in the shards."""
    number = 0
    for split, folder, slides in (("train", "train", 5), ("select", "train", 3), ("val", "val", 12)):
        for slide, marker in product(range(number, number := number + plan.count(slides)), _BREAST):
            case, name = f"67M21{slide:05d}", f"67M21{slide:05d}_15_{taxonomy.biomarker_id(marker)}.jpg"
            columns: dict[str, Any] = {
                "biomarker": marker,
                "label": marker,
                "slide_id": case,
                "mpp": MIST_MPP,
                "twin_id": f"mist/{marker}/{folder}A/{name}",
            }
            yield plan.row(
                split, case, marker, f"{marker}/{folder}B/{name}", shows="Tumor", marker=marker, size=REGION,
                mpp=MIST_MPP, format="jpeg", field=name, reading=_breast_reading(plan, marker, name),
                columns=columns,
            )  # fmt: skip


def _breast_reading(plan: TwinPlan, marker: str, key: str) -> Reading:
    """The staining of a tumour that is positive in most cases, so that images reveal the biomarker."""
    rng = keyed_rng(plan.seed, plan.name, "reading", marker, key)
    if marker == "HER2":
        return HER2_READINGS[str(rng.choice(["1+", "2+", "3+"], p=[0.2, 0.3, 0.5]))]
    low, high, strength = {"Ki67": (0.1, 0.5, 1.1), "ER": (0.7, 1.0, 1.0), "PR": (0.3, 0.8, 0.8)}[marker]
    return Reading(share=float(rng.uniform(low, high)), strength=strength)


def _anhir(plan: TwinPlan) -> Iterator[TwinRow]:
    """Lung lesions and lobes at low magnification, one image per biomarker."""
    for number in range(plan.count(16)):
        part, region, shows, scale, mpp = (
            ("lung-lesion", "les1", "Tumor", "scale-25pc", LESION_MPP),
            ("lung-lobes", "lob1", "Alveoli", "scale-100pc", LOBE_MPP),
        )[number % 2]
        animal = f"29-{number:03d}-Izd2-w35"
        for token in ("CD31-3", "Ki67-7", "proSPC-4", "Cc10-5"):
            marker, slide = taxonomy.find_biomarker(token), f"{animal}-{token}-{region}"
            columns: dict[str, Any] = {
                "biomarker": marker,
                "label": marker,
                "case_id": animal,
                "slide_id": slide,
            }
            columns |= {"region_id": f"{animal}-{region}", "mpp": mpp}
            yield plan.row(
                "test", animal, token, f"{part}_{number // 2 + 1}/{scale}/{slide}.jpg", shows=shows,
                marker=marker, size=REGION, mpp=mpp, format="jpeg", field=animal,
                biology=(("cohesion", 0.85), ("size", 0.9)), columns=columns,
            )  # fmt: skip


_ACROBAT_SPLITS = (
    ("train", "train", 3), ("select", "train", 2), ("test", "train", 6), ("validation", "val", 2)
)  # fmt: skip


def _acrobat(plan: TwinPlan) -> Iterator[TwinRow]:
    """Two tiles of a slide at 10x for each of four biomarkers of each case."""
    number = 0
    for split, folder, cases in _ACROBAT_SPLITS:
        for case in range(number, number := number + plan.count(cases)):
            for token, tile in product(("KI67", "ER", "PGR", "HER2"), range(2)):
                marker, slide = taxonomy.biomarker(token), f"{case}_{token}_{folder}"
                columns: dict[str, Any] = {
                    "biomarker": marker,
                    "label": marker,
                    "case_id": str(case),
                    "slide_id": slide,
                }
                columns |= {"mpp": ACROBAT_MPP, "x": 0, "y": REGION * tile}
                yield plan.row(
                    split, str(case), token, f"{slide}.tif#0-{REGION * tile}", shows="Tumor", marker=marker,
                    size=REGION, mpp=ACROBAT_MPP, field=f"{case}/{tile}",
                    reading=_breast_reading(plan, marker, str(case)), biology=(("cohesion", 0.7),),
                    columns=columns,
                )  # fmt: skip


PLANS: dict[str, Callable[[TwinPlan], Iterator[TwinRow]]] = {
    "mihic": _mihic,
    "pantumor": _pantumor,
    "bcdata": _bcdata,
    "hnscc": _hnscc,
    "ihc4bc": _ihc4bc,
    "her2-ihc-40x": _her2,
    "bci": _bci,
    "mist": _mist,
    "anhir-lung": _anhir,
    "acrobat": _acrobat,
}
