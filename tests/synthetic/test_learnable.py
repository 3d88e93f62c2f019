"""Tissue types of other cases cannot be predicted from the mean colour, but from the texture."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from his2lip.synthetic.rows import pixels
from his2lip.synthetic.twins import twin_rows


@pytest.fixture(scope="module")
def mihic() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images, uint8 (N, 64, 64, 3), and tissue types (N,) of 8 training cases, then of 3 test cases."""
    rows = [r for r in twin_rows("mihic") if r.split == "test" or (r.split == "train" and r.case < "0008")]
    rows = [r for r in rows if r.case < "0034"]
    images = np.stack([pixels(r) for r in rows])
    tissue = np.array([r.columns["tissue"] for r in rows])
    train = np.array([r.split == "train" for r in rows])
    return images[train], tissue[train], images[~train], tissue[~train]


def texture(images: np.ndarray) -> np.ndarray:
    """(N, F) features of edges at three scales and in two directions, and the spread of darkness."""
    dark = -np.log10((images[..., 0].astype(np.float32) + 1) / 256)
    features = [dark.std((1, 2)), np.percentile(dark, 95, axis=(1, 2)) - np.percentile(dark, 5, axis=(1, 2))]
    for sigma in (0.7, 1.5, 3.0):
        blob = ndimage.gaussian_laplace(dark, (0, sigma, sigma)) * sigma**2
        features += [blob.std((1, 2)), (blob**3).mean((1, 2)), np.percentile(blob, 2, axis=(1, 2))]
        smooth = ndimage.gaussian_filter(dark, (0, sigma, sigma))
        dy, dx = np.gradient(smooth, axis=(1, 2))
        xx, yy, xy = (dx * dx).mean((1, 2)), (dy * dy).mean((1, 2)), (dx * dy).mean((1, 2))
        features += [np.log(xx + yy + 1e-9), np.hypot(xx - yy, 2 * xy) / (xx + yy + 1e-9)]
        features.append((dark > dark.mean((1, 2), keepdims=True) + 0.1 * sigma).mean((1, 2)))
    return np.stack(features, -1)


def test_mean_colour_predicts_the_tissue_type_with_a_macro_f1_below_one_half(
    mihic: tuple[np.ndarray, ...],
) -> None:
    images, tissue, other_images, other_tissue = mihic
    classifier = KNeighborsClassifier(15).fit(images.mean((1, 2)), tissue)
    score = f1_score(other_tissue, classifier.predict(other_images.mean((1, 2))), average="macro")
    assert 1 / 7 < score < 0.5


def test_simple_texture_predicts_the_tissue_type_far_better_than_mean_colour(
    mihic: tuple[np.ndarray, ...],
) -> None:
    images, tissue, other_images, other_tissue = mihic
    colour = KNeighborsClassifier(15).fit(images.mean((1, 2)), tissue).predict(other_images.mean((1, 2)))
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(texture(images), tissue)
    by_texture = f1_score(other_tissue, probe.predict(texture(other_images)), average="macro")
    assert by_texture > f1_score(other_tissue, colour, average="macro") + 0.15
    assert by_texture > 0.65
