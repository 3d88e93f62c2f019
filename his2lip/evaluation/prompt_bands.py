"""How far macro F1 depends on the wording: its values over seeded draws of a few sentences per class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from his2lip.evaluation.zero_shot import Pooling, Scoring, similarities, unit_rows

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
    for rows, sizes, truth in _chunks(labels, groups, len(images), _CHUNK // (DRAWS * classes) + 1):
        products = similarities(images[rows], sentences).T  # (P, N): the columns of a draw are whole rows
        if pooling != "max":
            products = _unit_means(products, sizes)
        found = _predict(np.ascontiguousarray(products), columns, scales, sizes if pooling == "max" else None)
        _count(found, truth, right, predicted)
    support = np.bincount(labels[labels >= 0], minlength=classes)
    total = support + predicted
    return np.divide(2 * right, total, out=np.zeros(total.shape), where=total > 0).mean(axis=1)


def band(macro_f1: Sequence[float]) -> tuple[float, float, float]:
    """(median, 5 % quantile, 95 % quantile) of the macro F1 of the draws."""
    low, median, high = np.quantile(macro_f1, [0.05, 0.5, 0.95])
    return float(median), float(low), float(high)


def share_in_order(first: Sequence[float], second: Sequence[float], *, difference: float) -> float:
    """Share of the draws in which two models, with macro F1 (DRAWS,) each, have the order of their headlines.

    difference  headline of the first model minus that of the second; equal figures are an order of their own
    """
    return float((np.sign(np.subtract(first, second)) == np.sign(difference)).mean())


def order_shares(
    headlines: Mapping[str, float], of_draws: Mapping[str, Mapping[str, Sequence[float]]]
) -> dict[str, dict[str, float]]:
    """Model -> other model -> share of the prompt draws that keep their order, on one protocol.

    headlines  model -> its macro F1 under the whole pool
    of_draws    model -> pool -> macro F1 of each draw
    With several pools, the share is the smallest of any pool that both models have.
    """
    shares: dict[str, dict[str, float]] = {}
    for one, own in of_draws.items():
        for other, theirs in of_draws.items():
            pools = [pool for pool in own if pool in theirs]
            if one == other or not pools:
                continue
            difference = headlines[one] - headlines[other]
            shares.setdefault(one, {})[other] = min(
                share_in_order(own[pool], theirs[pool], difference=difference) for pool in pools
            )
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
    """(rows, rows per unit, labels) of at most `size` scored units at a time; a unit's rows are together."""
    groups = np.arange(rows) if groups is None else groups
    order = np.argsort(groups, kind="stable")
    sizes = np.bincount(groups, minlength=len(labels))
    first = np.cumsum(sizes) - sizes
    scored = np.flatnonzero(labels >= 0)
    for start in range(0, len(scored), size):
        units = scored[start : start + size]
        places = np.concatenate([np.arange(first[u], first[u] + sizes[u]) for u in units])
        yield order[places], sizes[units], labels[units]


def _unit_means(values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(K, U): the means of the columns of (K, N) over each unit, whose columns are together."""
    if len(sizes) == values.shape[1]:
        return values
    return np.add.reduceat(values, np.cumsum(sizes) - sizes, axis=1) / sizes


def _predict(
    products: np.ndarray,
    columns: Sequence[np.ndarray],
    scales: Sequence[np.ndarray],
    sizes: np.ndarray | None,
) -> np.ndarray:
    """int64 (DRAWS, U): the first class with the highest score, as float32, under each draw.

    products  (P, N), the similarity of each sentence to each row
    sizes     rows of each unit, for scores that are the means of their rows' largest similarity
    """
    best = predicted = None
    for c, (own, scale) in enumerate(zip(columns, scales, strict=True)):
        parts = [products[own[:, i]] for i in range(own.shape[1])]
        if sizes is None:
            scores = sum(parts[1:], start=parts[0]) * scale[:, None]
        else:
            scores = _unit_means(np.maximum.reduce(parts), sizes)
        scores = scores.astype(np.float32)
        if best is None or predicted is None:
            best, predicted = scores, np.zeros(scores.shape, dtype=np.int64)
        else:
            better = scores > best
            best, predicted = np.where(better, scores, best), np.where(better, c, predicted)
    assert predicted is not None, "there are classes"
    return predicted


def _count(found: np.ndarray, truth: np.ndarray, right: np.ndarray, predicted: np.ndarray) -> None:
    """Adds the units of `found` (DRAWS, U) to the counts of each draw and class, (DRAWS, C) each."""
    draws, classes = predicted.shape
    place = np.arange(draws)[:, None] * classes + found
    predicted += np.bincount(place.reshape(-1), minlength=draws * classes).reshape(draws, classes)
    hits = place[found == truth]
    right += np.bincount(hits, minlength=draws * classes).reshape(draws, classes)
