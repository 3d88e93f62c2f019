"""Perturbations of a real IHC image: each does what it says, alike for equal images, and none is stale."""

from __future__ import annotations

import numpy as np
import pytest
from real_tiles import tiles
from skimage.color import rgb2hed

from his2lip.data.images.stain_vectors import AEC, DAB, HAEMATOXYLIN, HED, restained
from his2lip.evaluation.encoders import ModelEncoder
from his2lip.evaluation.perturbations import (
    LEVELS,
    PERTURBATIONS,
    Perturbation,
    PerturbationKind,
    PerturbedEncoder,
)
from his2lip.models.load import load_model


@pytest.fixture
def image(real_ihc: np.ndarray) -> np.ndarray:
    return real_ihc[100:228, 100:260].copy()


def change(image: np.ndarray, kind: PerturbationKind, level: float, seed: int = 0) -> float:
    found = Perturbation(kind, level, seed)(image)
    assert (found.shape, found.dtype) == (image.shape, np.uint8)
    return float(np.abs(found.astype(float) - image).mean())


@pytest.mark.parametrize("kind", PERTURBATIONS)
def test_a_stronger_level_changes_a_real_image_more(image: np.ndarray, kind: PerturbationKind) -> None:
    changes = [change(image, kind, level) for level in LEVELS[kind]]
    assert changes == sorted(changes)
    assert changes[0] > 0.5


@pytest.mark.parametrize("kind", PERTURBATIONS)
def test_equal_images_are_perturbed_alike_and_others_by_their_own_chance(
    image: np.ndarray, kind: PerturbationKind
) -> None:
    one = Perturbation(kind, LEVELS[kind][0], seed=3)
    np.testing.assert_array_equal(one(image), one(image.copy(order="F")))
    seeds = {Perturbation(kind, LEVELS[kind][0], seed)(image).tobytes() for seed in range(6)}
    assert (len(seeds) > 1) == (kind in ("stain-intensity", "stain-hue")), "only these are random"


def test_the_published_vectors_give_the_image_back(image: np.ndarray) -> None:
    same = restained(image, HED)
    assert np.abs(same.astype(int) - image).max() <= 1


def test_stains_are_multiplied_or_divided_in_the_hed_space_of_scikit_image(image: np.ndarray) -> None:
    """Each of the four combinations occurs, and haematoxylin and DAB have the factor where both are seen."""
    before = rgb2hed(image)
    seen = (before[..., 0] > 0.015) & (before[..., 2] > 0.015) & (image.min(axis=-1) > 60)
    assert seen.sum() > 50
    combinations = set()
    for seed in range(24):
        after = rgb2hed(Perturbation("stain-intensity", 0.25, seed)(image))
        factors = [float(np.median(after[seen][:, s] / before[seen][:, s])) for s in (0, 2)]
        for factor in factors:
            assert min(abs(factor - 1.25), abs(factor - 0.8)) < 0.03
        combinations.add(tuple(factor > 1 for factor in factors))
    assert len(combinations) == 4


def test_brown_becomes_the_red_of_aec_and_blue_stays(image: np.ndarray) -> None:
    def hue(vector: tuple[float, float, float]) -> np.ndarray:
        return np.rint(255 * 10 ** -np.array([[vector]])).astype(np.uint8)

    aec = Perturbation("AEC", 1)
    red = np.array(AEC) * np.linalg.norm(DAB) / np.linalg.norm(AEC)
    np.testing.assert_allclose(aec(hue(DAB)), hue(tuple(red)), atol=2)
    np.testing.assert_allclose(aec(hue(HAEMATOXYLIN)), hue(HAEMATOXYLIN), atol=2)


def test_hue_turns_a_stain_by_the_angle_and_keeps_its_density() -> None:
    brown = np.rint(255 * 10 ** -np.array([[DAB]])).astype(np.uint8)
    angles = []
    for seed in range(40):
        density = -np.log10(np.maximum(Perturbation("stain-hue", 10, seed)(brown)[0, 0], 1) / 255)
        cosine = density @ DAB / np.linalg.norm(density) / np.linalg.norm(DAB)
        angles.append(np.degrees(np.arccos(cosine)))
        assert np.linalg.norm(density) == pytest.approx(np.linalg.norm(DAB), rel=0.02)
    assert np.median(angles) == pytest.approx(10, abs=0.7)


def test_a_perturbation_has_features_of_its_own_in_the_cache(real_ihc: np.ndarray) -> None:
    model = load_model("tiny", seed=0)
    plain = ModelEncoder(model)
    perturbed = [
        PerturbedEncoder(model, Perturbation(kind, level, seed))
        for kind in PERTURBATIONS
        for level in LEVELS[kind]
        for seed in (0, 1)
    ]
    assert len({plain.key, *(encoder.key for encoder in perturbed)}) == 1 + len(perturbed)
    square = tiles(real_ihc)[5]
    before, after = (e.encode(e.crops(square, None)) for e in (plain, perturbed[0]))
    assert np.abs(before - after).max() > 1e-4
    own = plain.encode(plain.crops(perturbed[0].perturbation(square), None))
    np.testing.assert_array_equal(after, own)
