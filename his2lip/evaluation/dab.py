"""DAB features of an image, and the threshold on one feature that best separates positive and negative."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from his2lip.config import digest
from his2lip.data.images import STAINED_FROM, tissue_mask, unmix
from his2lip.errors import DatasetError
from his2lip.evaluation.encoders import decoder_version

# Optical densities of DAB from which IHC4BC calls a nucleus 2+ and 3+ (0.26 and 0.46 in ER and PR, 0.35 and
# 0.55 in Ki67). Its thresholds of 1+, 0.06 and 0.12, are for the mean over a nucleus. They are left out,
# because single pixels with counterstain only reach them too.
LEVELS = (STAINED_FROM, 0.35, 0.46, 0.55)
FEATURES = (*(f"area at {level}" for level in LEVELS), "mean over tissue", "mean over stained")
AREA_LEVEL = LEVELS[0]  # optical density from which a pixel counts as stained, where one figure is reported
SIDE = 512  # px; larger images are subsampled to at most this side, without blurring


def dab_features(pixels: np.ndarray) -> np.ndarray:
    """The `FEATURES` of an image, uint8 (H, W, 3), as float32 (F,).

    They are: for each of `LEVELS`, the share of the tissue whose DAB density reaches it; the mean density
    over the tissue; and the mean density over the pixels that reach the first level. All are 0 where there is
    no tissue. Stains are unmixed with the vectors of Ruifrok and Johnston (2001).
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


def dab_area(pixels: np.ndarray) -> float:
    """The share of the tissue's pixels of uint8 (H, W, 3) whose density of DAB reaches `AREA_LEVEL`."""
    return float(dab_features(pixels)[FEATURES.index(f"area at {AREA_LEVEL}")])


class DabEncoder:
    """`dab_features` as an `ImageEncoder`, so that the embedding cache reads each image only once."""

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
    """An image is positive where its feature number `feature` exceeds `threshold`."""

    feature: int
    threshold: float


def fit_rule(
    features: np.ndarray, positive: np.ndarray, select: tuple[np.ndarray, np.ndarray] | None = None
) -> Rule:
    """The best rule on one feature.

    The threshold of each feature is fitted on `features` (N, F) and `positive`, bool (N,). The feature with
    the best balanced accuracy on `select`, another (features, positive), is chosen. Where several are equally
    good there, as with few rows, or where `select` is None, the balanced accuracy on `features` decides, and
    then the distance between the means of the two classes. Raises DatasetError as `best_threshold` does.
    """
    rules = [Rule(f, best_threshold(features[:, f], positive)) for f in range(features.shape[1])]

    def worth(rule: Rule) -> list[float]:
        judged = [*([select] if select else []), (features, positive)]
        right = [_balanced(values[:, rule.feature] > rule.threshold, truth) for values, truth in judged]
        return [*right, _separation(features[:, rule.feature], positive)]

    return max(rules, key=worth)


def best_threshold(values: np.ndarray, positive: np.ndarray) -> float:
    """The threshold on `values` (N,) with the best balanced accuracy for `positive`, bool (N,).

    It lies between two neighbouring values, or below all. Raises DatasetError, whose `key` is the class that
    no image has, where all images are positive or all are negative.
    """
    if positive.all() or not positive.any():
        what = "fitting a threshold needs both positive and negative images"
        raise DatasetError(what, key="negative" if positive.any() else "positive")
    levels, place = np.unique(values, return_inverse=True)
    up = np.bincount(place, weights=positive, minlength=len(levels))
    down = np.bincount(place, weights=~positive, minlength=len(levels))
    # Threshold k is below level k: positive images from level k on are right, and negative ones below it.
    right = (up.sum() - np.cumsum(up) + up) / up.sum() + (np.cumsum(down) - down) / down.sum()
    k = int(right.argmax())
    return float(levels[k] - 1e-6 if k == 0 else (levels[k - 1] + levels[k]) / 2)


def _balanced(predicted: np.ndarray, positive: np.ndarray) -> float:
    """Mean recall of the classes that occur. A small select split may have only one class."""
    right = predicted == positive
    return float(np.mean([right[of].mean() for of in (positive, ~positive) if of.any()]))


def _separation(values: np.ndarray, positive: np.ndarray) -> float:
    """Distance between the means of the two classes, in standard deviations (d')."""
    up, down = values[positive], values[~positive]
    spread = float(np.sqrt((up.var() + down.var()) / 2))
    return float(up.mean() - down.mean()) / (spread + 1e-6)
