"""Each biomarker stains in its pattern, on its own kinds of cell, and in the share that a label sets."""

from __future__ import annotations

import numpy as np
import pytest

from his2lip.synthetic.biomarkers import HER2_READINGS, PROGRAMMES, Reading, chromogen
from his2lip.synthetic.cases import Biology, keyed_rng
from his2lip.synthetic.cells import NAMES
from his2lip.synthetic.grid import Grid
from his2lip.synthetic.scene import Scene
from his2lip.synthetic.tissues import build
from his2lip.taxonomy import BIOMARKERS, MIHIC_BIOMARKERS, TISSUES

GRID = Grid(128, 0.4531)
BIOLOGY = Biology(
    activated=0.6, positive=dict.fromkeys(("Ki67", "P53", "Cyclin-D1", "CDK4", "ER", "PR"), 0.6)
)


def scene_of(tissue: str, seed: int = 0) -> Scene:
    return build(tissue, GRID, keyed_rng(seed, tissue), BIOLOGY)


def bound(scene: Scene, marker: str, reading: Reading | None = None) -> np.ndarray:
    return chromogen(scene, marker, BIOLOGY, keyed_rng(9, marker), reading)


def inside(amount: np.ndarray, mask: np.ndarray) -> float:
    """The share of the chromogen that is inside a soft mask."""
    return float((amount * mask).sum() / amount.sum())


def is_kind(scene: Scene, *kinds: str) -> np.ndarray:
    """1 for each cell of one of these kinds, else 0: float32 (N,)."""
    return np.isin(scene.cells.kind, [NAMES.index(kind) for kind in kinds]).astype(np.float32)


def nuclei_of(scene: Scene, *kinds: str) -> np.ndarray:
    """A soft mask of the nuclei of these kinds of cell."""
    return scene.maps.nucleus * is_kind(scene, *kinds)[scene.maps.nucleus_owner]


def bodies_of(scene: Scene, *kinds: str) -> np.ndarray:
    """A soft mask of the bodies of these kinds of cell."""
    return scene.maps.body * is_kind(scene, *kinds)[scene.maps.body_owner]


def test_every_biomarker_of_the_taxonomy_can_be_drawn() -> None:
    assert set(PROGRAMMES) == set(BIOMARKERS)


def test_the_twelve_biomarkers_of_mihic_have_the_four_published_patterns() -> None:
    patterns = {
        "nuclear": {"Ki67", "P53", "Cyclin-D1", "CDK4"},
        "membranous": {"CD3", "CD20", "CD38", "CD68"},
        "endothelial": {"CD34", "D2-40"},
        "stromal": {"FAP", "SMA"},
    }
    for pattern, markers in patterns.items():
        assert {m for m in MIHIC_BIOMARKERS if PROGRAMMES[m].pattern == pattern} == markers


@pytest.mark.parametrize("marker", ["Ki67", "P53", "Cyclin-D1"])
def test_nuclear_stains_are_in_tumour_nuclei(marker: str) -> None:
    scene = scene_of("Tumor")
    amount = bound(scene, marker)
    assert inside(amount, scene.maps.nucleus) > 0.93
    assert inside(amount, nuclei_of(scene, "tumour")) > 0.85


@pytest.mark.parametrize(
    ("marker", "kind"), [("CD3", "T"), ("CD20", "B"), ("CD38", "plasma"), ("CD68", "macrophage")]
)
def test_surface_stains_are_on_their_kind_of_cell_and_outside_its_nucleus(marker: str, kind: str) -> None:
    amounts, on_cells, on_nuclei = 0.0, 0.0, 0.0
    for seed in range(4):
        scene = scene_of("Immune cells", seed)
        amount = bound(scene, marker)
        # A membrane is a ridge on the border, so half of its soft profile is outside the body.
        own = is_kind(scene, kind)[scene.maps.body_owner]
        amounts += amount.sum()
        on_cells += (amount * own).sum()
        on_nuclei += (amount * scene.maps.nucleus).sum()
    assert on_cells / amounts > 0.75
    assert on_nuclei / amounts < 0.45


def test_t_cell_marker_leaves_tumour_cells_unstained() -> None:
    scene = scene_of("Tumor")
    tumour = nuclei_of(scene, "tumour") > 0.5
    assert bound(scene, "CD3")[tumour].mean() < 0.03


def test_endothelial_stains_are_on_the_lining_of_their_own_kind_of_vessel() -> None:
    blood = lymph = 0
    for seed in range(12):
        scene = scene_of("Stroma", seed)
        for marker, layer, kind in (
            ("CD34", "endothelium", "endothelium"),
            ("D2-40", "lymphatic", "lymphatic"),
        ):
            amount, lining = bound(scene, marker), scene.layers[layer]
            if lining.max() < 0.5:
                assert amount.max() < 0.2
                continue
            blood, lymph = blood + (marker == "CD34"), lymph + (marker == "D2-40")
            near = np.maximum(np.minimum(1.5 * lining, 1), is_kind(scene, kind)[scene.maps.body_owner])
            assert inside(amount, near) > 0.8
    assert blood >= 3
    assert lymph >= 3


def test_stromal_stains_are_in_stroma_and_not_in_tumour_nests() -> None:
    tumour, stroma = scene_of("Tumor"), scene_of("Stroma")
    for marker in ("FAP", "SMA"):
        nest = bodies_of(tumour, "tumour") > 0.5
        assert bound(tumour, marker)[nest].mean() < 0.25 * bound(stroma, marker).mean()
        assert inside(bound(stroma, marker), mask_of_stroma(stroma)) > 0.9


def mask_of_stroma(scene: Scene) -> np.ndarray:
    """Fibres, vessel walls, and all pixels that belong to spindle cells."""
    spindle = is_kind(scene, "fibroblast", "myofibroblast")[scene.maps.body_owner]
    return np.maximum.reduce([scene.layers["muscle"], (scene.layers["collagen"] > 0.05) * 1.0, spindle])


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_the_share_of_stained_tumour_nuclei_is_the_one_that_is_set(share: float) -> None:
    scene = scene_of("Tumor")
    amount = bound(scene, "ER", Reading(share=share))
    rows = np.flatnonzero(scene.cells.kind == NAMES.index("tumour"))
    owner = scene.maps.nucleus_owner
    core = scene.maps.depth < 0.6
    seen = [r for r in rows if (core & (owner == r)).sum() > 8]
    stained = sum(amount[core & (owner == r)].mean() > 0.1 for r in seen)
    assert len(seen) > 10
    assert abs(stained / len(seen) - share) < 0.25  # cells outside the field count in the share too
    if share in (0.0, 1.0):
        assert stained == share * len(seen)


def test_her2_grades_rise_in_amount_and_completeness_of_membranes() -> None:
    scene = scene_of("Tumor")
    membrane = scene.maps.membrane * bodies_of(scene, "tumour") > 0.6
    means = [bound(scene, "HER2", HER2_READINGS[g])[membrane].mean() for g in ("0", "1+", "2+", "3+")]
    covered = [
        (bound(scene, "HER2", HER2_READINGS[g])[membrane] > 0.08).mean() for g in ("0", "1+", "2+", "3+")
    ]
    assert means == sorted(means)
    assert means[3] > 2 * means[2] > 4 * means[1] * 0.9
    assert covered[0] < 0.05 < covered[1] < covered[2] <= covered[3]
    assert covered[3] > 0.85


@pytest.mark.parametrize("tissue", TISSUES)
@pytest.mark.parametrize("size", [48, 64, 150])
def test_every_tissue_builds_at_any_size(tissue: str, size: int) -> None:
    scene = build(tissue, Grid(size, 0.7), keyed_rng(0, tissue, size), BIOLOGY)
    for field in (scene.tissue, scene.maps.nucleus, scene.maps.body, scene.maps.membrane):
        assert field.shape == (size, size)
        assert field.min() >= 0
        assert field.max() <= 1.001


def test_tissue_types_differ_in_the_area_of_tissue_and_of_nuclei() -> None:
    living = set(NAMES) - {"ghost"}
    covered = {tissue: scene_of(tissue).tissue.mean() for tissue in TISSUES}
    nuclear = {tissue: nuclei_of(scene_of(tissue), *living).mean() for tissue in TISSUES}
    assert covered["Background"] == 0
    assert covered["Alveoli"] < 0.7 < covered["Tumor"]
    assert nuclear["Background"] == 0
    assert nuclear["Immune cells"] > 0.35
    assert nuclear["Necrosis"] < 0.2
    assert nuclear["Stroma"] < nuclear["Tumor"]
