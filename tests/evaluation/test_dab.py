"""DAB features measure the known staining of an image, and the fitted rule is the best one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from his2lip.data.images.stain_vectors import DAB, HAEMATOXYLIN, transmit, unit
from his2lip.data.shards.reader import open_shards
from his2lip.errors import DatasetError
from his2lip.evaluation.dab import FEATURES, LEVELS, DabEncoder, best_threshold, dab_features, fit_rule
from his2lip.evaluation.embeddings import EmbeddingCache
from his2lip.synthetic.twins import write_twin


def mixed(dab: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) with an optical density of 0.15 in haematoxylin and of `dab` (H, W) in DAB."""
    amounts = np.stack([np.full_like(dab, 0.15), dab], axis=-1).astype(np.float32)
    return (255 * transmit(amounts, np.stack([unit(HAEMATOXYLIN), unit(DAB)]))).round().astype(np.uint8)


@pytest.mark.parametrize("density", [0.3, 0.4, 0.8])
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_features_are_the_share_and_the_density_of_the_staining(density: float, share: float) -> None:
    dab = np.zeros((64, 64))
    dab[: round(64 * share)] = density
    found = dict(zip(FEATURES, dab_features(mixed(dab)).tolist(), strict=True))
    for level in LEVELS:
        assert found[f"area at {level}"] == (share if density > level else 0.0)
    assert found["mean over tissue"] == pytest.approx(density * share, abs=0.02)
    assert found["mean over stained"] == pytest.approx(density if share else 0.0, abs=0.02)


def test_all_features_of_glass_are_zero() -> None:
    assert not dab_features(np.full((32, 32, 3), 244, dtype=np.uint8)).any()


def test_real_tissue_is_partly_stained(real_ihc: np.ndarray) -> None:
    found = dict(zip(FEATURES, dab_features(real_ihc).tolist(), strict=True))
    areas = [found[f"area at {level}"] for level in LEVELS]
    assert areas == sorted(areas, reverse=True)
    assert 0.3 < found["area at 0.26"] < 0.8, "FHL2 only stains the epithelium of this colon"
    assert 0.2 < found["mean over tissue"] < found["mean over stained"] < 0.8


def test_positive_patches_of_the_generated_twin_are_found(tmp_path: Path) -> None:
    write_twin("ihc4bc", str(tmp_path / "twin"), seed=0, scale=0.5)
    shards = open_shards(tmp_path / "twin")
    cache = EmbeddingCache(str(tmp_path / "cache"))
    known = []
    for split in ("train", "select", "test"):
        embedded = cache.embed(DabEncoder(), shards, split)
        labels = np.array(embedded.table["label"].to_pylist())
        known.append((embedded.features, labels == "positive"))
    train, select, (features, positive) = known
    rule = fit_rule(*train, select=select)
    assert ((features[:, rule.feature] > rule.threshold) == positive).mean() > 0.85


@given(
    st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=40).filter(
        lambda rows: len({positive for _, positive in rows}) == 2
    )
)
def test_no_other_threshold_has_a_better_balanced_accuracy(rows: list[tuple[int, bool]]) -> None:
    share = np.array([value / 7 for value, _ in rows])
    positive = np.array([p for _, p in rows])

    def balanced(cut: float) -> float:
        return float((share[positive] > cut).mean() + (share[~positive] <= cut).mean())

    best = max(balanced(cut) for cut in (*np.unique(share), -1.0))
    assert balanced(best_threshold(share, positive)) == pytest.approx(best)


def test_the_select_split_chooses_the_feature() -> None:
    positive = np.array([False, False, True, True])
    train = np.array([[0, 0], [0, 0], [1, 1], [1, 0.5]], dtype=float)
    other = np.array([[1, 0], [0, 0], [0, 1], [1, 1]], dtype=float)
    assert fit_rule(train, positive).feature == 0
    rule = fit_rule(train, positive, select=(other, positive))
    assert (rule.feature, rule.threshold) == (1, 0.25)


def test_a_select_split_of_one_class_still_chooses_the_feature() -> None:
    positive = np.array([False, False, True, True])
    train = np.array([[0, 0], [0, 0], [1, 1], [1, 0.5]], dtype=float)
    only = np.array([[0, 1], [1, 1]], dtype=float), np.array([True, True])
    assert fit_rule(train, positive, select=only).feature == 1


@pytest.mark.parametrize(("positive", "missing"), [(True, "negative"), (False, "positive")])
def test_a_train_split_of_one_class_is_refused(positive: bool, missing: str) -> None:
    with pytest.raises(DatasetError) as refused:
        fit_rule(np.zeros((4, 2)), np.full(4, positive))
    assert refused.value.key == missing


def test_of_equally_good_features_the_one_with_the_largest_distance_between_classes_is_chosen() -> None:
    positive = np.array([False, False, True, True])
    features = np.array([[0.0, 0.0], [0.9, 0.1], [1.0, 0.9], [2.0, 1.0]])
    assert fit_rule(features, positive).feature == 1
