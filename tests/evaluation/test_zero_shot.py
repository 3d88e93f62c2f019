"""Zero-shot scoring: equal to a naive reference, ties, groups, and refused arguments."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from his2lip.config import OptionError
from his2lip.evaluation.zero_shot import Top, score, unit_rows


def naive(images: np.ndarray, texts: list[np.ndarray], pooling: str, scoring: str) -> np.ndarray:
    """The scores (N, C), computed for one image, one class and one sentence at a time."""
    out = np.zeros((len(images), len(texts)))
    for i, image in enumerate(images):
        for c, sentences in enumerate(texts):
            if scoring == "cosine":
                image = image / np.linalg.norm(image)
                sentences = np.array([s / np.linalg.norm(s) for s in sentences])
            if pooling == "mean_embedding":
                centre = sentences.mean(axis=0)
                if scoring == "cosine":
                    centre = centre / np.linalg.norm(centre)
                out[i, c] = image @ centre
            else:
                products = [image @ s for s in sentences]
                out[i, c] = max(products) if pooling == "max" else sum(products) / len(products)
    return out


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 9),
    dim=st.integers(2, 17),
    sentences=st.lists(st.integers(1, 5), min_size=2, max_size=6),
    pooling=st.sampled_from(["mean_embedding", "mean_logit", "max"]),
    scoring=st.sampled_from(["cosine", "dot"]),
)
def test_scores_equal_the_naive_reference(
    seed: int, n: int, dim: int, sentences: list[int], pooling: str, scoring: str
) -> None:
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(n, dim)).astype(np.float32)
    texts = [rng.normal(size=(p, dim)).astype(np.float32) for p in sentences]
    found = score(images, texts, pooling=pooling, scoring=scoring)
    wanted = naive(images.astype(np.float64), [t.astype(np.float64) for t in texts], pooling, scoring)
    np.testing.assert_allclose(found.scores, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.predicted, found.scores.argmax(axis=1))
    apart = np.sort(wanted, axis=1)
    clear = apart[:, -1] - apart[:, -2] > 1e-5
    np.testing.assert_array_equal(found.predicted[clear], wanted.argmax(axis=1)[clear])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), sizes=st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_the_score_of_a_unit_is_the_mean_over_its_rows(seed: int, sizes: list[int]) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    images, texts = rng.normal(size=(len(groups), 8)), [rng.normal(size=(3, 8)) for _ in range(3)]
    rows = score(images, texts, pooling="max").scores
    units = score(images, texts, pooling="max", groups=groups).scores
    for unit in range(len(sizes)):
        np.testing.assert_allclose(units[unit], rows[groups == unit].mean(axis=0), rtol=1e-5, atol=1e-7)


def test_classes_with_the_same_best_sentence_have_bitwise_equal_scores() -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(1, 512)).astype(np.float32)
    texts = [np.concatenate([shared, rng.normal(size=(c, 512)).astype(np.float32) * 1e-3]) for c in range(9)]
    images = (shared + 0.01 * rng.normal(size=(200, 512))).astype(np.float32)
    found = score(images, texts, pooling="max", scoring="dot")
    assert found.ties == 200
    assert (found.predicted == 0).all(), "a tie goes to the first class"
    assert (found.prompt == 0).all()


def test_prompt_is_the_most_similar_sentence_of_the_predicted_class() -> None:
    texts = [np.eye(4)[[0, 1]], np.eye(4)[[2, 3]]]
    found = score(np.array([[0, 1, 0, 0.5], [0, 0, 0, 1.0]]), texts)
    assert found.predicted.tolist() == [0, 1]
    assert found.prompt.tolist() == [1, 1]


def test_norms_of_sentences_change_the_dot_product_and_not_the_cosine() -> None:
    images, texts = np.array([[1.0, 0.5]]), [np.array([[1.0, 0.0]]), np.array([[0.0, 10.0]])]
    assert score(images, texts, scoring="cosine").predicted.tolist() == [0]
    assert score(images, texts, scoring="dot").predicted.tolist() == [1]


def test_margin_is_the_difference_from_the_second_class() -> None:
    texts = [np.array([[1.0, 0]]), np.array([[0, 1.0]]), np.array([[-1.0, 0]])]
    found = score(np.array([[3.0, 4.0]]), texts)
    np.testing.assert_allclose(found.margins(), [0.8 - 0.6], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"pooling": "median"}, "pooling"),
        ({"scoring": "euclid"}, "scoring"),
        ({"text_features": [np.ones((1, 3))]}, "text_features"),
        ({"text_features": [np.ones((1, 3)), np.ones((0, 3))]}, "text_features"),
        ({"text_features": [np.ones((1, 4)), np.ones((1, 4))]}, "text_features"),
        ({"image_features": np.array([[1, np.nan, 1]])}, "image_features"),
        ({"groups": np.array([1])}, "groups"),
        ({"groups": np.array([0, 0])}, "groups"),
    ],
    ids=["pooling", "scoring", "one class", "no sentence", "width", "not finite", "gap", "too many groups"],
)
def test_arguments_that_cannot_be_scored_are_refused_by_name(change: dict, named: str) -> None:
    given_ = {"image_features": np.ones((1, 3)), "text_features": [np.ones((1, 3)), -np.ones((2, 3))]}
    with pytest.raises(OptionError) as refused:
        score(**(given_ | change))
    assert refused.value.key == named


def test_the_class_whose_sentences_cannot_be_scored_is_named() -> None:
    with pytest.raises(OptionError) as refused:
        score(np.ones((1, 3)), [np.ones((1, 3)), np.ones((0, 3))])
    assert "class 1" in str(refused.value)


def test_an_image_whose_features_are_all_zero_has_equal_scores() -> None:
    found = score(np.zeros((1, 3)), [np.ones((1, 3)), -np.ones((1, 3))])
    assert found.scores.tolist() == [[0, 0]]
    assert found.ties == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_unit_rows_keep_their_dtype_and_zero_rows_stay_zero(dtype: type) -> None:
    found = unit_rows(np.array([[3, 4], [0, 0]], dtype=dtype))
    assert found.dtype == dtype
    np.testing.assert_allclose(found, [[0.6, 0.8], [0, 0]], rtol=1e-6)


def test_scoring_and_metrics_import_no_heavy_library() -> None:
    code = (
        "import sys, his2lip.evaluation.zero_shot, his2lip.evaluation.metrics\n"
        "heavy = {'ray', 'mlflow', 'optuna', 'torch', 'sklearn', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), units=st.integers(1, 5), event=st.integers(0, 2), share=st.floats(0, 1))
def test_only_the_tiles_that_look_most_like_the_event_count(
    seed: int, units: int, event: int, share: float
) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.concatenate([np.arange(units), rng.integers(0, units, 20)]))
    images, texts = rng.normal(size=(len(groups), 6)), [rng.normal(size=(2, 6)) for _ in range(3)]
    found = score(images, texts, groups=groups, top=Top(event, share)).scores
    single = score(images, texts).scores
    for unit in range(units):
        mine = single[groups == unit]
        margin = mine[:, event] - np.delete(mine, event, axis=1).max(axis=1)
        kept = max(1, int(np.ceil(share * len(mine))))
        np.testing.assert_allclose(
            found[unit], mine[np.argsort(-margin, kind="stable")[:kept]].mean(axis=0), atol=1e-6
        )


def test_a_rare_event_is_found_by_its_tiles_and_lost_in_the_mean_of_all() -> None:
    texts = [np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])]  # positive, negative
    stained, plain = [0.9, 0.1], [0.2, 0.8]
    images, groups = np.array([stained, *[plain] * 39, *[plain] * 40]), np.repeat([0, 1], 40)
    assert score(images, texts, groups=groups).predicted.tolist() == [1, 1]
    assert score(images, texts, groups=groups, top=Top(0, 0.0)).predicted.tolist() == [0, 1]
