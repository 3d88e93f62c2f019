"""The encoder of images: the same features on any number of threads, and those of the whole batch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from his2lip.evaluation.encoders import PART, ModelEncoder
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
    return np.random.default_rng(count).integers(0, 256, (count, 3, *model.preprocess.size), dtype=np.uint8)


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
        whole = model.eval().encode_image(
            model.preprocess.normalize(torch.from_numpy(images)), normalize=False
        )
    np.testing.assert_allclose(ModelEncoder(model).encode(images), whole.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("threads")
def test_an_error_of_the_tower_is_raised_and_the_threads_are_kept(model: DualEncoder) -> None:
    images = crops(model, 2 * PART)
    torch.set_num_threads(2)
    with pytest.raises(RuntimeError):
        ModelEncoder(model).encode(images[:, :2])  # two channels
    assert torch.get_num_threads() == 2
