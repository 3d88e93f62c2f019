"""Ranking against a brute-force double, its chance level, and its intervals against a simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from his2lip.evaluation.retrieval import NEVER, NO_CLASS, Items, Ranks, chance, nearest, rank
from his2lip.evaluation.statistics import interval

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
FIGURES = ("recall_at_1", "recall_at_5", "recall_at_10", "mean_average_precision", "median_rank")


def plain_ranks(queries: Items, gallery: Items, *, without: int | None = None) -> dict[str, float]:
    """The figures by their definitions, one query and one item at a time."""
    firsts, precisions = [], []
    kept = [j for j in range(len(gallery)) if without is None or gallery.clusters[j] != without]
    for i in range(len(queries)):
        if queries.classes[i] == NO_CLASS or (without is not None and queries.clusters[i] == without):
            continue
        ranked = sorted(
            (j for j in kept if gallery.selves[j] != queries.selves[i]),
            key=lambda j: (-float(queries.features[i] @ gallery.features[j]), j),
        )
        hits = [n for n, j in enumerate(ranked, start=1) if gallery.classes[j] == queries.classes[i]]
        if hits:
            firsts.append(hits[0])
            precisions.append(np.mean([k / n for k, n in enumerate(hits, start=1)]))
    if not firsts:
        return dict.fromkeys(FIGURES, float("nan"))
    return {
        **{f"recall_at_{k}": float(np.mean([f <= k for f in firsts])) for k in (1, 5, 10)},
        "mean_average_precision": float(np.mean(precisions)),
        "median_rank": float(np.median(firsts)),
    }


@st.composite
def searches(draw: st.DrawFn) -> tuple[Items, Items]:
    """Features of small integers, so that many similarities are equal, and are exact in any order of sums."""
    sizes = draw(st.tuples(st.integers(1, 7), st.integers(1, 14)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return tuple(
        Items(
            rng.integers(-2, 3, size=(n, 3)).astype(np.float64),
            rng.integers(NO_CLASS, 3, size=n),
            rng.integers(0, 6, size=n) if draw(st.booleans()) else np.arange(n),
            rng.integers(0, 3, size=n) if draw(st.booleans()) else np.full(n, NEVER),
        )
        for n in sizes
    )  # type: ignore[return-value]


@settings(max_examples=60, deadline=None)
@given(searches(), st.integers(1, 40))
def test_figures_equal_those_of_their_definitions_whole_and_without_each_cluster(
    search: tuple[Items, Items], block: int
) -> None:
    ranks, without = rank(*search, groups=3, block=block)
    assert {k: float(v) for k, v in ranks.figures().items()} == pytest.approx(
        plain_ranks(*search), nan_ok=True, abs=1e-12
    )
    replicates = without.figures()
    for cluster in range(3):
        found = {name: float(values[cluster]) for name, values in replicates.items()}
        assert found == pytest.approx(plain_ranks(*search, without=cluster), nan_ok=True, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(searches(), st.integers(1, 20), st.integers(1, 40))
def test_a_search_finds_the_items_in_the_order_in_which_a_benchmark_ranks_them(
    search: tuple[Items, Items], top: int, block: int
) -> None:
    queries, gallery = search
    for i in range(len(queries)):
        wanted = gallery.selves != queries.selves[i]
        found, similarities = nearest(queries.features[i], gallery.features, wanted, top=top, block=block)
        plain = sorted(
            np.flatnonzero(wanted).tolist(),
            key=lambda j: (-float(queries.features[i] @ gallery.features[j]), j),
        )
        assert found.tolist() == plain[:top]
        assert similarities.tolist() == [
            float(queries.features[i] @ gallery.features[j]) for j in plain[:top]
        ]
        relevant = np.flatnonzero(gallery.classes[found] == queries.classes[i])
        if queries.classes[i] != NO_CLASS and len(relevant):
            one = Items(
                *(getattr(queries, n)[i : i + 1] for n in ("features", "classes", "selves", "clusters"))
            )
            assert rank(one, gallery)[0].first.tolist() == [relevant[0] + 1]


def searched() -> tuple[Items, Items]:
    """Queries and gallery with ties, copies of queries, unknown classes and clusters."""
    rng = np.random.default_rng(3)
    queries, gallery = (
        Items(
            rng.normal(size=(n, 16))[rng.integers(0, n, n)].astype(np.float32),
            rng.integers(NO_CLASS, 3, n), rng.integers(0, 40, n), rng.integers(NEVER, 5, n),
        )
        for n in (40, 90)
    )  # fmt: skip
    return queries, gallery


@pytest.mark.parametrize("device", DEVICES)
def test_a_device_computes_the_figures_of_their_definitions(device: str) -> None:
    """In several blocks; CUDA where there is one."""
    queries, gallery = searched()
    ranks, without = rank(queries, gallery, device=device, groups=5, block=7 * 90)
    assert {k: float(v) for k, v in ranks.figures().items()} == pytest.approx(plain_ranks(queries, gallery))
    for cluster in range(5):
        found = {name: float(values[cluster]) for name, values in without.figures().items()}
        assert found == pytest.approx(plain_ranks(queries, gallery, without=cluster))
    on_cpu = rank(queries, gallery, groups=5)
    for one, other in zip((ranks, without), on_cpu, strict=True):
        for name in ("first", "relevant", "gallery"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        np.testing.assert_allclose(one.precision, other.precision, rtol=1e-12)


def test_the_size_of_the_blocks_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    one = Items(rng.normal(size=(60, 32)), rng.integers(0, 4, 60), np.arange(60), rng.integers(0, 6, 60))
    whole = rank(one, one, groups=6)
    for block in (1, 61, 500):
        for a, b in zip(whole, rank(one, one, groups=6, block=block), strict=True):
            for name in ("first", "precision", "relevant", "gallery"):
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_a_query_never_finds_itself_nor_a_copy_of_itself() -> None:
    features = np.eye(3)[[0, 0, 1, 2]]
    items = Items(features, np.array([0, 0, 0, 0]), np.array([7, 7, 8, 9]), np.full(4, NEVER))
    ranks, _ = rank(items, items)
    assert ranks.relevant.tolist() == [2, 2, 3, 3]
    assert ranks.gallery.tolist() == [2, 2, 3, 3]


def test_chance_is_the_mean_over_all_orders_of_the_gallery() -> None:
    classes = np.array([0, 0, 1, 2, 2])
    for scored, relevant in ((0, 2), (1, 1)):
        firsts, precisions = [], []
        for order in itertools.permutations(range(5)):
            hits = [n for n, j in enumerate(order, start=1) if classes[j] == scored]
            firsts.append(hits[0])
            precisions.append(np.mean([k / n for k, n in enumerate(hits, start=1)]))
        known = Ranks(np.array([1]), np.array([1.0]), np.array([relevant]), np.array([5]))
        expected = chance(known)
        assert expected["mean_average_precision"] == pytest.approx(np.mean(precisions))
        assert expected["recall_at_1"] == pytest.approx(np.mean([f <= 1 for f in firsts]))
        assert expected["recall_at_5"] == pytest.approx(1.0)
        assert expected["median_rank"] == np.median(firsts)


def coverage(direction: str, *, cases: int, runs: int, seed: int = 0) -> float:
    """The share of simulated samples of cases whose interval holds the mean figure of all samples."""
    rng = np.random.default_rng(seed)
    centres, captions = rng.normal(size=(3, 8)), np.repeat(np.arange(3), 4)
    texts = centres[captions] + rng.normal(size=(12, 8))
    values, limits = [], []
    for _ in range(runs):
        case = np.repeat(np.arange(cases), 9)
        classes = np.tile(np.repeat(np.arange(3), 3), cases)
        of_case = rng.normal(size=(cases, 8))[case]
        images = Items(
            centres[classes] + 1.2 * of_case + 1.6 * rng.normal(size=(len(case), 8)),
            classes, np.arange(len(case)), case,
        )  # fmt: skip
        sentences = Items(texts, captions, 1000 + np.arange(12), np.full(12, NEVER))
        asked, searched = {
            "image-to-text": (images, sentences),
            "text-to-image": (sentences, images),
            "image-to-image": (images, images),
        }[direction]
        ranks, without = rank(asked, searched, groups=cases)
        values.append(float(ranks.figures()["mean_average_precision"]))
        limits.append(interval(values[-1], without.figures()["mean_average_precision"]))
    truth = np.mean(values)
    return float(np.mean([low <= truth <= high for low, high in limits]))


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["image-to-text", "text-to-image", "image-to-image"])
@pytest.mark.parametrize("cases", [6, 15])
def test_intervals_cover_the_truth_over_samples_of_cases(direction: str, cases: int) -> None:
    assert 0.90 <= coverage(direction, cases=cases, runs=400) <= 0.99
