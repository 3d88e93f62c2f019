"""What answers rest on, in every output, and the gates that hold answers back."""

from __future__ import annotations

import base64
import csv
import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from his2lip.cli.basis import show_basis
from his2lip.cli.classify import classify as classify_command
from his2lip.cli.retrieve import retrieve as retrieve_command
from his2lip.data.images.codec import encode_png
from his2lip.data.images.stain_vectors import EOSIN, HAEMATOXYLIN, transmit, unit
from his2lip.data.shards.reader import ShardSet
from his2lip.evaluation.dab import dab_features
from his2lip.models.checkpoint import save_checkpoint
from his2lip.models.encoder import DualEncoder
from his2lip.models.training_data import TrainingData
from his2lip.serving.basis import BASIS_FIELDS, Basis, Scale
from his2lip.serving.classifier import Classifier
from his2lip.serving.gates import NOT_ANSWERED
from his2lip.serving.history import TrainingHistory
from his2lip.serving.mlflow_model import ServedModel
from his2lip.serving.questions import ask
from his2lip.synthetic.layouts import write_pyramid

TRAINED = TrainingData(
    dataset="mihic",
    generated=True,
    split="train",
    patches=1512,
    organs=["lung"],
    stains={"DAB": 1512},
    tissues={"Tumor": 216},
    biomarkers={"Ki67": 126},
)
META = {
    "training_data": [TRAINED.model_dump()],
    "began_as": ["tiny"],
    "patch": {"size": 128, "mpp": 0.25},
}
HISTORY = TrainingHistory.of("trained", META)
GLASS = np.full((128, 128, 3), 243, np.uint8)


@pytest.fixture(scope="module")
def trained(model: DualEncoder, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of random weights whose his2lip.json says that they were trained on MIHIC's twin."""
    return str(save_checkpoint(tmp_path_factory.mktemp("trained") / "best", model, meta=META))


@pytest.fixture(scope="module")
def h_and_e() -> np.ndarray:
    """Colours of H&E, uint8 (128, 128, 3): haematoxylin in nuclei, eosin between them."""
    rng = np.random.default_rng(0)
    nuclei = np.kron(rng.random((16, 16)) < 0.25, np.ones((8, 8)))
    amounts = np.stack([0.1 + 0.6 * nuclei, 0.5 * (1 - nuclei) + 0.05 * rng.random((128, 128))], axis=-1)
    light = transmit(amounts.astype(np.float32), np.stack([unit(HAEMATOXYLIN), unit(EOSIN)]))
    return (255 * light).round().astype(np.uint8)


def _classify(images: list[Path], out: Path, **options: Any) -> list[dict[str, str]]:
    classify_command(images, csv=out / "rows.csv", out=out, **options)
    with (out / "rows.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _served(checkpoint: str, *images: np.ndarray, **params: Any) -> list[dict[str, Any]]:
    """The answers of the served model in this process."""
    served = ServedModel()
    context: Any = SimpleNamespace(artifacts={"checkpoint": checkpoint})
    served.load_context(context)
    rows = pd.DataFrame({"image": [base64.b64encode(encode_png(i)).decode() for i in images]})
    return json.loads(json.dumps(served.predict(context, rows, params)))


def test_base64_in_lines_is_answered_as_in_one_line(real_ihc: np.ndarray, trained: str) -> None:
    served, context = ServedModel(), SimpleNamespace(artifacts={"checkpoint": trained})
    served.load_context(context)  # type: ignore[arg-type]
    image = encode_png(real_ihc[:128, :128])
    texts = [base64.b64encode(image).decode(), base64.encodebytes(image).decode()]
    one, lines = served.predict(context, pd.DataFrame({"image": texts}))  # type: ignore[arg-type]
    assert one == lines


def test_a_precision_changes_features_and_is_stated_and_fp32_is_the_default_to_the_bit(
    real_ihc: np.ndarray, trained: str, write_patches: Callable[..., ShardSet], tmp_path: Path
) -> None:
    patch = tmp_path / "patch.png"
    patch.write_bytes(encode_png(real_ihc[:128, :128]))
    shards = write_patches([real_ihc[:128, :128], real_ihc[128:256, :128]])
    cache, found = str(tmp_path / "cache"), tmp_path / "found.csv"

    def rows(precision: str | None) -> list[list[dict[str, str]]]:
        given: dict[str, Any] = {"model": trained, "force": True}
        given |= {} if precision is None else {"precision": precision}
        retrieve_command(str(patch), index=shards.uri, csv=found, cache=cache, **given)
        with found.open(newline="", encoding="utf-8") as file:
            retrieved = list(csv.DictReader(file))
        return [_classify([patch], tmp_path, slide=False, **given), retrieved]

    own, fp32, bf16 = map(rows, (None, "fp32", "bf16"))
    assert own == fp32
    assert {row["precision"] for table in fp32 for row in table} == {"fp32"}
    for full, lowered in zip(fp32, bf16, strict=True):
        assert {row["precision"].partition(":")[0] for row in lowered} == {"bf16 weights"}
        pairs = [(float(a["similarity"]), float(b["similarity"])) for a, b in zip(full, lowered, strict=True)]
        assert any(a != b for a, b in pairs)
        assert all(a == pytest.approx(b, abs=0.03) for a, b in pairs)
    if not torch.cuda.is_available():
        assert rows("auto") == fp32


def test_images_of_one_name_in_two_folders_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    shared = dict.fromkeys(BASIS_FIELDS, "the same")
    rows = [
        shared | {"question": "tissue type", "image": f"{case}/1.png", "familiarity": f"{d} times the limit"}
        for case, d in (("P1", 0.5), ("P2", 3.5))
    ]
    show_basis(rows)
    said = capsys.readouterr().out
    assert "0.5 times the limit (P1/1.png)" in said
    assert "3.5 times the limit (P2/1.png)" in said
    show_basis([rows[0], rows[1] | {"image": "P2/2.png"}])
    assert "3.5 times the limit (2.png)" in capsys.readouterr().out


def test_every_output_states_every_field_of_the_basis(
    real_ihc: np.ndarray,
    trained: str,
    write_patches: Callable[..., ShardSet],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    patch, slide = tmp_path / "patch.png", tmp_path / "slide.tiff"
    patch.write_bytes(encode_png(real_ihc[:128, :128]))
    write_pyramid(slide, real_ihc, mpp=0.25)
    options = {"model": trained, "biomarker": "Ki67", "organ": "Lung", "slide": False}
    rows = _classify([patch], tmp_path, image_mpp=0.25, **options)
    said = capsys.readouterr().out
    (served,) = _served(trained, real_ihc[:128, :128], biomarker="Ki67", organ="Lung", mpp=0.25)
    assert [row["question"] for row in rows] == ["tissue type", "Ki67 staining"]
    for row, (name, answer) in zip(rows, served.items(), strict=True):
        assert tuple(answer["basis"]) == BASIS_FIELDS, name
        assert {field: row[field] for field in BASIS_FIELDS} == answer["basis"]
        assert all(text in said for text in answer["basis"].values())
    whole = _classify([slide], tmp_path, **(options | {"slide": True}))
    tree = json.loads((tmp_path / "slide.geojson").read_text())
    metadata = tree["features"][0]["properties"]["metadata"]
    for row in whole:
        stated = {field: metadata[f"{row['question']}: {field.replace('_', ' ')}"] for field in BASIS_FIELDS}
        assert stated == {field: row[field] for field in BASIS_FIELDS}
    shards = write_patches([real_ihc[:128, :128], real_ihc[128:256, :128]], biomarker="Ki67")
    page, found = tmp_path / "page.html", tmp_path / "found.csv"
    retrieve_command(
        str(patch), model=trained, index=shards.uri, page=page, csv=found, image_mpp=0.25, biomarker="Ki67"
    )
    with found.open(newline="", encoding="utf-8") as file:
        match = next(csv.DictReader(file))
    shown = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page.read_text(encoding="utf-8")))
    said = capsys.readouterr().out
    for field in BASIS_FIELDS:
        assert match[field]
        assert match[field] in said
        assert shown[field.replace("_", " ")].replace("&#39;", "'") == match[field]


def test_the_basis_states_training_calibration_biomarker_organ_and_scale(
    real_ihc: np.ndarray, model: DualEncoder
) -> None:
    def basis(history: TrainingHistory, biomarker: str, organ: str | None, scale: Scale) -> Basis:
        classifier = Classifier(model, ask(biomarker=biomarker)[1:], history=history, organ=organ)
        (row,) = classifier.classify([real_ihc[:128, :128]], scale=scale)
        return row["staining"].basis

    known = basis(HISTORY, "Ki67", "lung", Scale(0.25, "file"))
    assert known.trained_on == "mihic (generated): 1,512 patches; began as tiny (random weights)"
    assert known.calibrated_on == "not calibrated"
    assert "research use only" in known.use
    assert known.biomarker == "Ki67: seen in training, 126 patches"
    assert known.organ == "lung: seen in training; trained on lung"
    assert known.scale.startswith("0.25 µm per pixel (file)")
    other = basis(HISTORY, "CD31", "kidney", Scale())
    assert other.biomarker == "CD31: not seen in training"
    assert other.organ == "kidney: not seen in training; trained on lung"
    assert other.scale.startswith("unknown")
    unknown = basis(TrainingHistory.of("clip", {}), "CD31", None, Scale())
    assert unknown.trained_on.startswith("not recorded: clip")
    assert "not recorded" in unknown.biomarker
    assert "not recorded" in unknown.organ
    assert basis(TrainingHistory.of("tiny", {}), "CD3", None, Scale()).trained_on.startswith("nothing")
    earlier = TrainingHistory.of(
        "x", {"terms": {"datasets": {"mihic-generated": "none"}}, "began_as": "clip"}
    )
    assert earlier.datasets == "mihic-generated; began as clip"


def _gates(classifier: Classifier, pixels: np.ndarray, scale: Scale) -> dict[str, str | None]:
    (row,) = classifier.classify([pixels], scale=scale)
    for answer in row.values():
        assert (answer.label == NOT_ANSWERED) == (answer.refusal is not None)
        assert (answer.similarity is None) == (answer.refusal is not None)
    return {name: answer.refusal and answer.refusal.gate for name, answer in row.items()}


def test_glass_an_h_and_e_image_and_another_scale_are_not_answered(
    real_ihc: np.ndarray, h_and_e: np.ndarray, model: DualEncoder
) -> None:
    questions = ask(biomarker="CD31", guess_biomarker=True)
    classifier = Classifier(model, questions, history=HISTORY)
    tissue = real_ihc[:128, :128]
    every = ["tissue", "staining", "biomarker_guess"]
    for mpp in (None, 0.13, 0.25, 0.49):
        scale = Scale.of(file=None, option=mpp)
        assert _gates(classifier, tissue, scale) == dict.fromkeys(every), mpp
    for mpp in (0.12, 0.51):
        assert _gates(classifier, tissue, Scale(mpp, "option")) == dict.fromkeys(every, "scale")
    assert _gates(classifier, GLASS, Scale(0.25, "option")) == dict.fromkeys(every, "glass")
    (of_glass,) = classifier.classify([GLASS])
    assert {answer.basis.coverage for answer in of_glass.values()} == {"nearly no tissue"}
    assert of_glass["staining"].dab is None, "there is no tissue of which DAB has a share"
    assert _gates(classifier, h_and_e, Scale()) == dict.fromkeys(every, "stain")
    untold = Classifier(model, questions)  # a model whose training is unknown may know H&E
    stained = {"tissue": None, "staining": "stain", "biomarker_guess": "stain"}
    assert _gates(untold, h_and_e, Scale()) == stained
    assert _gates(untold, tissue, Scale(5.0, "option")) == dict.fromkeys(every)


def test_force_shows_the_answer_and_marks_it_in_every_output(
    trained: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    glass = tmp_path / "glass.png"
    glass.write_bytes(encode_png(GLASS))
    (held,) = _classify([glass], tmp_path, model=trained)
    assert (held["answer"], held["gate"], held["forced"]) == (NOT_ANSWERED, "glass", "")
    assert not any(held[column] for column in ("similarity", "margin", "probability", "prompt"))
    assert held["reason"] in capsys.readouterr().out
    (shown,) = _classify([glass], tmp_path, model=trained, force=True)
    assert (shown["gate"], shown["forced"], shown["reason"]) == ("glass", "forced", held["reason"])
    assert shown["answer"] != NOT_ANSWERED
    assert re.search(r"\bforced\b", capsys.readouterr().out)
    (quiet,), (marked,) = _served(trained, GLASS), _served(trained, GLASS, force=True)
    assert (quiet["tissue"]["label"], quiet["tissue"]["similarity"]) == (NOT_ANSWERED, None)
    assert (quiet["tissue"]["answered"], quiet["tissue"]["forced"], quiet["tissue"]["top"]) == (
        False,
        False,
        [],
    )
    assert marked["tissue"]["label"] == shown["answer"]
    assert (marked["tissue"]["answered"], marked["tissue"]["forced"]) == (False, True)
    assert marked["tissue"]["reason"] == held["reason"]


def test_results_for_a_query_image_of_glass_are_held_back_unless_forced(
    real_ihc: np.ndarray, trained: str, write_patches: Callable[..., ShardSet], tmp_path: Path
) -> None:
    glass, out, page = tmp_path / "glass.png", tmp_path / "rows.csv", tmp_path / "page.html"
    glass.write_bytes(encode_png(GLASS))
    shards = write_patches([real_ihc[:128, :128], real_ihc[128:256, :128]])
    found = {}
    for force in (False, True):
        retrieve_command(str(glass), model=trained, index=shards.uri, csv=out, page=page, force=force)
        with out.open(newline="", encoding="utf-8") as file:
            found[force] = list(csv.DictReader(file))
        assert page.read_text().count("real/") == (4 if force else 0)
    assert [(row["rank"], row["patch_id"]) for row in found[False]] == [("", NOT_ANSWERED)]
    assert [(row["rank"], row["forced"]) for row in found[True]] == [("1", "forced"), ("2", "forced")]
    assert all(row["reason"] for rows in found.values() for row in rows)


def test_the_dab_area_stands_beside_answers_about_staining_only(
    real_ihc: np.ndarray, model: DualEncoder
) -> None:
    (row,) = Classifier(model, ask(biomarker="Ki67", guess_biomarker=True)).classify([real_ihc])
    assert row["staining"].dab == pytest.approx(dab_features(real_ihc)[0])
    assert row["staining"].dab > 0.02
    assert row["tissue"].dab is None


def test_an_image_that_is_shrunk_more_than_four_times_is_said_to_be(
    real_ihc: np.ndarray, model: DualEncoder
) -> None:
    classifier = Classifier(model, history=HISTORY)
    for pixels, scale, squashed in (
        (np.tile(real_ihc, (2, 2, 1)), Scale(), True),  # 1024 px, of a model trained on 128 px
        (real_ihc[:500, :500], Scale(), False),
        (real_ihc[:128, :128], Scale(1.1, "option"), True),
    ):
        (row,) = classifier.classify([pixels], scale=scale)
        assert ("squashed" in row["tissue"].basis.scale) == squashed


def test_a_file_that_states_its_microns_per_pixel_is_read_at_them_unless_the_user_gives_others(
    real_ihc: np.ndarray, trained: str, tmp_path: Path
) -> None:
    file = tmp_path / "patch.tiff"
    write_pyramid(file, real_ihc[:128, :128], mpp=0.25)
    (row,) = _classify([file], tmp_path, model=trained)
    assert row["scale"].startswith("0.25 µm per pixel (file)")
    (row,) = _classify([file], tmp_path, model=trained, image_mpp=1.0)
    assert (row["answer"], row["gate"]) == (NOT_ANSWERED, "scale")
    assert row["scale"].startswith("1 µm per pixel (option)")


def test_the_fields_of_the_basis_are_words_of_people_too() -> None:
    basis = Basis(**dict.fromkeys(BASIS_FIELDS, "x"))
    assert list(basis.by_title()) == [field.replace("_", " ") for field in asdict(basis)]
