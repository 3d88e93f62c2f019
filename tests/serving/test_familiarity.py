"""The limit of familiarity: images unlike the training patches are not answered, generated or real."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from his2lip.data.images.codec import decode
from his2lip.data.images.stain_vectors import DAB, EOSIN, HAEMATOXYLIN, transmit, unit
from his2lip.data.shards.reader import ShardSet, open_shards
from his2lip.errors import CheckpointError
from his2lip.evaluation.embeddings import read_images
from his2lip.models.checkpoint import save_checkpoint
from his2lip.models.encoder import DualEncoder
from his2lip.serving.appearance import appearance
from his2lip.serving.classifier import Answer, Classifier
from his2lip.serving.familiarity import FAMILIARITY, Familiarity, Region, fit_familiarity
from his2lip.serving.gates import NOT_ANSWERED
from his2lip.serving.history import TrainingHistory
from his2lip.serving.loading import load_for_inference
from his2lip.serving.questions import ask
from his2lip.serving.slide_maps import GREY, draw_classes
from his2lip.serving.slides import read_slide
from his2lip.synthetic.layouts import write_pyramid
from his2lip.synthetic.twins import write_twin


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """A sixth of the generated twin that the demo trains on."""
    folder = tmp_path_factory.mktemp("twin") / "mihic"
    write_twin("mihic", folder, scale=0.16)
    return open_shards(folder)


@pytest.fixture(scope="module")
def familiarity(twin: ShardSet, model: DualEncoder) -> Familiarity:
    found = fit_familiarity(model, twin, split="train", select="val")
    assert found is not None
    return found


@pytest.fixture(scope="module")
def classifier(model: DualEncoder, familiarity: Familiarity) -> Classifier:
    return Classifier(model, ask(biomarker="CD31"), history=TrainingHistory(familiarity=familiarity))


def _pixels(shards: ShardSet, split: str) -> list[np.ndarray]:
    count = len(shards.table(split, ["patch_id"]))
    return [decode(patch["image"]) for _, patch in read_images(shards, split, range(count))]


def _gates(answers: Sequence[dict[str, Answer]]) -> list[str | None]:
    return [row["tissue"].refusal and row["tissue"].refusal.gate for row in answers]


def test_the_limit_holds_back_one_percent_of_the_split_that_it_was_fitted_on(
    twin: ShardSet, familiarity: Familiarity, model: DualEncoder
) -> None:
    pixels = _pixels(twin, "val")
    features, _ = Classifier(model).features(pixels)
    distances = familiarity.distance(features, np.stack([appearance(image) for image in pixels]))
    assert familiarity.base.patches == len(pixels)
    assert (distances > 1).sum() == int(np.floor(0.01 * (len(pixels) - 1)) + 1)
    assert np.quantile(distances, 0.99) == pytest.approx(1)
    for part in (f"{len(pixels)} patches of mihic (generated), split val", "99%"):
        assert part in str(familiarity)


def test_patches_like_those_of_training_are_answered(twin: ShardSet, classifier: Classifier) -> None:
    found = _gates(classifier.classify(_pixels(twin, "test")))
    shown = [gate for gate in found if gate != "glass"]  # a patch of background is glass
    assert set(shown) == {None, "unfamiliar"}
    assert shown.count("unfamiliar") < 0.15 * len(shown)


def _textures() -> Iterator[tuple[str, np.ndarray]]:
    """Images whose colours are those of stained tissue, and whose textures are not, uint8 (128, 128, 3)."""
    rng = np.random.default_rng(1)
    stains = np.stack([unit(HAEMATOXYLIN), unit(DAB)])
    ramp = np.linspace(0.1, 0.8, 128)[None].repeat(128, axis=0)
    for name, first, second in (
        ("noise", rng.random((128, 128)), rng.random((128, 128))),
        ("ramp", ramp, 0.2 * ramp.T),
        ("stripes", 0.4 + 0.4 * np.sin(np.arange(128) / 2)[None].repeat(128, axis=0), 0.1 * ramp),
        ("blurred", gaussian_filter(rng.random((128, 128)), 8), 0.1 * ramp),
        ("flat", np.full((128, 128), 0.4), np.full((128, 128), 0.1)),
    ):
        light = transmit(np.stack([first, second], axis=-1).astype(np.float32), stains)
        yield name, (255 * light.clip(0, 1)).astype(np.uint8)


def test_textures_h_and_e_glass_and_a_real_image_are_not_answered_after_training_on_generated_patches(
    classifier: Classifier, real_ihc: np.ndarray
) -> None:
    rng = np.random.default_rng(0)
    nuclei = np.kron(rng.random((16, 16)) < 0.25, np.ones((8, 8)))
    amounts = np.stack([0.1 + 0.6 * nuclei, 0.5 * (1 - nuclei)], axis=-1).astype(np.float32)
    h_and_e = (255 * transmit(amounts, np.stack([unit(HAEMATOXYLIN), unit(EOSIN)]))).astype(np.uint8)
    images = dict(_textures()) | {"H&E": h_and_e, "glass": np.full((128, 128, 3), 243, np.uint8)}
    images |= {f"real {side}": real_ihc[:side, :side] for side in (128, 256, 512)}
    rows = dict(zip(images, classifier.classify(list(images.values())), strict=True))
    assert {name: row["tissue"].label for name, row in rows.items()} == dict.fromkeys(images, NOT_ANSWERED)
    stained = rows["H&E"]["staining"].refusal
    assert stained is not None
    assert stained.gate == "stain"


def test_no_real_image_is_answered_after_training_on_generated_patches(
    classifier: Classifier, shared: Path
) -> None:
    for file in sorted((shared / "real_ihc").rglob("*.*")):
        if file.suffix not in (".jpg", ".png") or "BCData/" in str(file):  # one of BCData is in BCData_sample
            continue
        pixels = decode(file.read_bytes())
        middle = [pixels[y : y + 256, x : x + 256] for y, x in ((0, 0), (250, 250))]
        for row in classifier.classify([pixels, *middle]):
            assert {answer.label for answer in row.values()} == {NOT_ANSWERED}, file


def test_tiles_beyond_the_limit_are_grey_and_are_no_part_of_the_slides_answer(
    twin: ShardSet, classifier: Classifier, tmp_path: Path
) -> None:
    known = [image for image in _pixels(twin, "train") if (image.mean(axis=-1) < 215).mean() > 0.5][:12]
    side = known[0].shape[0]
    noise = next(image for name, image in _textures() if name == "noise")
    strange = np.asarray(Image.fromarray(noise).resize((side, side)))
    pixels = np.concatenate(
        [np.concatenate(known[:6], axis=1), np.concatenate([strange, *known[6:11]], axis=1)]
    )
    write_pyramid(tmp_path / "slide.tiff", pixels, mpp=0.25)
    found = read_slide(tmp_path / "slide.tiff", classifier, size=side, mpp=0.25)
    question = found.questions[0]
    answered = found.answered(question)
    assert not answered[found.places.tolist().index([0, side])]
    assert answered.sum() >= 8
    assert sum(found.shares(question).values()) == pytest.approx(answered.mean())
    page = np.asarray(draw_classes(found, question))
    wanted = (found.thumbnail[side + 5, 5].astype(float) + GREY) / 2
    np.testing.assert_allclose(page[side + 5, 5], wanted, atol=1)
    features, _ = classifier.features(pixels[y : y + side, x : x + side] for x, y in found.places[answered])
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    mean = classifier.score(features.mean(axis=0, keepdims=True))["tissue"].scores[0]
    np.testing.assert_allclose(list(found.whole["tissue"].similarities.values()), mean, atol=1e-4)
    write_pyramid(tmp_path / "strange.tiff", np.tile(strange, (2, 4, 1)), mpp=0.25)
    none = read_slide(tmp_path / "strange.tiff", classifier, size=side, mpp=0.25)
    assert {answer.label for answer in none.whole.values()} == {NOT_ANSWERED}


def test_the_limit_is_stored_with_the_weights_that_it_was_fitted_to(
    familiarity: Familiarity, model: DualEncoder, real_ihc: np.ndarray, tmp_path: Path
) -> None:
    folder = save_checkpoint(tmp_path / "best", model, meta={})
    assert load_for_inference(str(folder)).history.familiarity is None
    familiarity.save(folder)
    loaded = load_for_inference(str(folder)).history.familiarity
    assert loaded is not None
    assert loaded.base == familiarity.base
    features, _ = Classifier(model).features([real_ihc])
    looks = appearance(real_ihc)[None]
    np.testing.assert_allclose(
        loaded.distance(features, looks), familiarity.distance(features, looks), rtol=1e-3
    )
    with pytest.raises(CheckpointError) as refused:
        Familiarity.load(folder, weights="other")
    assert refused.value.key == "weights"
    dataclasses.replace(familiarity, base=dataclasses.replace(familiarity.base, appearance=0)).save(folder)
    assert Familiarity.load(folder, weights=familiarity.base.weights) is None, "of another version"
    whole = familiarity.save(folder).read_bytes()
    for damaged in (b"{}", whole[:-1], whole[:-4] + b"\0\0\0\0", whole.replace(b"split", b"slipt")):
        (folder / FAMILIARITY).write_bytes(damaged)
        with pytest.raises(CheckpointError) as refused:
            load_for_inference(str(folder))
        assert (refused.value.where, refused.value.key) == (folder / FAMILIARITY, FAMILIARITY)


def test_no_limit_is_fitted_on_a_few_patches(
    real_tiles: Sequence[np.ndarray], model: DualEncoder, write_patches: Callable[..., ShardSet]
) -> None:
    shards = write_patches(real_tiles, split=["train"] * 12 + ["select"] * 4)
    assert fit_familiarity(model, shards, split="train", select="select") is None


def test_the_distance_to_a_region_is_mahalanobis_to_the_nearest_class() -> None:
    rng = np.random.default_rng(3)
    classes = ["a"] * 4000 + ["b"] * 4000
    values = rng.normal(size=(8000, 2)) * (2.0, 0.5) + np.repeat([[0.0, 0.0], [40.0, 0.0]], 4000, axis=0)
    region = Region.fit(values, classes)
    found = region.distance(np.array([[4.0, 0.0], [0.0, 1.0], [40.0, 1.0], [36.0, 0.0]]))
    np.testing.assert_allclose(found, 2, rtol=0.08)
