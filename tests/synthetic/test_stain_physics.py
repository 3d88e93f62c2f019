"""Stains mix by the law of Beer and Lambert: an independent colour deconvolution recovers the amounts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from skimage.color import separate_stains
from skimage.color.colorconv import hax_from_rgb, hdx_from_rgb, rgb_from_hax, rgb_from_hdx, rgb_from_hed

from his2lip.data.images import stain_vectors as stains
from his2lip.synthetic.biomarkers import chromogen
from his2lip.synthetic.cases import NOMINAL_BIOLOGY, Biology, keyed_rng
from his2lip.synthetic.grid import Grid
from his2lip.synthetic.patch import Spec, render, stain
from his2lip.synthetic.scanners import Scanner
from his2lip.synthetic.tissues import build

GRID = Grid(96, 0.4531)
HALF = Biology(positive={"Ki67": 0.5, "P53": 0.5, "Cyclin-D1": 0.5, "CDK4": 0.5})
ABSORBANCE = -np.log10(1e-6)  # a stain amount of 1 in scikit-image is an absorbance of 6
# A scanner that records the light without any change.
PLAIN = Scanner(white=(1.0, 1.0, 1.0), blur=0.0, sharpen=0.0, noise=0.0, shading=0.0, jpeg=None)


def chromogen_seen(rgb: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Absorbance of the second stain by scikit-image's deconvolution."""
    return separate_stains(rgb.astype(np.float64), matrix)[..., 1] * ABSORBANCE


def test_stain_vectors_are_the_published_ones_in_scikit_image() -> None:
    published = {"H": rgb_from_hed[0], "E": rgb_from_hed[1], "DAB": rgb_from_hdx[1], "AEC": rgb_from_hax[1]}
    ours = {"H": stains.HAEMATOXYLIN, "E": stains.EOSIN, "DAB": stains.DAB, "AEC": stains.AEC}
    for name, vector in published.items():
        np.testing.assert_allclose(ours[name], vector, atol=0.006)


def test_absorbances_of_stains_add_up() -> None:
    vectors = np.stack([stains.unit(stains.HAEMATOXYLIN), stains.unit(stains.DAB)])
    alone = stains.transmit(np.array([[0.4, 0.0], [0.0, 0.7]], np.float32), vectors)
    both = stains.transmit(np.array([[0.4, 0.7]], np.float32), vectors)
    np.testing.assert_allclose(both[0], alone[0] * alone[1], rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(-np.log10(alone), axis=1), [0.4, 0.7], rtol=1e-5)


@pytest.mark.parametrize(("dye", "matrix"), [("DAB", hdx_from_rgb), ("AEC", hax_from_rgb)])
def test_deconvolution_finds_the_chromogen_where_it_was_bound_and_only_there(
    dye: str, matrix: np.ndarray
) -> None:
    scene = build("Tumor", GRID, keyed_rng(1, "scene"), HALF)
    spec = Spec(tissue="Tumor", biomarker="Ki67", stain=dye, size=96, mpp=GRID.mpp, biology=HALF)  # type: ignore[arg-type]
    light = stain(scene, spec, keyed_rng(2))
    bound = chromogen(scene, "Ki67", HALF, keyed_rng(2))
    seen = chromogen_seen(light, matrix)
    assert bound.max() > 0.5
    np.testing.assert_allclose(seen, bound * np.linalg.norm(stains.unit(stains.DAB)), atol=0.03)
    assert np.abs(seen[bound < 1e-3]).max() < 0.03


@pytest.mark.parametrize("tissue", ["Alveoli", "Background", "Immune cells", "Necrosis", "Stroma", "Tumor"])
def test_counterstain_alone_shows_no_dab(tissue: str) -> None:
    spec = Spec(tissue=tissue, stain="haematoxylin", size=96, mpp=GRID.mpp)
    scene = build(tissue, GRID, keyed_rng(3, tissue), NOMINAL_BIOLOGY)
    scene.layers["red"][:] = 0  # haemoglobin absorbs blue light, as DAB does
    assert np.abs(chromogen_seen(stain(scene, spec, keyed_rng(4)), hdx_from_rgb)).max() < 0.03


def test_glass_has_the_white_point_of_the_scanner() -> None:
    spec = Spec(tissue="Background", biomarker="CD3", scanner=PLAIN)
    assert np.median(render(spec, keyed_rng(5)), axis=(0, 1)).min() >= 253
    dimmed = replace(spec, scanner=replace(PLAIN, white=(0.9, 0.8, 0.7)))
    level = np.median(render(dimmed, keyed_rng(5)), axis=(0, 1))
    np.testing.assert_allclose(level, [229.5, 204, 178.5], atol=2)


def test_very_strong_staining_gives_dark_pixels_without_overflow() -> None:
    heavy = replace(Spec(tissue="Tumor").staining, counterstain=3.0, chromogen=3.0, thickness=2.0)
    image = render(Spec(tissue="Tumor", biomarker="P53", biology=HALF, staining=heavy), keyed_rng(6))
    assert image.dtype == np.uint8
    assert image.shape == (64, 64, 3)
    assert image.min() < 40
    assert image.std() > 20


def test_immunostaining_is_brown_and_haematoxylin_with_eosin_is_pink() -> None:
    scene = build("Stroma", GRID, keyed_rng(7), NOMINAL_BIOLOGY)
    spec = Spec(tissue="Stroma", biomarker="SMA", size=96, mpp=GRID.mpp, scanner=PLAIN)
    brown = render(spec, keyed_rng(8), scene=scene)
    pink = render(replace(spec, stain="H&E"), keyed_rng(8), scene=scene).astype(float)
    stained = brown[chromogen_seen(stain(scene, spec, keyed_rng(8).spawn(3)[1]), hdx_from_rgb) > 0.5].mean(0)
    assert stained[0] > stained[1] > stained[2]  # DAB absorbs blue most
    assert pink[..., 2].mean() > pink[..., 1].mean() + 10  # eosin absorbs green
