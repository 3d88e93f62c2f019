"""Zero-shot scoring: image features against sentence features, in plain numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

import numpy as np

from his2lip.config import OptionError

Pooling = Literal["mean_embedding", "mean_logit", "max"]
Scoring = Literal["cosine", "dot"]


class Top(NamedTuple):
    """Which rows of a unit count where a class may show in few of them, such as tiles with a stained nucleus.

    event  number of that class
    share  of the unit's rows that count, those with the highest score of the class less the best of the
           others; at least one row, so that 0 is the single best row
    """

    event: int
    share: float


@dataclass(frozen=True)
class Scores:
    """Scores of U units (images, or groups of crops) for C classes.

    scores     float32 (U, C), cosine or dot product; a higher score is more similar
    predicted  int64 (U,), the first class with the highest score
    prompt     int64 (U,), which sentence of the predicted class is most similar to the unit, from 0
    ties       number of units for which several classes have the highest score
    """

    scores: np.ndarray
    predicted: np.ndarray
    prompt: np.ndarray
    ties: int

    @classmethod
    def of(cls, scores: np.ndarray) -> Scores:
        """`scores` (U, C) without prompts, such as those of a classifier that was fitted on labels."""
        ties = int(((scores == scores.max(axis=1, keepdims=True)).sum(axis=1) > 1).sum())
        return cls(scores, scores.argmax(axis=1), np.zeros(len(scores), dtype=np.int64), ties)

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
    top: Top | None = None,
) -> Scores:
    """Scores image features (N, D) against the sentence features of C >= 2 classes, (P_c, D) of class c.

    image_features, text_features  raw features
    scoring  "cosine" normalises both kinds of features; "dot" does not, as in the released code
    pooling  "mean_embedding" compares with one vector per class, the mean of its sentences (CLIP's ensemble,
             Radford et al. 2021, section 3.1.4). With "cosine" it is the mean of unit vectors, normalised.
             "mean_logit" is the mean of the sentences' scores. "max" is the score of the most similar
             sentence (the default of the released code).
    groups   int64 (N,), the unit of each row, from 0 to U-1; the score of a unit is the mean over its rows.
             None: each row is a unit.
    top      which rows of a unit count; None: all
    Raises OptionError, a ValueError whose `key` is the argument, for what cannot be scored.
    """
    images = _checked(image_features, "image_features")
    texts = [_checked(t, "text_features", of=f" of class {c}") for c, t in enumerate(text_features)]
    _check_options(pooling, scoring)
    if len(texts) < 2:
        raise OptionError(f"scoring needs at least two classes, got {len(texts)}", key="text_features")
    if {t.shape[1] for t in texts} != {images.shape[1]}:
        what = f"text_features must have {images.shape[1]} columns, as image_features have"
        raise OptionError(what, key="text_features")
    if scoring == "cosine":
        images, texts = unit_rows(images), [unit_rows(t) for t in texts]

    products = similarities(images, np.concatenate(texts))
    bounds = np.cumsum([0, *(len(t) for t in texts)])
    if pooling == "mean_embedding":
        centres = np.stack([t.mean(axis=0) for t in texts])
        by_class = similarities(images, unit_rows(centres) if scoring == "cosine" else centres)
    else:
        reduce = np.mean if pooling == "mean_logit" else np.max
        by_class = np.stack([reduce(products[:, a:b], axis=1) for a, b in pairwise(bounds)], axis=1)
    if top is not None and groups is not None:
        rows = _top_rows(by_class, groups, top)
        by_class, products, groups = by_class[rows], products[rows], groups[rows]
    return _decide(mean_by_group(by_class, groups), mean_by_group(products, groups), bounds)


def _top_rows(by_class: np.ndarray, groups: np.ndarray, top: Top) -> np.ndarray:
    """Numbers of the rows (N, C) that count in each group; of equal rows, the first."""
    margin = by_class[:, top.event] - np.delete(by_class, top.event, axis=1).max(axis=1)
    order = np.lexsort((np.arange(len(margin)), -margin, groups))
    sizes = np.bincount(groups)
    rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    kept = np.maximum(1, np.ceil(top.share * sizes)).astype(np.int64)
    return np.sort(order[rank < np.repeat(kept, sizes)])


def _decide(scores: np.ndarray, sentence_scores: np.ndarray, bounds: np.ndarray) -> Scores:
    """The predicted class, its most similar sentence, and the number of ties.

    They are computed from the scores in float32, which are stored, so that the stored scores reproduce them.
    """
    scores = scores.astype(np.float32)
    predicted = scores.argmax(axis=1)
    prompt = np.zeros(len(scores), dtype=np.int64)
    for c, (a, b) in enumerate(pairwise(bounds)):
        mine = predicted == c
        prompt[mine] = sentence_scores[mine, a:b].argmax(axis=1)
    ties = int(((scores == scores.max(axis=1, keepdims=True)).sum(axis=1) > 1).sum())
    return Scores(scores, predicted.astype(np.int64), prompt, ties)


def similarities(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """(N, P) images (N, D) times texts (P, D) transposed; equal texts give bitwise equal columns.

    The rounding of a matrix product can depend on the position of a column. If two classes had the same
    sentence, their tie would be lost. So each distinct sentence is multiplied once.
    """
    distinct, place = np.unique(texts, axis=0, return_inverse=True)
    return (images @ distinct.T)[:, place.reshape(-1)]


def mean_by_group(values: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """(U, K): the mean of the rows of `values` (N, K) in each group, in the order of the groups' numbers."""
    if groups is None:
        return values
    if len(groups) != len(values):
        what = f"groups has {len(groups)} rows, and image_features have {len(values)}"
        raise OptionError(what, key="groups")
    sizes = np.bincount(groups)
    if (sizes == 0).any():
        raise OptionError("groups must be numbered from 0 without gaps", key="groups")
    sums = np.zeros((len(sizes), values.shape[1]))
    np.add.at(sums, groups, values)
    return sums / sizes[:, None]


def unit_rows(features: np.ndarray) -> np.ndarray:
    """The rows of float (N, D), normalised to length 1, in their own dtype. A row of zeros stays zero."""
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(length > 0, length, 1.0)


def _checked(features: np.ndarray, argument: str, *, of: str = "") -> np.ndarray:
    """`features` as float64 (N, D), so that the order of summation does not change a ranking."""
    array = np.asarray(features, dtype=np.float64)
    if array.ndim != 2 or 0 in array.shape:
        what = f"{argument}{of} must be a matrix that is not empty, got shape {array.shape}"
        raise OptionError(what, key=argument)
    if not np.isfinite(array).all():
        raise OptionError(f"{argument}{of} must be finite", key=argument)
    return array


def _check_options(pooling: str, scoring: str) -> None:
    if pooling not in get_args(Pooling):
        what = f"pooling must be one of {', '.join(get_args(Pooling))}, got '{pooling}'"
        raise OptionError(what, key="pooling")
    if scoring not in get_args(Scoring):
        what = f"scoring must be one of {', '.join(get_args(Scoring))}, got '{scoring}'"
        raise OptionError(what, key="scoring")
