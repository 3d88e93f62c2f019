"""Baselines on data for which the right prediction is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from cell_results import plan_of

from his2lip.data.shards.reader import ShardSet
from his2lip.errors import DatasetError
from his2lip.evaluation.baselines import _KINDS, BaselineScorer, ColourEncoder, scoring
from his2lip.evaluation.config import Control
from his2lip.evaluation.definitions import DEFINITIONS, definition
from his2lip.evaluation.embeddings import EmbeddingCache

Write = Callable[..., ShardSet]


@pytest.fixture
def cache(tmp_path: Path) -> EmbeddingCache:
    return EmbeddingCache(str(tmp_path / "cache"))


def test_every_baseline_and_control_has_a_definition_for_the_page() -> None:
    assert DEFINITIONS.keys() == {*_KINDS, *get_args(Control)}
    assert definition("baseline:shuffled-labels of CLIP") == DEFINITIONS["shuffled-labels"]
    assert definition("CLIP") is None


def test_majority_predicts_the_most_frequent_class_of_the_train_split(
    write_shards: Write, cache: EmbeddingCache
) -> None:
    shards = write_shards()
    plan = plan_of(shards)
    train = shards.table("train")["tissue"].to_pylist()
    commonest = max(("Stroma", "Tumor"), key=train.count)
    predicted = BaselineScorer("baseline:majority", cache).score(plan).scores.predicted
    assert set(predicted.tolist()) == {("Stroma", "Tumor").index(commonest)}


@pytest.mark.parametrize("kind", ["majority", "mean-colour", "stained-area", "dab-threshold"])
def test_a_baseline_is_not_fitted_on_cases_or_images_that_are_scored(
    write_shards: Write, cache: EmbeddingCache, kind: str
) -> None:
    """Here each of them is of the one case that is scored, so that nothing is left."""
    plan = plan_of(write_shards(case_id="one"))
    with pytest.raises(DatasetError, match="no labelled unit of other cases") as refused:
        BaselineScorer(f"baseline:{kind}", cache).score(plan)
    assert (refused.value.where, refused.value.key) == (plan.uri, "train")


def test_chance_is_uniform_and_reproducible(write_shards: Write, cache: EmbeddingCache) -> None:
    images = [np.full((16, 16, 3), [i % 250, 9, i // 250], dtype=np.uint8) for i in range(900)]
    plan = plan_of(write_shards(images=images))
    scorer = BaselineScorer("baseline:chance", cache)
    first = scorer.score(plan).scores.predicted
    np.testing.assert_array_equal(first, scorer.score(plan).scores.predicted)
    assert 0.4 < first.mean() < 0.6


def test_mean_colour_separates_classes_of_different_colour_and_reads_each_image_once(
    write_shards: Write, cache: EmbeddingCache
) -> None:
    rng = np.random.default_rng(0)
    brown, blue = np.array([150, 110, 80]), np.array([120, 120, 180])
    images = [
        np.clip(rng.normal(brown if i // 3 % 2 else blue, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
        for i in range(60)
    ]
    plan = plan_of(write_shards(images=images))
    scores = BaselineScorer("baseline:mean-colour", cache).score(plan).scores
    np.testing.assert_array_equal(scores.predicted, plan.selection.labels)
    assert cache.counts.images == 40, "the train and the test images, once each"
    BaselineScorer("baseline:stained-area", cache).score(plan)
    assert cache.counts.images == 40, "stained area uses the same four numbers"


def test_stained_area_is_the_brown_share_of_real_tissue(real_ihc: np.ndarray) -> None:
    share = float(ColourEncoder().crops(real_ihc, None)[0, 3])
    assert 0.02 < share < 0.6, "FHL2 only stains the epithelium of this colon"
    glass = np.full((64, 64, 3), 240, dtype=np.uint8)
    assert ColourEncoder().crops(glass, None)[0, 3] == 0


@pytest.mark.parametrize("fitted", [True, False])
def test_stained_area_separates_stained_and_unstained_images(
    write_shards: Write, cache: EmbeddingCache, fitted: bool
) -> None:
    stained, plain = np.array([110, 70, 40]), np.array([170, 170, 210])
    images = []
    for i in range(36):
        image = np.broadcast_to(plain, (40, 40, 3)).copy()
        image[: 20 + i % 12 if i // 3 % 2 else i % 5] = stained
        image[-1, -1, 0] = i  # no two images are equal
        images.append(image.astype(np.uint8))
    plan = plan_of(write_shards(images=images))
    if not fitted:
        object.__setattr__(plan, "roles", {"test": "report"})
    scores = BaselineScorer("baseline:stained-area", cache).score(plan).scores
    np.testing.assert_array_equal(scores.predicted, plan.selection.labels)


def test_dab_threshold_separates_stained_and_unstained_images_and_needs_a_train_split(
    write_shards: Write, cache: EmbeddingCache
) -> None:
    stained, plain = np.array([110, 70, 40]), np.array([170, 170, 210])
    images = []
    for i in range(36):
        image = np.broadcast_to(plain, (40, 40, 3)).copy()
        image[: 8 + i % 12 if i // 3 % 2 else i % 5] = stained
        image[-1, -1, 0] = i  # no two images are equal
        images.append(image.astype(np.uint8))
    plan = plan_of(write_shards(images=images))
    scores = BaselineScorer("baseline:dab-threshold", cache).score(plan).scores
    np.testing.assert_array_equal(scores.predicted, plan.selection.labels)
    object.__setattr__(plan, "roles", {"test": "report"})
    assert "dab-threshold" not in scoring(plan)
    with pytest.raises(DatasetError) as refused:
        BaselineScorer("baseline:dab-threshold", cache).score(plan)
    assert (refused.value.where, refused.value.key) == (plan.uri, "train")


def test_baselines_score_only_the_plans_that_they_fit(write_shards: Write, cache: EmbeddingCache) -> None:
    shards = write_shards()
    tissue = plan_of(shards, classes={"Stroma": ["Stroma"], "Tumor": ["Tumor"]})
    assert scoring(tissue) == {"chance", "majority", "mean-colour"}, "no class is of staining"
    own = plan_of(shards, split="train")
    assert scoring(own) == {"chance", "majority", "stained-area"}, "no other train split to fit on"
    with pytest.raises(DatasetError) as refused:
        BaselineScorer("baseline:chanse", cache)
    assert refused.value.key == "chanse"
    assert "'chance'" in str(refused.value.fix)
