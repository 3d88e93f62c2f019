"""Similarity, soft targets and their entropy: the rules for missing labels, and the form by classes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from his2lip.loss.targets import ClassTargets, SimilarityWeights, similarity

WEIGHTS = SimilarityWeights()


def matrix(
    tissue: list[int],
    biomarker: list[int],
    weights: SimilarityWeights = WEIGHTS,
    *,
    finding: list[int] | None = None,
) -> list[list[float]]:
    findings = finding or [-1] * len(tissue)
    return similarity(*map(torch.tensor, (tissue, biomarker, findings)), weights).tolist()


def test_similarity_is_two_for_the_same_pair_one_for_the_same_tissue_and_otherwise_zero():
    assert matrix([0, 0, 0, 1], [3, 3, 4, 3]) == [[2, 2, 1, 0], [2, 2, 1, 0], [1, 1, 2, 0], [0, 0, 0, 2]]


def test_similarity_is_the_scalar_product_of_the_papers_label_vectors():
    generator = torch.Generator().manual_seed(0)
    tissue, biomarker = (torch.randint(0, k, (50,), generator=generator) for k in (7, 12))
    y = torch.cat(
        [
            torch.nn.functional.one_hot(tissue, 7),
            torch.nn.functional.one_hot(tissue * 12 + biomarker, 84),
        ],
        dim=1,
    ).float()
    finding = torch.randint(-1, 3, (50,), generator=generator)
    torch.testing.assert_close(similarity(tissue, biomarker, finding, WEIGHTS), y @ y.T)


def test_a_missing_biomarker_is_the_same_pair_as_itself_only():
    assert matrix([0, 0, 0], [-1, -1, 2]) == [[2, 1, 1], [1, 2, 1], [1, 1, 2]]


def test_a_missing_tissue_is_similar_to_itself_only_whatever_its_biomarker():
    everything = SimilarityWeights(tissue=1, pair=1, biomarker=1)
    assert matrix([-1, -1, 0], [2, 2, 2], everything) == [[3, 0, 0], [0, 3, 0], [0, 0, 3]]


def test_the_biomarker_weight_makes_the_same_biomarker_similar_across_tissues():
    assert matrix([0, 1], [5, 5], SimilarityWeights(biomarker=0.25)) == [[2.25, 0.25], [0.25, 2.25]]


def test_the_finding_weight_tells_findings_of_one_pair_apart():
    weights = SimilarityWeights(finding=0.5)
    assert matrix([0, 0, 0], [3, 3, 3], weights, finding=[1, 1, 2]) == [
        [2.5, 2.5, 2.0],
        [2.5, 2.5, 2.0],
        [2.0, 2.0, 2.5],
    ]
    assert matrix([0, 0, 1], [3, 4, 3], weights, finding=[1, 1, 1])[0] == [2.5, 1.0, 0.0]
    assert matrix([0, 0], [3, 3], weights, finding=[-1, -1]) == [[2.5, 2.0], [2.0, 2.5]]


labels = st.lists(st.tuples(*[st.integers(-1, 3)] * 3), min_size=1, max_size=30)
weight = st.floats(0, 3)


@settings(max_examples=60, deadline=None)
@given(
    pairs=labels,
    weights=st.builds(
        SimilarityWeights, tissue=weight, pair=weight, biomarker=weight, finding=st.just(0.0) | weight
    ),
    tau=st.sampled_from([0.005, 0.2, 1.0, 20.0]),
    cut=st.integers(0, 30),
)
def test_form_by_classes_gives_the_means_and_entropy_of_the_dense_targets(pairs, weights, tau, cut):
    ids = torch.tensor(pairs).T
    n, own = len(pairs), slice(min(cut, len(pairs)), len(pairs))
    dense = (similarity(*ids, weights, dtype=torch.float64) / tau).softmax(dim=1)
    classes = ClassTargets.soft(ids, weights, tau)
    features = torch.randn(n, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    means = classes.symmetric_means(features, own)[classes.of_row]
    torch.testing.assert_close(means, (dense + dense.T)[:, own] @ features[own], rtol=1e-9, atol=1e-12)
    entropy = torch.special.entr(dense[own]).sum()
    torch.testing.assert_close(classes.entropy(own, torch.float64), entropy, rtol=1e-9, atol=1e-11)


def test_a_tiny_temperature_does_not_overflow():
    labels = torch.tensor([[0, 0, 1], [0, 1, 0], [-1, -1, -1]])
    classes = ClassTargets.soft(labels, WEIGHTS, 1e-4)
    assert classes.entropy(slice(0, 3), torch.float32).item() == pytest.approx(0.0, abs=1e-6)
    assert all(math.isfinite(c) for c in classes.coefficients())
