"""Calibration: the best temperature, only fitted on a `select` split, and valid for one model and prompts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from his2lip.cli.app import app
from his2lip.data.shards.reader import ShardSet
from his2lip.errors import ConfigError, DatasetError
from his2lip.evaluation.reliability import Answers, fit_temperature, nll, softmax
from his2lip.models.checkpoint import save_checkpoint
from his2lip.models.encoder import DualEncoder
from his2lip.models.load import load_model
from his2lip.serving.calibration import (
    Calibration,
    calibrate,
    calibrated,
    store_calibrations,
)
from his2lip.serving.classifier import Classifier
from his2lip.serving.questions import Question, ask

Write = Callable[..., ShardSet]


def _drawn(temperature: float, *, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores (n, 4) in the range of cosines, and labels (n,) drawn from softmax(scores / temperature)."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 0.1, (n, 4))
    chances = softmax(scores / temperature)
    return scores, np.array([rng.choice(4, p=p) for p in chances])


def _nll(logits: np.ndarray, labels: np.ndarray) -> float:
    found = nll(Answers(logits, labels, np.arange(len(labels))))
    assert found is not None
    return found[0]


@settings(max_examples=25, deadline=None)
@given(temperature=st.floats(0.02, 0.5), seed=st.integers(0, 1000))
def test_the_fitted_temperature_minimises_the_loss(temperature: float, seed: int) -> None:
    scores, labels = _drawn(temperature, n=400, seed=seed)
    try:
        found = fit_temperature(scores, labels, where="drawn")
    except DatasetError:  # at a high temperature, so few labels may carry no information
        assert temperature > 0.1
        return
    least = _nll(scores / found, labels)
    for factor in (0.5, 0.99, 1.01, 2):
        assert least <= _nll(scores / (found * factor), labels) + 1e-12


def test_the_temperature_at_which_labels_were_drawn_is_recovered() -> None:
    scores, labels = _drawn(0.05, n=20_000, seed=1)
    found = fit_temperature(scores, labels, where="drawn")
    assert found == pytest.approx(0.05, rel=0.05)


@pytest.mark.parametrize(
    ("labels", "key"),
    [
        pytest.param([1, 0, 1, 0], "label", id="no-information"),
        pytest.param([0, 1, 0, 1], "split", id="never-wrong"),
    ],
)
def test_data_for_which_no_finite_temperature_is_best_are_refused(labels: list[int], key: str) -> None:
    scores = np.array([[0.2, 0.1], [0.1, 0.2]] * 2)
    with pytest.raises(DatasetError) as refused:
        fit_temperature(scores, np.array(labels), where="here")
    assert (refused.value.key, refused.value.where) == (key, "here")


@pytest.mark.parametrize("biomarker", ["Ki67", "HER2", "CD3"])
def test_questions_that_are_calibrated_and_asked_have_the_whole_pool_of_each_class(biomarker: str) -> None:
    for question in ask(biomarker=biomarker, guess_biomarker=True):
        assert min(len(set(lines)) for _, lines in question.prompts.sentences) >= 12


@pytest.fixture
def labelled(real_ihc: np.ndarray, model: DualEncoder, write_patches: Write) -> ShardSet:
    """64 real tiles, 60 in `select`. Labels are the model's predictions, but every fourth is Tumor."""
    tiles = [real_ihc[y : y + 64, x : x + 64] for y in range(0, 512, 64) for x in range(0, 512, 64)]
    right = [row["tissue"].label for row in Classifier(model).classify(tiles)]
    tissue = ["Tumor" if i % 4 == 0 and t != "Tumor" else t for i, t in enumerate(right)]
    return write_patches(tiles, tissue=tissue, biomarker="CD3", split=["select"] * 60 + ["report"] * 4)


def test_calibration_lowers_the_loss_and_gives_probabilities(
    labelled: ShardSet, model: DualEncoder, real_tiles: Sequence[np.ndarray], tmp_path: Path
) -> None:
    (question,) = ask()
    found = calibrate(model, labelled.uri, question, label="tissue", cache=str(tmp_path / "c"))
    assert (found.split, found.n, found.question) == ("select", 60, "tissue type")
    assert found.nll_after < found.nll_before
    found.save(tmp_path / "calibration.json")
    questions = calibrated(ask(guess_biomarker=True), model, [tmp_path / "calibration.json"])
    for row in Classifier(model, questions).classify(real_tiles):
        assert row["tissue"].basis.calibrated_on == "real, split select, 60 patches"
        assert row["biomarker_guess"].basis.calibrated_on == "not calibrated"
        values = np.array(list(row["tissue"].similarities.values()))
        assert row["tissue"].probability == pytest.approx(softmax(values[None] / found.temperature).max())
        assert row["biomarker_guess"].probability is None, "no temperature was fitted to this question"


def test_patches_of_one_slide_count_as_one_where_cases_are_unknown(
    real_ihc: np.ndarray, model: DualEncoder, write_patches: Write, tmp_path: Path
) -> None:
    tiles = [real_ihc[y : y + 64, x : x + 64] for y in range(0, 256, 64) for x in range(0, 512, 64)]
    (question,) = ask()
    right = [row["tissue"].label for row in Classifier(model).classify(tiles)]
    tissue = ["Tumor" if i % 4 == 0 and t != "Tumor" else t for i, t in enumerate(right)]
    errors = []
    for column in ("case_id", "slide_id"):
        groups: dict[str, list[str]] = {column: [f"group {i // 8}" for i in range(len(tiles))]}
        shards = write_patches(tiles, tissue=tissue, biomarker="CD3", **groups)
        found = calibrate(model, shards.uri, question, label="tissue", cache=str(tmp_path / "c"))
        errors.append((found.ece_before, found.ece_after))
        shutil.rmtree(tmp_path / "real")
    assert errors[0] == errors[1]


def test_the_calibration_error_of_one_case_is_unknown_and_not_zero(
    real_ihc: np.ndarray, write_patches: Write, tmp_path: Path
) -> None:
    tiles = [real_ihc[y : y + 64, x : x + 64] for y in range(0, 512, 64) for x in range(0, 512, 64)]
    right = [row["tissue"].label for row in Classifier(load_model("tiny")).classify(tiles)]
    tissue = ["Tumor" if i % 4 == 0 and t != "Tumor" else t for i, t in enumerate(right)]
    shards = write_patches(tiles, tissue=tissue, biomarker="CD3", case_id="one")
    out = tmp_path / "calibration.json"
    command = ["calibrate", "tiny", "--shards", shards.uri, "--out", str(out), "--cache", str(tmp_path / "c")]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    found = Calibration.load(out)
    assert (found.n, found.ece_before, found.ece_after) == (64, None, None)
    assert found.nll_after < found.nll_before
    (line,) = [line for line in result.output.splitlines() if "calibration error" in line]
    assert "0.00" not in line
    assert line.count("–") == 2


def test_a_temperature_is_never_fitted_on_a_report_split(
    labelled: ShardSet, model: DualEncoder, tmp_path: Path
) -> None:
    (question,) = ask()
    for split in ("report", "tets"):
        with pytest.raises(DatasetError) as refused:
            calibrate(model, labelled.uri, question, label="tissue", cache=str(tmp_path), split=split)
        assert (refused.value.key, refused.value.where) == ("--split", labelled.uri)


def test_a_split_of_one_class_fits_no_temperature(
    real_tiles: Sequence[np.ndarray], model: DualEncoder, write_patches: Write, tmp_path: Path
) -> None:
    """Some patches are read as another class, so a temperature would be found, of this class alone."""
    (question,) = ask()
    shards = write_patches(real_tiles, tissue="Stroma", biomarker="CD3")
    with pytest.raises(DatasetError, match="Stroma") as refused:
        calibrate(model, shards.uri, question, label="tissue", cache=str(tmp_path / "c"))
    assert (refused.value.key, refused.value.where) == ("--label", shards.uri)


def test_a_staining_is_calibrated_on_patches_of_its_biomarker_only(
    real_ihc: np.ndarray, model: DualEncoder, write_patches: Write, tmp_path: Path
) -> None:
    tiles = [real_ihc[y : y + 64, x : x + 64] for y in range(0, 512, 64) for x in range(0, 512, 64)]
    *_, question = ask(biomarker="CD3")
    found = [row["staining"].label for row in Classifier(model, [question]).classify(tiles)]
    other = {"positive": "negative", "negative": "positive"}
    label = [other[f] if i % 8 == 0 else f for i, f in enumerate(found)]
    shards = write_patches(tiles, label=label, biomarker=["CD3" if i % 2 == 0 else "CD8" for i in range(64)])
    fitted = calibrate(model, shards.uri, question, label="label", cache=str(tmp_path))
    assert (fitted.n, fitted.question) == (32, "CD3 staining")
    *_, absent = ask(biomarker="CD20")
    with pytest.raises(DatasetError) as refused:
        calibrate(model, shards.uri, absent, label="label", cache=str(tmp_path))
    assert refused.value.key == "--label"


def _calibration(model: DualEncoder, question: Question) -> Calibration:
    from his2lip.serving.calibration import similarity_digest

    zeros = dict.fromkeys(("nll_before", "nll_after", "ece_before", "ece_after"), 0.0)
    return Calibration(
        temperature=0.1, model=similarity_digest(model), prompts=question.prompts.digest,
        question=question.title, data_digest="d", split="select", n=1, **zeros,
    )  # fmt: skip


def test_a_calibration_of_another_model_or_other_prompts_or_a_damaged_file_is_refused(
    model: DualEncoder, tmp_path: Path
) -> None:
    (tissue,), file = ask(), tmp_path / "calibration.json"
    kept = _calibration(model, tissue)
    kept.save(file)
    fitted = replace(tissue, temperature=0.1, calibrated=str(kept))
    assert calibrated([tissue], model, [file]) == [fitted]
    assert calibrated([tissue], model, [], carried=[kept]) == [fitted]
    assert calibrated([tissue], load_model("tiny", seed=7), [], carried=[kept]) == [tissue]
    with pytest.raises(ConfigError) as refused:
        calibrated([tissue], load_model("tiny", seed=7), [file])
    assert (refused.value.key, refused.value.where) == ("model", file)
    with pytest.raises(ConfigError) as refused:
        calibrated([ask(guess_biomarker=True)[1]], model, [file])
    assert (refused.value.key, refused.value.where) == ("prompts", file)
    with pytest.raises(ConfigError) as absent:
        calibrated([tissue], model, [tmp_path / "absent.json"])
    assert (absent.value.where, absent.value.fix) == (tmp_path / "absent.json", "check the path")
    unsealed = {name: part for name, part in json.loads(file.read_text()).items() if name != "sha256"}
    odd = [json.dumps(unsealed | {"temperature": value}) for value in (-1, 0, "0.1", float("inf"))]
    for broken in ("{", "[]", json.dumps({"temperature": 1}), file.read_text().replace("0.1", "-1"), *odd):
        file.write_text(broken)
        with pytest.raises(ConfigError) as refused:
            calibrated([tissue], model, [file])
        assert refused.value.where == file


def test_a_calibration_of_a_biomarker_is_of_no_other_one_that_has_the_same_prompts(
    model: DualEncoder, tmp_path: Path
) -> None:
    (_, ki67), (_, er) = ask(biomarker="Ki67"), ask(biomarker="ER")
    assert ki67.prompts == er.prompts
    first, second = _calibration(model, ki67), replace(_calibration(model, er), temperature=0.3)
    files = [tmp_path / "ki67.json", tmp_path / "er.json"]
    for found, file in zip((first, second), files, strict=True):
        found.save(file)
    with pytest.raises(ConfigError) as refused:
        calibrated([er], model, files[:1])
    assert (refused.value.key, refused.value.where) == ("prompts", files[0])
    save_checkpoint(tmp_path / "checkpoint", model, meta={})
    for _ in range(2):  # the second time, each replaces its own
        stored = store_calibrations(tmp_path / "checkpoint", files)
        assert {found.question: found.temperature for found in stored} == {
            "Ki67 staining": 0.1,
            "ER staining": 0.3,
        }
    fitted = calibrated([ki67, er], model, [], carried=stored)
    assert [question.temperature for question in fitted] == [0.1, 0.3]


def test_a_changed_digit_of_a_calibration_is_refused(model: DualEncoder, tmp_path: Path) -> None:
    (tissue,), file = ask(), tmp_path / "calibration.json"
    kept = _calibration(model, tissue)
    kept.save(file)
    text = file.read_text()
    assert '"temperature": 0.1' in text
    file.write_text(text.replace('"temperature": 0.1', '"temperature": 0.9'))
    with pytest.raises(ConfigError) as refused:
        calibrated([tissue], model, [file])
    assert (refused.value.where, refused.value.key) == (file, "sha256")
    assert "his2lip calibrate" in str(refused.value.fix)


def test_an_answer_of_too_low_a_probability_is_held_back_with_the_reason(
    labelled: ShardSet, model: DualEncoder, real_tiles: Sequence[np.ndarray], tmp_path: Path
) -> None:
    (question,) = ask()
    calibrate(model, labelled.uri, question, label="tissue", cache=str(tmp_path)).save(tmp_path / "c.json")
    questions = calibrated(ask(), model, [tmp_path / "c.json"])
    free = [row["tissue"] for row in Classifier(model, questions).classify(real_tiles)]
    known = [answer.probability for answer in free if answer.probability is not None]
    least = sorted(known)[len(known) // 2]
    kept = [r["tissue"] for r in Classifier(model, questions, abstain_below=least).classify(real_tiles)]
    for before, after in zip(free, kept, strict=True):
        if before.probability is None or before.probability >= least:
            assert after == before
        else:
            assert (after.label, after.refusal and after.refusal.gate) == ("not answered", "unsure")
    assert any(a.refusal is not None and a.refusal.gate == "unsure" for a in kept)
    with pytest.raises(ConfigError) as refused:
        Classifier(model, ask(), abstain_below=0.5)
    assert refused.value.key == "--abstain-below"
