"""How far macro F1 depends on the wording: its values over seeded draws of a few sentences per class."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from his2lip.evaluation.zero_shot import Pooling, Scoring, Top, similarities, unit_rows

DRAWS = 200  # draws of sentences from the pools of a protocol
SENTENCES = 3  # sentences per class in a draw
STABLE = 0.95  # share of the draws that must keep the order of two models; below, it depends on the prompts
_SEED = 10  # of the draws; the same for all models, so that they are scored by the same sentences
_CHUNK = 2**24  # scores in memory at once


def prompt_draws(sizes: Sequence[int]) -> list[np.ndarray]:
    """For each of C classes with P_c sentences, int64 (DRAWS, k): sentences of each draw, k = min(3, P_c).

    They are drawn without replacement, and depend on the numbers of sentences only.
    """
    draws = [np.random.default_rng([_SEED, c]).random((DRAWS, size)) for c, size in enumerate(sizes)]
    return [draw.argsort(axis=1, kind="stable")[:, :SENTENCES] for draw in draws]


def varies(sizes: Sequence[int]) -> bool:
    """Whether the draws of these pools differ: one pool at least has more sentences than a draw takes."""
    return max(sizes) > SENTENCES


def macro_f1_of_draws(
    image_features: np.ndarray,
    text_features: Sequence[np.ndarray],
    labels: np.ndarray,
    *,
    pooling: Pooling,
    scoring: Scoring,
    groups: np.ndarray | None = None,
    top: Top | None = None,
) -> np.ndarray:
    """Macro F1 of each draw of `prompt_draws`, float64 (DRAWS,), from features as `score` takes them.

    labels  int64 (U,), class number of each unit; units with a negative number are not scored

    The similarity of each image to each sentence is computed once. A class score of a draw is a sum of its
    columns: with "mean_embedding" and "cosine", x·m / |m| = Σ x·t / |Σ t| over the unit vectors t of the draw
    with mean m. So it is exact, and no draw needs a matrix product of its own. Units are scored in chunks.
    """
    images = np.asarray(image_features, dtype=np.float64)
    texts = [np.asarray(t, dtype=np.float64) for t in text_features]
    if scoring == "cosine":
        images, texts = unit_rows(images), [unit_rows(t) for t in texts]
    chosen = prompt_draws([len(t) for t in texts])
    starts = np.cumsum([0, *(len(t) for t in texts[:-1])])
    columns = [start + own for start, own in zip(starts, chosen, strict=True)]
    scales = [_scale(t, own, pooling, scoring) for t, own in zip(texts, chosen, strict=True)]
    sentences = np.concatenate(texts)
    classes = len(texts)
    right, predicted = np.zeros((2, DRAWS, classes), dtype=np.int64)
    of_rows = pooling == "max" or top is not None  # scores of rows are needed, not only their means
    for rows, sizes, truth in _chunks(labels, groups, len(images), _CHUNK // (DRAWS * classes) + 1):
        products = similarities(images[rows], sentences).T  # (P, N): the columns of a draw are whole rows
        if not of_rows:
            products, sizes = _unit_means(products, sizes), np.ones(len(sizes), dtype=np.int64)
        reduce = np.maximum if pooling == "max" else np.add
        scores = _class_scores(np.ascontiguousarray(products), columns, scales, reduce)
        found = _predict(_of_units(scores, sizes, top))
        _count(found, truth, right, predicted)
    support = np.bincount(labels[labels >= 0], minlength=classes)
    total = support + predicted
    return np.divide(2 * right, total, out=np.zeros(total.shape), where=total > 0).mean(axis=1)


def band(macro_f1: Sequence[float]) -> tuple[float, float, float]:
    """(median, 5 % quantile, 95 % quantile) of the macro F1 of the draws."""
    low, median, high = np.quantile(macro_f1, [0.05, 0.5, 0.95])
    return float(median), float(low), float(high)


def order_shares(
    headlines: Mapping[str, float], of_draws: Mapping[str, Mapping[str, Sequence[float]]]
) -> dict[str, dict[str, float]]:
    """Model -> other model -> share of the prompt draws that keep their order, on one protocol.

    headlines  model -> its macro F1 under the whole pool; equal ones are an order of their own
    of_draws   model -> pool -> macro F1 of each draw
    With several pools, the share is the smallest of any pool that both models have.
    """
    draws = {model: {pool: np.array(own) for pool, own in pools.items()} for model, pools in of_draws.items()}
    shares: dict[str, dict[str, float]] = {}
    for one, pools in draws.items():
        least: dict[str, float] = {}
        for pool, own in pools.items():
            others = [other for other in draws if other != one and pool in draws[other]]
            if not others:
                continue
            signs = np.sign(own - np.stack([draws[other][pool] for other in others]))
            order = np.sign([headlines[one] - headlines[other] for other in others])
            for other, share in zip(others, (signs == order[:, None]).mean(axis=1).tolist(), strict=True):
                least[other] = min(share, least.get(other, 1.0))
        if least:
            shares[one] = {other: least[other] for other in draws if other in least}
    return shares


def _scale(texts: np.ndarray, chosen: np.ndarray, pooling: Pooling, scoring: Scoring) -> np.ndarray:
    """float64 (DRAWS,): what the sum of a class's similarities is multiplied by, in each draw."""
    if pooling == "mean_embedding" and scoring == "cosine":
        length = np.linalg.norm(texts[chosen].sum(axis=1), axis=1)
        return 1 / np.where(length > 0, length, 1.0)
    return np.full(len(chosen), 1 / chosen.shape[1])


def _chunks(
    labels: np.ndarray, groups: np.ndarray | None, rows: int, size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(rows, rows per unit, labels) of scored units, about `size` rows at a time; a unit has all its rows."""
    groups = np.arange(rows) if groups is None else groups
    order = np.argsort(groups, kind="stable")
    sizes = np.bincount(groups, minlength=len(labels))
    first = np.cumsum(sizes) - sizes
    scored = np.flatnonzero(labels >= 0)
    ends = np.cumsum(sizes[scored])
    for units in np.split(
        scored, np.searchsorted(ends, np.arange(size, ends[-1], size)) if len(ends) else []
    ):
        if not len(units):
            continue
        places = np.concatenate([np.arange(first[u], first[u] + sizes[u]) for u in units])
        yield order[places], sizes[units], labels[units]


def _unit_means(values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(K, U): the means of the columns of (K, N) over each unit, whose columns are together."""
    if len(sizes) == values.shape[1]:
        return values
    return np.add.reduceat(values, np.cumsum(sizes) - sizes, axis=1) / sizes


def _class_scores(
    products: np.ndarray, columns: Sequence[np.ndarray], scales: Sequence[np.ndarray], reduce: np.ufunc
) -> list[np.ndarray]:
    """float64 (DRAWS, N) of each class: the scores of N rows under each draw.

    products  (P, N), the similarity of each sentence to each row
    reduce    how the similarities to the sentences of a draw become one: add or maximum
    """
    scores = []
    for own, scale in zip(columns, scales, strict=True):
        total = products[own[:, 0]]
        for i in range(1, own.shape[1]):
            total = reduce(total, products[own[:, i]])
        scores.append(total if reduce is np.maximum else total * scale[:, None])
    return scores


def _of_units(scores: list[np.ndarray], sizes: np.ndarray, top: Top | None) -> list[np.ndarray]:
    """(DRAWS, U) of each class: the scores of units from those of their rows, (DRAWS, N), under each draw."""
    if top is None:
        return [_unit_means(of_class, sizes) for of_class in scores]
    others = [of_class for c, of_class in enumerate(scores) if c != top.event]
    margin = scores[top.event] - np.maximum.reduce(others)
    units = []
    for end, size in zip(np.cumsum(sizes), sizes, strict=True):
        kept = max(1, math.ceil(top.share * size))
        best = np.argsort(-margin[:, end - size : end], axis=1, kind="stable")[:, :kept] + end - size
        units.append([np.take_along_axis(of_class, best, axis=1).mean(axis=1) for of_class in scores])
    return [np.stack(columns, axis=1) for columns in zip(*units, strict=True)]


def _predict(scores: list[np.ndarray]) -> np.ndarray:
    """int64 (DRAWS, U): the first class with the highest score (DRAWS, U), as float32, under each draw."""
    best = scores[0].astype(np.float32)
    predicted = np.zeros(best.shape, dtype=np.int64)
    for c, of_class in enumerate(scores[1:], start=1):
        rounded = of_class.astype(np.float32)
        better = rounded > best
        best, predicted = np.where(better, rounded, best), np.where(better, c, predicted)
    return predicted


def _count(found: np.ndarray, truth: np.ndarray, right: np.ndarray, predicted: np.ndarray) -> None:
    """Adds the units of `found` (DRAWS, U) to the counts of each draw and class, (DRAWS, C) each."""
    draws, classes = predicted.shape
    place = np.arange(draws)[:, None] * classes + found
    predicted += np.bincount(place.reshape(-1), minlength=draws * classes).reshape(draws, classes)
    hits = place[found == truth]
    right += np.bincount(hits, minlength=draws * classes).reshape(draws, classes)
