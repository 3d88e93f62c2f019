"""Probes: scikit-learn's numbers, no case on both sides of a fit, and rows that are never zero-shot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cell_results import plan_of
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from his2lip.config import validate
from his2lip.data.shards.reader import ShardSet
from his2lip.errors import ConfigError, DatasetError
from his2lip.evaluation.baselines import BaselineScorer, scoring
from his2lip.evaluation.config import BenchmarkConfig, Probe
from his2lip.evaluation.embeddings import EmbeddingCache
from his2lip.evaluation.grid_cell import run_cell
from his2lip.evaluation.leaderboard import with_differences, with_seeds, write_leaderboard
from his2lip.evaluation.probe_scorer import ProbeScorer
from his2lip.evaluation.probes import _fits, fit_classifier, fitted_scores, labelled
from his2lip.evaluation.protocols import APART, Selection, select
from his2lip.evaluation.scorers import ModelScorer
from his2lip.evaluation.statistics import Clusters
from his2lip.evaluation.verify import verify_board
from his2lip.models.load import load_model
from his2lip.report.board import Board, read_board
from his2lip.report.pages import write_pages

Write = Callable[..., ShardSet]
SIDE = 12


def units(labels: np.ndarray, cases: list[str]) -> Selection:
    """A selection of one row per unit, without images."""
    count = len(labels)
    return Selection(
        classes=tuple(f"class {c}" for c in range(int(labels.max()) + 1)),
        rows=np.arange(count),
        unit=np.arange(count),
        unit_ids=[f"u{i}" for i in range(count)],
        case_ids=list(cases),
        clusters=Clusters(cases, "case"),
        image_keys=np.arange(count, dtype=np.uint64) + 1000 * count,
        case_keys=np.zeros(count, dtype=np.uint64),
        labels=labels,
        breakdown={},
        without_mpp=0,
        split_sha256="0123456789abcdef" * 4,
        images_sha256="",
        groups_sha256="",
    )


@pytest.fixture
def toy() -> tuple[Selection, np.ndarray]:
    """120 units of 12 cases and 3 classes, and features (120, 6) from which the class can be guessed."""
    rng = np.random.default_rng(5)
    labels = np.tile([0, 1, 2], 40)
    features = rng.normal(np.eye(6)[labels] * 1.5, 1.0).astype(np.float32)
    return units(labels, [f"case {i // 10}" for i in range(120)]), features


@pytest.mark.parametrize("kind", ["knn", "logistic"])
def test_a_probe_gives_the_probabilities_of_scikit_learn(
    toy: tuple[Selection, np.ndarray], kind: str
) -> None:
    train, features = toy
    scored, rng = units(np.tile([0, 1, 2], 10), [f"other {i}" for i in range(30)]), np.random.default_rng(6)
    asked = rng.normal(size=(30, 6)).astype(np.float32)
    found = fitted_scores(kind, scored, asked, train=(train, features))
    if kind == "knn":
        expected = KNeighborsClassifier(10).fit(features, train.labels).predict_proba(asked)
        np.testing.assert_allclose(found, expected, atol=1e-3)  # a nearer neighbour counts a little more
        return
    else:
        mean, deviation = features.mean(axis=0), features.std(axis=0)
        model = LogisticRegression(max_iter=2000, class_weight="balanced")
        model.fit((features - mean) / deviation, train.labels)
        expected = model.predict_proba((asked - mean) / deviation)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_few_shots_are_standardised_by_all_units_and_need_no_label_of_the_others(
    toy: tuple[Selection, np.ndarray],
) -> None:
    scored, features = toy
    found = fit_classifier("logistic", features[:6], scored.labels[:6], unlabelled=features)
    scaler = StandardScaler().fit(features)
    plain = LogisticRegression(max_iter=2000, class_weight="balanced")
    plain.fit(scaler.transform(features[:6]), scored.labels[:6])
    np.testing.assert_allclose(
        found.predict_proba(features), plain.predict_proba(scaler.transform(features)), atol=1e-6
    )


@pytest.mark.parametrize("classes", [2, 4, 9, 12])
def test_with_one_unit_per_class_the_nearest_one_decides(classes: int) -> None:
    """K is 3 for 9 classes, so that three classes have one vote each."""
    rng = np.random.default_rng(classes)
    known = rng.normal(size=(classes, 8)).astype(np.float32)
    asked = rng.normal(size=(60, 8)).astype(np.float32)
    found = fit_classifier("knn", known, np.arange(classes)).predict_proba(asked).astype(np.float32)
    nearest = np.linalg.norm(asked[:, None] - known[None], axis=2).argmin(axis=1)
    np.testing.assert_array_equal(found.argmax(axis=1), nearest)


def test_votes_decide_before_distances() -> None:
    known = np.array([[1.0], [2], [3], [2.1], [2.2], *([[90.0]] * 20)])
    labels = np.array([0, 1, 1, 0, 1, *([2] * 20)])  # of the five nearest to 0, class 1 has three
    assert fit_classifier("knn", known, labels).predict_proba(np.zeros((1, 1))).argmax() == 1


def test_neighbours_with_equal_features_vote_the_same_in_any_order_of_rows() -> None:
    rng = np.random.default_rng(4)
    known = np.tile(rng.normal(size=(60, 16)).astype(np.float32), (2, 1))
    labels, asked = rng.integers(0, 3, 120), rng.normal(size=(50, 16)).astype(np.float32)
    scores = fit_classifier("knn", known, labels).predict_proba(asked)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(120)
        again = fit_classifier("knn", known[order], labels[order]).predict_proba(asked)
        np.testing.assert_allclose(again, scores, atol=1e-12)


def test_without_equal_features_a_vote_is_that_of_scikit_learn_to_the_bit() -> None:
    rng = np.random.default_rng(4)
    known, labels = rng.normal(size=(120, 16)).astype(np.float32), rng.integers(0, 3, 120)
    asked = rng.normal(size=(50, 16)).astype(np.float32)
    votes = KNeighborsClassifier(10, weights=lambda far: np.tile(1 - 1e-4 * np.arange(10), (len(far), 1)))
    found = fit_classifier("knn", known, labels).predict_proba(asked)
    np.testing.assert_array_equal(found, votes.fit(known, labels).predict_proba(asked))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from([0, 1, APART])), min_size=30, max_size=80))
def test_no_case_is_on_both_sides_of_a_fit_and_every_unit_is_predicted_once(
    drawn: list[tuple[int, int]],
) -> None:
    cases = [f"case {case}" for case, _ in drawn] + ["case 0", "case 1", "case 2", "case 3"]
    labels = np.array([label for _, label in drawn] + [0, 0, 1, 1])
    selection = units(labels, cases)
    predicted = []
    for fit in _fits(selection, None):
        sides = [{cases[i] for i in side.tolist()} for side in (fit.fitted, fit.predicted)]
        assert not sides[0] & sides[1]
        assert (labels[fit.fitted] != APART).all()
        predicted += fit.predicted.tolist()
    assert sorted(predicted) == list(range(len(labels)))


@pytest.mark.parametrize("kind", ["knn", "logistic"])
def test_a_probe_that_only_knows_cases_scores_no_better_than_chance(kind: str) -> None:
    """Features that name the case give every label away, unless the whole case is held out."""
    accuracies = []
    for seed in range(5):  # of 20 cases, one draw of labels varies by 0.11
        rng = np.random.default_rng(seed)
        case = np.repeat(np.arange(20), 15)
        labels = rng.permutation(np.repeat([0, 1], 10))[case]
        features = np.eye(20, dtype=np.float32)[case] + rng.normal(0, 0.01, (300, 20)).astype(np.float32)
        scores = fitted_scores(kind, units(labels, [f"case {c}" for c in case]), features)
        accuracies.append((scores.argmax(axis=1) == labels).mean())
    assert np.mean(accuracies) < 0.6
    leaking = fitted_scores(kind, units(labels, [f"patch {i}" for i in range(300)]), features)
    assert (leaking.argmax(axis=1) == labels).mean() > 0.95, "so the cases do give the labels away"


def test_units_of_scored_cases_and_repeats_of_scored_images_are_not_fitted_on(
    toy: tuple[Selection, np.ndarray],
) -> None:
    train, _ = toy
    scored = units(np.array([0, 1, 2, 0, 1, 2]), ["case 3"] * 3 + ["new"] * 3)
    keys = scored.image_keys.copy()
    keys[5] = train.image_keys[0]
    (fit,) = _fits(replace(scored, image_keys=keys), train)
    assert set(range(120)) - set(fit.fitted.tolist()) == {0, *range(30, 40)}


def test_an_image_that_repeats_in_another_case_is_not_on_both_sides_of_a_fold() -> None:
    labels = np.tile([0, 1], 20)
    selection = units(labels, [f"case {i}" for i in range(40)])
    keys = selection.image_keys.copy()
    keys[20:] = keys[:20]
    for fit in _fits(replace(selection, image_keys=keys), None):
        assert len(fit.fitted) > 0
        assert not set(keys[fit.fitted].tolist()) & set(keys[fit.predicted].tolist())


def test_draws_of_few_shots_differ_and_a_larger_number_keeps_those_of_a_smaller_one(
    toy: tuple[Selection, np.ndarray],
) -> None:
    from his2lip.evaluation.probes import _shots

    labels, everything = toy[0].labels, np.arange(120)
    four, eight = (_shots(labels, everything, k, np.random.default_rng(3)) for k in (4, 8))
    assert np.bincount(labels[four]).tolist() == [4, 4, 4]
    assert set(four.tolist()) < set(eight.tolist())
    first, second, again = (fitted_scores("logistic", *toy, shots=2, draw=draw) for draw in (0, 1, 0))
    assert (first != second).any()
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("cases", [["a", "b", "c", "d"], ["a", "a", "b", "b"]])
def test_a_class_of_one_case_cannot_be_probed_without_a_train_split(
    write_shards: Write, cases: list[str]
) -> None:
    shards = write_shards()
    found = labelled(shards, plan_of(shards).protocol, units(np.array([0, 0, 1, 1]), cases), None)
    assert (found.refusal is None) == (cases[0] != cases[1])
    assert found.refuses(Probe(kind="knn", shots=2)) is not None, "every fit has one unit per class only"
    with pytest.raises(DatasetError):
        list(_fits(units(np.array([0, 0, 1, 1]), ["a", "a", "b", "b"]), None))


def test_rows_of_probes_name_what_they_were_fitted_on_and_embed_no_image_twice(
    write_shards: Write, tmp_path: Path
) -> None:
    shards = write_shards(case_id=None, slide_id=None)  # each file is its own cluster
    plan, cache = plan_of(shards), EmbeddingCache(str(tmp_path / "cache"))
    plan = replace(plan, labelled=labelled(shards, plan.protocol, plan.selection, "train"))
    model = ModelScorer("tiny", load_model("tiny", seed=1), cache)
    folder = str(tmp_path / "grid")
    own = run_cell(model, plan, folder).result
    config = validate(
        BenchmarkConfig,
        {"models": ["tiny"], "datasets": ["toy"], "probes": {"shots": [2, "full"], "draws": 2}},
    )
    rows = config.rows_of(config.models[0])
    assert [row.name for row in rows[1:4]] == [
        "probe:knn 2-shot of tiny draw 1", "probe:knn 2-shot of tiny draw 2", "probe:knn of tiny",
    ]  # fmt: skip
    cells = [own]
    for row in rows[1:]:
        assert row.probe is not None
        cells.append(run_cell(ProbeScorer(row.name, model, row.probe), plan, folder).result)
    assert cache.counts.images == 16, "the test and the train images, once each"
    assert len({cell.cell for cell in cells}) == len(cells)
    full = next(cell for cell in cells if cell.model == "probe:logistic of tiny")
    assert (full.n, full.clusters, full.cluster_kind, full.prompts_sha256) == (8, 8, "file", None)
    assert full.interval("macro_f1") is not None
    assert "not zero-shot: logistic regression" in str(full.caveat)
    assert "all labelled units of the split train" in str(full.caveat)

    other = ModelScorer("other", load_model("tiny", seed=2), cache)
    cells = with_seeds(folder, [*cells, run_cell(other, plan, folder).result], rows)
    cells = with_differences(folder, cells, reference="tiny")
    compared = {cell.model: cell.compared.get("macro_f1") for cell in cells}
    assert compared["other"] is not None
    assert compared["other"].difference is not None
    assert full.model in compared
    assert compared[full.model] is not None
    assert compared[full.model].difference is None, "probes are compared with each other only"
    assert compared["probe:knn 2-shot of tiny draw 1"] is None

    board = read_board(Path(write_leaderboard(folder, cells, [])))
    assert (board.mean(full.model), board.mean_interval(full.model)) == (None, None)
    assert (board.zero_shot_share(full.model), board.zero_shot_share("tiny")) == (0.0, 1.0)
    assert set(board.borda()) == {"tiny", "other"}
    assert board.zero_shot() == ["toy"], "probes do not make a column in-domain"
    assert list(verify_board(folder).mismatches) == []
    page = write_pages(Path(folder, "leaderboard.csv"), tmp_path / "report")
    for text in (page.read_text(), page.with_name("leaderboard.md").read_text()):
        assert "probe:knn 2-shot of tiny (2 draws)" in text
        assert "probe, not zero-shot" in text
    draws = [c.macro_f1 for c in cells if c.model.startswith("probe:knn 2-shot")]
    shown = f"{100 * np.mean(draws):.1f} ± {100 * np.std(draws, ddof=1):.1f}"
    assert shown in page.with_name("leaderboard.md").read_text()
    assert shown in page.read_text()


def test_mean_colour_is_fitted_in_folds_where_a_benchmark_has_probes_and_no_train_split(
    write_shards: Write, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    brown, blue = np.array([150, 110, 80]), np.array([120, 120, 180])
    images = [
        np.clip(rng.normal(brown if i // 3 % 2 else blue, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
        for i in range(60)
    ]
    shards = write_shards(images=images, case_id=None, slide_id=None)
    plan, cache = plan_of(shards), EmbeddingCache(str(tmp_path / "cache"))
    plan = replace(plan, roles={"test": "report"})
    assert "mean-colour" not in scoring(plan)
    plan = replace(plan, labelled=labelled(shards, plan.protocol, plan.selection, None))
    assert "mean-colour" in scoring(plan)
    scored = BaselineScorer("baseline:mean-colour", cache).score(plan)
    np.testing.assert_array_equal(scored.scores.predicted, plan.selection.labels)
    assert "in 5 folds of whole files" in str(scored.caveat)


def test_probes_of_unknown_kind_or_without_labels_are_refused_by_their_key() -> None:
    tree = {"models": ["tiny"], "datasets": ["toy"]}
    for probes, key in (
        ({"kinds": ["svm"]}, "probes.kinds.0"),
        ({"shots": [0]}, "probes.shots.0"),
        ({"draws": 1}, "probes.draws"),
    ):
        with pytest.raises(ConfigError) as refused:
            validate(BenchmarkConfig, tree | {"probes": probes})
        assert str(refused.value.key).startswith(key)


def test_the_board_of_a_model_without_probes_is_unchanged() -> None:
    config = validate(BenchmarkConfig, {"models": ["tiny"], "datasets": ["toy"]})
    assert config.rows_of(config.models[0]) == config.models
    assert Board([]).models == []


def test_the_train_split_is_read_by_the_protocol(write_shards: Write) -> None:
    shards = write_shards()
    plan = plan_of(shards)
    found = labelled(shards, plan.protocol, plan.selection, "train")
    train = select(shards, plan.protocol, split="train")
    shared = np.isin(train.clusters.ids, plan.selection.clusters.ids)
    assert (found.split, found.left_out) == ("train", int(shared.sum()))
