"""Generated biology is the published one: who expresses what in the alveolus, and how often markers occur."""

from __future__ import annotations

import numpy as np

from his2lip.data.images import DAB, tilt
from his2lip.synthetic.biomarkers import PROGRAMMES, chromogen
from his2lip.synthetic.cases import Biology, draw_biology, keyed_rng
from his2lip.synthetic.cells import NAMES
from his2lip.synthetic.grid import Grid
from his2lip.synthetic.tissues import build
from his2lip.synthetic.twins import twin_rows

GRID = Grid(96, 0.4531)
CASES = [draw_biology(keyed_rng(0, "breast", i), "breast").positive for i in range(1500)]


def test_a_breast_carcinoma_has_a_ki67_of_about_a_fifth_and_a_lung_carcinoma_of_two_fifths() -> None:
    lung = [draw_biology(keyed_rng(0, "lung", i)).positive["Ki67"] for i in range(1500)]
    assert abs(np.mean([case["Ki67"] for case in CASES]) - 0.21) < 0.02
    assert abs(np.mean(lung) - 0.40) < 0.02


def test_er_negative_cases_are_rarely_pr_positive() -> None:
    negative = [case for case in CASES if case["ER"] == 0]
    assert 0.2 < len(negative) / len(CASES) < 0.3
    assert 0 < np.mean([case["PR"] > 0 for case in negative]) < 0.04
    assert np.mean([case["PR"] > 0 for case in CASES if case["ER"] > 0]) > 0.5


def test_the_alveolar_lining_stains_without_gaps_for_cytokeratin_and_for_d2_40() -> None:
    for marker in ("PanCK", "D2-40"):
        for seed in range(3):
            scene = build("Alveoli", GRID, keyed_rng(seed, "Alveoli"), Biology())
            lining = scene.layers["lining"] > 0.8
            assert (chromogen(scene, marker, Biology(), keyed_rng(1))[lining] > 0.1).mean() > 0.9
            assert scene.layers["lymphatic"].max() == 0, "septa hold no lymphatics"


def test_alveolar_macrophages_lie_in_the_air_spaces() -> None:
    found = 0
    for seed in range(12):
        scene = build("Alveoli", GRID, keyed_rng(seed, "air"), Biology())
        for row in np.flatnonzero(scene.cells.kind == NAMES.index("macrophage")):
            found += 1
            assert GRID.sample(scene.layers["collagen"], scene.cells.centre[row][None])[0] < 0.1
    assert found > 0


def test_foxp3_cells_are_scattered_and_fhl2_is_no_membrane_protein() -> None:
    scene = build("Immune cells", Grid(192, 0.4531), keyed_rng(0), Biology())
    stained = chromogen(scene, "FOXP3", Biology(), keyed_rng(1)) > 0.3
    assert 0 < (stained & (scene.maps.nucleus > 0.5)).sum() / (scene.maps.nucleus > 0.5).sum() < 0.15
    assert all(bound.membrane == 0 for bound in PROGRAMMES["FHL2"].cells.values())
    assert PROGRAMMES["FHL2"].cells["tumour"].nucleus > 0


def test_cases_differ_in_the_hue_of_dab_and_slides_of_one_case_less() -> None:
    hues: dict[str, list[np.ndarray]] = {}
    for row in twin_rows("mihic")[:300]:
        hues.setdefault(row.case, []).append(tilt(DAB, row.spec().staining.tilts[1]))
    within = np.mean([np.std(own, axis=0).mean() for own in hues.values() if len(own) > 3])
    between = np.std([np.mean(own, axis=0) for own in hues.values() if len(own) > 3], axis=0).mean()
    assert between > 1.3 * within
