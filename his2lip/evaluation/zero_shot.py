"""Zero-shot scoring: image features against sentence features, in plain numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import numpy as np

Pooling = Literal["mean_embedding", "mean_logit", "max"]
Scoring = Literal["cosine", "dot"]


@dataclass(frozen=True)
class Scores:
    """Scores of U units (images, or groups of crops) for C classes.

    scores     float32 (U, C), cosine or dot product; higher is more similar
    predicted  int64 (U,), the first class with the highest score
    prompt     int64 (U,), number of the predicted class's sentence that is most similar to the unit
    ties       units with more than one class at the highest score
    """

    scores: np.ndarray
    predicted: np.ndarray
    prompt: np.ndarray
    ties: int

    def margins(self) -> np.ndarray:
        """float32 (U,): highest score minus the second highest."""
        top = np.partition(self.scores, -2, axis=1)[:, -2:]
        return top[:, 1] - top[:, 0]


def score(
    image_features: np.ndarray,
    text_features: Sequence[np.ndarray],
    *,
    pooling: Pooling = "mean_embedding",
    scoring: Scoring = "cosine",
    groups: np.ndarray | None = None,
) -> Scores:
    """Scores image features (N, D) against C >= 2 classes of sentence features, class c being (P_c, D).

    Features are raw. `cosine` normalises both sides; `dot` does not, as in the released code.
    `mean_embedding` scores against one vector per class, the mean of its sentences (CLIP's ensemble,
    Radford et al. 2021, section 3.1.4: under cosine the mean of unit vectors, made a unit vector again);
    `mean_logit` averages the sentences' scores; `max` takes the best sentence (the released default).
    `groups`, int64 (N,), is the unit of each row, 0 to U-1: a unit's score is the mean over its rows.

    Raises ValueError for options, shapes or values that cannot be scored.
    """
    images = _checked(image_features, "image features")
    texts = [_checked(t, f"text features of class {c}") for c, t in enumerate(text_features)]
    _check_options(pooling, scoring)
    if len(texts) < 2:
        raise ValueError(f"scoring needs at least two classes, not {len(texts)}")
    if {t.shape[1] for t in texts} != {images.shape[1]}:
        raise ValueError(f"text features and image features differ in size: {images.shape[1]} is expected")
    if scoring == "cosine":
        images, texts = _unit(images), [_unit(t) for t in texts]

    products = _products(images, np.concatenate(texts))
    bounds = np.cumsum([0, *(len(t) for t in texts)])
    if pooling == "mean_embedding":
        centres = np.stack([t.mean(axis=0) for t in texts])
        by_class = _products(images, _unit(centres) if scoring == "cosine" else centres)
    else:
        reduce = np.mean if pooling == "mean_logit" else np.max
        by_class = np.stack([reduce(products[:, a:b], axis=1) for a, b in pairwise(bounds)], axis=1)
    return _decide(_mean_by_group(by_class, groups), _mean_by_group(products, groups), bounds)


def _decide(scores: np.ndarray, sentence_scores: np.ndarray, bounds: np.ndarray) -> Scores:
    """The predicted class, its most similar sentence, and the number of ties.

    Computed from float32, which is what is stored, so that predictions follow from the stored scores.
    """
    scores = scores.astype(np.float32)
    predicted = scores.argmax(axis=1)
    prompt = np.zeros(len(scores), dtype=np.int64)
    for c, (a, b) in enumerate(pairwise(bounds)):
        mine = predicted == c
        prompt[mine] = sentence_scores[mine, a:b].argmax(axis=1)
    ties = int(((scores == scores.max(axis=1, keepdims=True)).sum(axis=1) > 1).sum())
    return Scores(scores, predicted.astype(np.int64), prompt, ties)


def _products(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """images (N, D) times texts (P, D) transposed; equal texts give bitwise equal columns.

    The rounding of a matrix product may depend on the place of a column. This would hide the tie of a
    sentence that two classes share, so each distinct sentence is multiplied once.
    """
    distinct, place = np.unique(texts, axis=0, return_inverse=True)
    return (images @ distinct.T)[:, place.reshape(-1)]


def _mean_by_group(values: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """Mean of the rows (N, K) of each group: (U, K), in the order of the groups' numbers."""
    if groups is None:
        return values
    if len(groups) != len(values):
        raise ValueError(f"groups has {len(groups)} rows, the features have {len(values)}")
    sizes = np.bincount(groups)
    if (sizes == 0).any():
        raise ValueError("groups must be numbered from 0 without gaps")
    sums = np.zeros((len(sizes), values.shape[1]))
    np.add.at(sums, groups, values)
    return sums / sizes[:, None]


def _unit(features: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; a row of zeros stays zero."""
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(length > 0, length, 1.0)


def _checked(features: np.ndarray, what: str) -> np.ndarray:
    """`features` as float64 (N, D), so that the order of summation does not change a ranking."""
    array = np.asarray(features, dtype=np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{what} must be a matrix that is not empty, not of shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{what} have values that are not finite")
    return array


def _check_options(pooling: str, scoring: str) -> None:
    if pooling not in get_args(Pooling):
        raise ValueError(f"pooling is one of {', '.join(get_args(Pooling))}, not '{pooling}'")
    if scoring not in get_args(Scoring):
        raise ValueError(f"scoring is one of {', '.join(get_args(Scoring))}, not '{scoring}'")
