"""The encoder of images: the same features on any number of threads, and those of the whole batch."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from his2lip.data.images import encode_jpeg, encode_png
from his2lip.data.images.codec import decode
from his2lip.evaluation.encoders import PART, ModelEncoder
from his2lip.evaluation.perturbations import Perturbation, PerturbedEncoder
from his2lip.evaluation.views import View
from his2lip.models import DualEncoder, load_model


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    return load_model("tiny", seed=3)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def crops(model: DualEncoder, count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, *model.preprocess.size, 3), dtype=np.uint8)


@pytest.mark.parametrize("count", [1, PART, 3 * PART - 3])
@pytest.mark.usefixtures("threads")
def test_features_are_the_same_to_the_bit_on_any_number_of_threads(model: DualEncoder, count: int) -> None:
    images, found = crops(model, count), []
    for number in (1, 2, 5):
        torch.set_num_threads(number)
        found.append(ModelEncoder(model).encode(images))
        assert torch.get_num_threads() == number
    assert found[0].shape == (count, model.dim)
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])


@pytest.mark.usefixtures("threads")
def test_features_of_parts_are_those_of_the_whole_batch(model: DualEncoder) -> None:
    images = crops(model, 2 * PART + 1)
    torch.set_num_threads(2)
    with torch.inference_mode():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        whole = model.eval().encode_image(model.preprocess.normalize(pixels), normalize=False)
    np.testing.assert_allclose(ModelEncoder(model).encode(images), whole.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("threads")
def test_an_error_of_the_tower_is_raised_and_the_threads_are_kept(model: DualEncoder) -> None:
    images = crops(model, 2 * PART)
    torch.set_num_threads(2)
    with pytest.raises(RuntimeError):
        ModelEncoder(model).encode(images[..., :2])  # two channels
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("preprocessing", ["native", "released"])
@pytest.mark.parametrize("side", [None, 48, 100])
def test_an_image_decoded_in_its_slot_has_the_pixels_of_its_crop(
    model: DualEncoder, real_ihc: np.ndarray, side: int | None, preprocessing: Any
) -> None:
    encoder, size = ModelEncoder(model, preprocessing=preprocessing), model.preprocess.size[0]
    side = side or size
    pixels = np.ascontiguousarray(real_ihc[:side, : side + (side == 100)])
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[274] = 6  # the tag of orientation (CIPA DC-008, 4.6.4): a quarter turn
    Image.fromarray(pixels).save(turned, "JPEG", exif=exif)
    grey = io.BytesIO()
    Image.fromarray(pixels).convert("L").save(grey, "PNG")
    files = [encode_jpeg(pixels), encode_png(pixels), turned.getvalue(), grey.getvalue()]
    slots = encoder.slots(len(files))
    assert slots is not None
    for data, place in zip(files, slots, strict=True):
        encoder.fill(data, place)
        (crop,) = encoder.crops(decode(data), None)
        np.testing.assert_array_equal(place, crop)


def test_views_and_perturbations_of_which_an_image_is_not_one_whole_crop_have_no_slots(
    model: DualEncoder,
) -> None:
    assert ModelEncoder(model, view=View(kind="tiles")).slots(2) is None
    assert ModelEncoder(model, view=View(kind="centre")).slots(2) is None
    assert PerturbedEncoder(model, Perturbation("blur", 1.0)).slots(2) is None
