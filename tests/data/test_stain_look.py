"""Stain detection on real IHC, real H&E, and stains mixed from published vectors."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from his2lip.data.images.codec import decode
from his2lip.data.images.stain_detection import look_at
from his2lip.data.images.stain_vectors import AEC, DAB, EOSIN, HAEMATOXYLIN, transmit, unit

SECOND = {"DAB": DAB, "AEC": AEC, "H&E": EOSIN}


def tiles(pixels: np.ndarray, side: int) -> list[np.ndarray]:
    height, width = pixels.shape[:2]
    starts = [(y, x) for y in range(0, height - side + 1, side) for x in range(0, width - side + 1, side)]
    return [pixels[y : y + side, x : x + side] for y, x in starts]


def counted(pictures: list[np.ndarray]) -> Counter[str | None]:
    return Counter(look_at(picture).stain for picture in pictures)


@pytest.fixture(scope="module")
def amounts(real_ihc: np.ndarray) -> np.ndarray:
    """float32 (512, 512, 2): amounts of a first and a second stain in each pixel of real tissue."""
    from skimage.color import rgb2hed

    return np.clip(rgb2hed(real_ihc)[..., [0, 2]], 0, None).astype(np.float32) * 2.3


def stained(amounts: np.ndarray, second: str, *, strength: float = 1.0) -> np.ndarray:
    vectors = np.stack([unit(HAEMATOXYLIN), unit(SECOND[second])])
    return (255 * transmit(amounts * np.float32([1, strength]), vectors)).astype(np.uint8)


def test_real_dab_is_dab(real_ihc: np.ndarray) -> None:
    assert counted(tiles(real_ihc, 128)) == {"DAB": 16}


@pytest.mark.parametrize("stain", SECOND)
def test_stains_mixed_from_published_vectors_are_distinguished(amounts: np.ndarray, stain: str) -> None:
    assert counted(tiles(stained(amounts, stain), 128)) == {stain: 16}


def test_an_image_with_only_a_counterstain_is_haematoxylin(amounts: np.ndarray) -> None:
    seen = counted(tiles(stained(amounts, "DAB", strength=0.0), 128))
    assert set(seen) == {"haematoxylin", None}, "where all was DAB, glass is left"


def test_glass_shows_no_stain() -> None:
    glass = np.random.default_rng(0).integers(238, 250, (200, 300, 3), dtype=np.uint8)
    look = look_at(glass)
    assert (look.blank, look.stain, look.deposit) == (True, None, 0.0)


def test_a_few_brown_pixels_are_not_lost_to_sampling(amounts: np.ndarray) -> None:
    plain = stained(amounts, "DAB", strength=0.0)
    plain[100:180, 100:180] = stained(amounts, "DAB")[100:180, 100:180]
    assert look_at(plain).stain == "DAB"


def test_real_h_and_e_and_real_ihc_are_never_confused(shared: Path) -> None:
    folder = shared / "real_ihc"
    he, ihc = [], []
    for path in sorted(
        (*folder.glob("anhir*/*.jpg"), *folder.glob("flagship/*.jpg"), *folder.glob("BCData_sample/**/0.png"))
    ):
        (he if "-He-" in path.name else ihc).extend(tiles(decode(path.read_bytes()), 256))
    assert counted(he) == {"H&E": len(he)}
    seen = counted(ihc)
    assert set(seen) <= {"DAB", "haematoxylin", None}, (
        "a tile without a positive cell looks like haematoxylin"
    )
    assert seen["DAB"] > seen["haematoxylin"]
