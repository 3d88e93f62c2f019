"""Statistics of images are those of their pixels; samples are bounded, and the same in any order of rows."""

from __future__ import annotations

import numpy as np
import pytest

from his2lip.data.check.image_stats import ImageStats
from his2lip.data.images.codec import decode
from his2lip.data.images.stain_detection import look_at


def gather(pictures: list[np.ndarray], *, samples: int = 0, order: list[int] | None = None) -> ImageStats:
    stats = ImageStats(samples=samples)
    for i in order or range(len(pictures)):
        names = {"patch_id": f"p{i}", "split": "train", "label": f"class {i % 2}"}
        stats.add(pictures[i], look_at(pictures[i]), stain="DAB", **names)
    return stats


@pytest.fixture
def squares(real_ihc: np.ndarray) -> list[np.ndarray]:
    return [real_ihc[y : y + 64, x : x + 64] for y in range(0, 256, 64) for x in range(0, 256, 64)]


def test_colour_brightness_and_size_are_those_of_the_pixels(squares: list[np.ndarray]) -> None:
    group = gather([*squares[::2], *squares[::2]]).groups["train", "class 0"]
    own = [s.reshape(-1, 3).mean(axis=0) for s in [*squares[::2], *squares[::2]][::2]]
    np.testing.assert_allclose(group.rgb, np.mean(own, axis=0), atol=0.51)
    greys = [colour.mean() for colour in own]
    np.testing.assert_allclose(group.brightness, (np.mean(greys), np.std(greys)), rtol=1e-6)
    assert (group.size, group.blank) == ("64 x 64 px", 0)


def test_blank_images_and_sizes_are_counted(squares: list[np.ndarray]) -> None:
    glass = np.full((32, 48, 3), 245, dtype=np.uint8)
    group = gather([squares[0], squares[1], glass]).groups["train", "class 0"]
    assert (group.images, group.blank, group.blank_percent) == (2, 1, "50.0%")
    assert group.size == "48 to 64 x 32 to 64 px"


def test_samples_are_bounded_and_the_same_in_any_order(squares: list[np.ndarray]) -> None:
    stats = gather(squares, samples=3)
    assert stats.samples == gather(squares, samples=3, order=list(range(16))[::-1]).samples
    assert {label: len(kept) for label, kept in stats.samples.items()} == {"class 0": 3, "class 1": 3}
    assert all(max(decode(data).shape) <= 96 for kept in stats.samples.values() for _, data in kept)
    assert gather(squares).samples == {}


def test_a_look_that_contradicts_the_declared_stain_is_a_warning(squares: list[np.ndarray]) -> None:
    assert list(gather(squares).warnings()) == []
    stats = ImageStats()
    for i, square in enumerate(squares):
        stats.add(square, look_at(square), patch_id=str(i), split="a", label="b", stain="H&E")
    (warning,) = stats.warnings()
    assert warning.startswith("16 of 16 images")
    assert "'H&E'" in warning
    assert warning.endswith("DAB")
