"""DAB features of an image, and the threshold on one of them that best separates positive from negative."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from his2lip.config import digest
from his2lip.data.images import tissue_mask, unmix
from his2lip.errors import DatasetError
from his2lip.evaluation.encoders import decoder_version

# Optical densities of DAB from which IHC4BC calls a nucleus 2+ or 3+ (ER, PR: .26, .46; Ki67: .35, .55). Its
# thresholds for 1+ (.06, .12) are means over whole nuclei: single pixels of counterstain reach them too.
LEVELS = (0.26, 0.35, 0.46, 0.55)
FEATURES = (*(f"area at {level}" for level in LEVELS), "mean over tissue", "mean over stained")
SIDE = 512  # largest side in pixels; larger images are subsampled without blurring


def dab_features(pixels: np.ndarray) -> np.ndarray:
    """`FEATURES` of uint8 (H, W, 3), as float32 (F,).

    These are the shares of the tissue whose DAB density reaches each of `LEVELS`, the mean density over the
    tissue, and the mean density over the pixels that reach the first level. All are 0 where there is no
    tissue. Stains are unmixed with the vectors of Ruifrok and Johnston (2001).
    """
    step = -(-max(pixels.shape[:2]) // SIDE)
    pixels = pixels[::step, ::step]
    dab = unmix(pixels[tissue_mask(pixels)])[:, 2]
    if not len(dab):
        return np.zeros(len(FEATURES), dtype=np.float32)
    stained = dab[dab >= LEVELS[0]]
    shares = [float((dab >= level).mean()) for level in LEVELS]
    means = [float(np.maximum(dab, 0).mean()), float(stained.mean()) if len(stained) else 0.0]
    return np.array([*shares, *means], dtype=np.float32)


class DabEncoder:
    """`dab_features` as an encoder, so that the embedding cache reads each image once."""

    width = len(FEATURES)

    key = digest(
        {
            "encoder": "dab",
            "version": 1,
            "levels": list(LEVELS),
            "side": SIDE,
            "decoder": decoder_version(),
        }
    )

    def crop_key(self, mpp: float | None) -> str:
        return ""

    def crops(self, pixels: np.ndarray, mpp: float | None) -> np.ndarray:
        return dab_features(pixels)[None]

    def encode(self, crops: np.ndarray) -> np.ndarray:
        return crops


class Rule(NamedTuple):
    """Positive where feature number `feature` exceeds `threshold`."""

    feature: int
    threshold: float


def fit_rule(
    features: np.ndarray, positive: np.ndarray, select: tuple[np.ndarray, np.ndarray] | None = None
) -> Rule:
    """The best rule on one feature.

    Each feature's threshold is fitted on `features` (N, F) and `positive`, bool (N,). The feature is the one
    with the best balanced accuracy on `select`, other (features, positive), where given. Equal features are
    compared on the fitted rows, then by the distance of the class means, since on few rows many are equal.
    """
    rules = [Rule(f, best_threshold(features[:, f], positive)) for f in range(features.shape[1])]

    def worth(rule: Rule) -> list[float]:
        judged = [*([select] if select else []), (features, positive)]
        right = [_balanced(values[:, rule.feature] > rule.threshold, truth) for values, truth in judged]
        return [*right, _apart(features[:, rule.feature], positive)]

    return max(rules, key=worth)


def best_threshold(values: np.ndarray, positive: np.ndarray) -> float:
    """The threshold between two neighbouring `values` (N,) with the best balanced accuracy.

    Raises DatasetError where all images are positive, or all are negative.
    """
    if positive.all() or not positive.any():
        raise DatasetError("fitting a threshold needs both positive and negative images")
    levels, place = np.unique(values, return_inverse=True)
    up = np.bincount(place, weights=positive, minlength=len(levels))
    down = np.bincount(place, weights=~positive, minlength=len(levels))
    # Threshold k is below level k: positives from k on are right, and so are negatives before it.
    right = (up.sum() - np.cumsum(up) + up) / up.sum() + (np.cumsum(down) - down) / down.sum()
    k = int(right.argmax())
    return float(levels[k] - 1e-6 if k == 0 else (levels[k - 1] + levels[k]) / 2)


def _balanced(predicted: np.ndarray, positive: np.ndarray) -> float:
    """Mean recall of the classes that are present: a small select split may have only one."""
    right = predicted == positive
    return float(np.mean([right[of].mean() for of in (positive, ~positive) if of.any()]))


def _apart(values: np.ndarray, positive: np.ndarray) -> float:
    """Distance of the two class means in standard deviations (d')."""
    up, down = values[positive], values[~positive]
    spread = float(np.sqrt((up.var() + down.var()) / 2))
    return float(up.mean() - down.mean()) / (spread + 1e-6)
