"""Images become the right RGB pixels, or are refused with a reason."""

from __future__ import annotations

import io

import numpy as np
import pytest
from layouts import bad_images, encoded
from PIL import Image, ImageOps

from his2lip.data.images.codec import decode, encode_png, probe
from his2lip.errors import ImageError

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)
PIXELS[:10] = 255


@pytest.mark.parametrize(("name", "data", "reason"), list(bad_images(PIXELS)))
def test_bad_image_is_refused_with_its_reason(name: str, data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        decode(data)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_lossless_formats_give_their_pixels_back(kind: str) -> None:
    assert (decode(encoded(Image.fromarray(PIXELS), kind)) == PIXELS).all()


def test_grey_palette_and_bilevel_become_rgb() -> None:
    for mode in ("L", "P", "1"):
        image = Image.fromarray(PIXELS).convert(mode)
        assert (decode(encoded(image, "PNG")) == np.asarray(image.convert("RGB"))).all()


def test_transparency_is_laid_on_white() -> None:
    rgba = np.dstack([PIXELS, np.zeros(PIXELS.shape[:2], np.uint8)])
    rgba[20:, :, 3] = 255
    seen = decode(encoded(Image.fromarray(rgba), "PNG"))
    assert (seen[:20] == 255).all()
    assert (seen[20:] == PIXELS[20:]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_exif_orientation_is_applied_as_pillow_does(orientation: int, kind: str) -> None:
    image = Image.fromarray(PIXELS)
    exif = image.getexif()
    exif[0x0112] = orientation
    data = encoded(image, kind, exif=exif)
    want = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")).astype(int)
    seen = decode(data)
    assert seen.shape == want.shape
    assert np.abs(seen - want).max() <= 1
    assert probe(data) == (seen.shape[1], seen.shape[0])


def test_fast_jpeg_decoder_agrees_with_pillow_on_real_ihc(real_ihc: np.ndarray) -> None:
    data = encoded(Image.fromarray(real_ihc), "JPEG", quality=90)
    want = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(decode(data) - want).max() <= 1


def test_memoryview_decodes_without_a_copy_of_its_meaning(real_ihc: np.ndarray) -> None:
    data = encode_png(real_ihc)
    assert (decode(memoryview(data)) == real_ihc).all()
    assert probe(memoryview(data)) == (512, 512)


def test_bound_on_pixels_is_the_callers() -> None:
    with pytest.raises(ImageError, match="over the bound"):
        decode(encode_png(PIXELS), max_pixels=1000)


@pytest.mark.filterwarnings("error")
def test_image_of_a_slide_s_size_opens_where_the_caller_allows_it() -> None:
    data = encoded(Image.new("1", (15_000, 12_000)), "PNG")  # more than Pillow's own bound
    with pytest.raises(ImageError, match="15000 x 12000 px, over the bound of 89 million pixels"):
        decode(data)
    assert probe(data, max_pixels=200_000_000) == (15_000, 12_000)
    assert Image.MAX_IMAGE_PIXELS is not None
