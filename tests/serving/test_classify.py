"""Classification of real tiles: tissue type, staining of a named biomarker, and the guess of a biomarker."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from his2lip import taxonomy
from his2lip.cli.classify import classify as classify_command
from his2lip.data.images.codec import encode_png
from his2lip.errors import ConfigError, ImageError, TaxonomyError
from his2lip.evaluation.prompts import PromptSet
from his2lip.evaluation.views import View
from his2lip.models.encoder import DualEncoder
from his2lip.serving.classifier import Classifier
from his2lip.serving.questions import ask


def _features(
    model: DualEncoder, tiles: Sequence[np.ndarray], lines: Sequence[Sequence[str]], *, unit: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Image features (N, D), and mean features (C, D) of each class's sentences, by the model's methods."""
    with torch.inference_mode():
        images = torch.stack([model.preprocess(tile) for tile in tiles])
        texts = torch.stack([model.encode_text(list(own), normalize=unit).mean(0) for own in lines])
        return model.encode_image(images, normalize=unit), texts


def test_similarities_of_real_tiles_are_the_cosines_of_their_embeddings(
    real_tiles: Sequence[np.ndarray], model: DualEncoder
) -> None:
    rows = Classifier(model).classify(real_tiles)
    prompts = PromptSet.load("tissue")
    images, texts = _features(model, real_tiles, [own for _, own in prompts.sentences], unit=True)
    cosines = (images @ (texts / texts.norm(dim=1, keepdim=True)).T).numpy()
    assert len(rows) == 16
    for row, wanted in zip(rows, cosines, strict=True):
        (answer,) = row.values()
        assert answer.label == taxonomy.TISSUES[wanted.argmax()]
        assert answer.prompt in prompts.of(answer.label)
        assert list(answer.similarities) == list(taxonomy.TISSUES)
        np.testing.assert_allclose(list(answer.similarities.values()), wanted, atol=1e-5)
        assert answer.margin == pytest.approx(np.diff(np.sort(wanted))[-1], abs=1e-5)
        assert answer.probability is None, "no temperature was fitted"


def test_similarities_of_a_released_model_are_dot_products(
    real_tiles: Sequence[np.ndarray], model: DualEncoder
) -> None:
    released = copy.copy(model)
    released.similarity = "dot"
    images, texts = _features(
        model, real_tiles, [own for _, own in PromptSet.load("tissue").sentences], unit=False
    )
    wanted = (images @ texts.T).max(dim=1).values.numpy()
    found = [row["tissue"].similarity for row in Classifier(released).classify(real_tiles)]
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    assert (
        np.abs(
            np.array(found) - [r["tissue"].similarity for r in Classifier(model).classify(real_tiles)]
        ).max()
        > 0.1
    )


def test_each_image_is_encoded_once_for_all_questions(
    real_tiles: Sequence[np.ndarray], model: DualEncoder
) -> None:
    seen: list[int] = []
    hook = model.clip.visual.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    try:
        classifier = Classifier(model, ask(biomarker="CD3", guess_biomarker=True), batch_size=5)
        rows = classifier.classify(real_tiles)
    finally:
        hook.remove()
    assert (sum(seen), max(seen)) == (16, 5)
    assert [list(row) for row in rows] == [["tissue", "staining", "biomarker_guess"]] * 16


def test_batches_files_and_tiles_give_the_same_answers(
    model: DualEncoder, real_ihc: np.ndarray, real_tiles: Sequence[np.ndarray], tmp_path: Path
) -> None:
    file = tmp_path / "tile.png"
    file.write_bytes(encode_png(real_tiles[0]))
    whole = Classifier(model).classify([file, file.read_bytes(), *real_tiles[:3]])
    assert whole[0] == whole[1]
    assert whole[0]["tissue"].similarity == pytest.approx(whole[2]["tissue"].similarity, abs=1e-6)
    small = Classifier(model, batch_size=2).classify(real_tiles[:3])
    for a, b in zip(whole[2:], small, strict=True):
        assert a["tissue"].similarity == pytest.approx(b["tissue"].similarity, abs=1e-5)
    tiled = Classifier(model, view=View(kind="tiles", coverage=1), batch_size=3)
    (pooled,) = tiled.classify([real_ihc])
    mean = np.mean(
        [list(r["tissue"].similarities.values()) for r in Classifier(model).classify(real_tiles)], axis=0
    )
    np.testing.assert_allclose(list(pooled["tissue"].similarities.values()), mean, atol=1e-5)
    assert Classifier(model).classify([]) == []


@pytest.mark.parametrize(
    ("spelt", "title", "classes", "words"),
    [
        ("ki-67", "Ki67 staining", ("positive", "negative"), "brown DAB staining"),
        ("HER2-neu", "HER2 staining", ("negative", "positive"), "HER2-positive tumour"),
        ("cyclin d1", "Cyclin-D1 staining", ("positive", "negative"), "Cyclin-D1-positive cells"),
    ],
)
def test_a_named_biomarker_adds_the_question_for_its_staining(
    spelt: str, title: str, classes: tuple[str, ...], words: str
) -> None:
    tissue, staining = ask(biomarker=spelt)
    assert (tissue.title, staining.title, staining.prompts.classes) == ("tissue type", title, classes)
    assert any(words in line for line in staining.prompts.of("positive"))
    assert not any("{" in line for line in staining.prompts.all_sentences())


def test_the_guess_of_the_biomarker_is_a_question_whose_title_names_it_a_guess() -> None:
    *_, guess = ask(guess_biomarker=True)
    assert guess.title == "biomarker (a guess)"
    assert guess.prompts.classes == taxonomy.BIOMARKERS


@pytest.mark.parametrize(
    "pixels", [np.zeros((4, 4), dtype=np.uint8), np.zeros((4, 4, 3))], ids=["grey", "float64"]
)
def test_pixels_of_another_shape_or_dtype_are_refused(model: DualEncoder, pixels: np.ndarray) -> None:
    with pytest.raises(ImageError) as refused:
        Classifier(model).classify([pixels])
    assert refused.value.key == "pixels"


def test_an_image_that_cannot_be_read_or_decoded_is_refused(model: DualEncoder, tmp_path: Path) -> None:
    absent, damaged = tmp_path / "absent.png", tmp_path / "damaged.png"
    damaged.write_bytes(b"")
    for file in (absent, damaged):
        with pytest.raises(ImageError) as refused:
            Classifier(model).classify([file])
        assert refused.value.where == file
    with pytest.raises(ImageError) as refused:
        Classifier(model).classify([b""])
    assert refused.value.key == "bytes"


def test_a_misspelt_prompt_set_or_biomarker_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError) as unknown_set:
        ask(prompts="tissues")
    assert "'tissue'" in str(unknown_set.value.fix)
    with pytest.raises(TaxonomyError) as unknown_biomarker:
        ask(biomarker="Ki68")
    assert "'Ki67'" in str(unknown_biomarker.value.fix)


def test_a_prompt_set_of_one_class_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("classes: {positive: [brown nuclei]}")
    with pytest.raises(ConfigError) as refused:
        ask(prompts=tmp_path / "one.yaml")
    assert (refused.value.key, refused.value.where) == ("--prompts", f"{tmp_path}/one.yaml")


def test_prompts_with_a_placeholder_need_a_biomarker() -> None:
    with pytest.raises(ConfigError) as refused:
        ask(prompts="marker_staining")
    assert refused.value.key == "--biomarker"
    first, _ = ask(prompts="marker_staining", biomarker="sma")
    assert all("{" not in line for line in first.prompts.all_sentences())
    assert "SMA-positive cells" in first.prompts.of("positive")[0]


def test_hidden_files_are_left_out_and_file_names_that_are_not_utf8_are_escaped(
    real_tiles: Sequence[np.ndarray], tmp_path: Path
) -> None:
    folder, csv = tmp_path / "images", tmp_path / "rows.csv"
    odd = Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png"))
    for file in (folder / "a.png", odd, folder / ".thumbnails" / "a.png", folder / ".b.png"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode_png(real_tiles[0]))
    classify_command([folder], model="tiny", csv=csv)
    names = [line.split(",")[0].rpartition("/")[2] for line in csv.read_text(encoding="utf-8").splitlines()]
    assert names == ["image", "a.png", "caf\\udce9.png"]
