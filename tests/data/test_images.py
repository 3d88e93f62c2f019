"""Images become the right RGB pixels, or are refused with the property at fault."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import tifffile
from layouts import bad_images, encoded
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from his2lip.data.images.codec import decode, encode_png, jpeg_head
from his2lip.errors import ImageError

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)
PIXELS[:10] = 255


@pytest.mark.parametrize(("name", "data", "key"), list(bad_images(PIXELS)))
def test_bad_image_is_refused_with_the_property_at_fault(name: str, data: bytes, key: str) -> None:
    with pytest.raises(ImageError) as refused:
        decode(data)
    assert refused.value.key == key


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_lossless_formats_give_their_pixels_back(kind: str) -> None:
    assert (decode(encoded(Image.fromarray(PIXELS), kind)) == PIXELS).all()


def test_grey_palette_and_bilevel_images_become_rgb() -> None:
    for mode in ("L", "P", "1"):
        image = Image.fromarray(PIXELS).convert(mode)
        assert (decode(encoded(image, "PNG")) == np.asarray(image.convert("RGB"))).all()


def test_transparent_pixels_are_laid_on_white() -> None:
    rgba = np.dstack([PIXELS, np.zeros(PIXELS.shape[:2], np.uint8)])
    rgba[20:, :, 3] = 255
    seen = decode(encoded(Image.fromarray(rgba), "PNG"))
    assert (seen[:20] == 255).all()
    assert (seen[20:] == PIXELS[20:]).all()


# What a viewer shows of stored pixels, by orientation (CIPA DC-008, 4.6.4; TIFF 6.0, section 8).
TURNED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: np.rot90(p),
}


def with_orientation(orientation: int, kind: str) -> bytes:
    """PIXELS in one format, with an orientation tag (EXIF or TIFF)."""
    image = Image.fromarray(PIXELS)
    if kind.startswith("TIFF"):
        options: dict[str, object] = {"tiffinfo": {0x0112: orientation}}
        return encoded(image, "TIFF", compression=kind.partition(" ")[2] or None, **options)
    exif = image.getexif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100, "subsampling": 0}
    return encoded(image, kind, exif=exif, **(options if kind != "PNG" else {}))


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG", "TIFF", "TIFF tiff_adobe_deflate"])
def test_one_picture_has_the_same_pixels_in_every_format_and_orientation(orientation: int, kind: str) -> None:
    pixels = decode(with_orientation(orientation, kind)).astype(int)
    expected = TURNED[orientation](PIXELS)
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).max() <= (4 if kind == "JPEG" else 0)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_only_exif_turns_an_image_not_xmp(kind: str) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = encoded(Image.fromarray(PIXELS), kind, xmp=xmp)
    if kind == "PNG":
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp.decode())
        data = encoded(Image.fromarray(PIXELS), kind, pnginfo=info)
    assert b"tiff:Orientation" in data
    assert decode(data).shape == PIXELS.shape


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


def test_the_head_of_a_jpeg_tells_its_size_and_whether_it_has_exif() -> None:
    plain = encoded(Image.fromarray(PIXELS), "JPEG")
    grey = encoded(Image.fromarray(PIXELS).convert("L"), "JPEG", progressive=True)
    height, width = PIXELS.shape[:2]
    assert jpeg_head(plain) == (height, width, 3, False)
    assert jpeg_head(memoryview(grey)) == (height, width, 1, False)
    assert jpeg_head(with_orientation(6, "JPEG")) == (height, width, 3, True)
    comment = segment(0xFE, b"Exif\x00")  # the word in a comment turns nothing
    assert jpeg_head(plain[:2] + comment + b"\xff\xff" + plain[3:]) == (height, width, 3, False)
    behind = with_orientation(6, "JPEG")
    assert jpeg_head(behind[:2] + segment(0xE2, b"x" * 60_000) + behind[2:]).exif
    for unclear in (plain[:40], plain[:2] + b"\x00" + plain[2:], b"\xff\xd8\xff"):
        assert jpeg_head(unclear) == (0, 0, 0, True)


def test_values_are_returned_as_stored_whatever_the_icc_profile() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for kind in ("PNG", "TIFF"):
        data = encoded(Image.fromarray(PIXELS), kind, icc_profile=profile)
        assert profile[:64] in data or kind == "PNG"
        assert (decode(data) == PIXELS).all()


def test_signed_pixels_are_refused() -> None:
    out = io.BytesIO()
    tifffile.imwrite(out, PIXELS[..., 0].astype(np.int8))
    with pytest.raises(ImageError) as refused:
        decode(out.getvalue())
    assert refused.value.key == "sign"


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "WEBP"])
def test_a_file_of_several_pictures_is_refused(kind: str) -> None:
    pages = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
    with pytest.raises(ImageError) as refused:
        decode(encoded(pages[0], kind, save_all=True, append_images=pages[1:]))
    assert refused.value.key == "pages"
    assert "2" in refused.value.what


def test_a_tiff_with_smaller_copies_is_its_first_page() -> None:
    first = Image.fromarray(PIXELS)
    for other in (first.resize((32, 20)), first.resize((16, 10))):
        assert (decode(encoded(first, "TIFF", save_all=True, append_images=[other])) == PIXELS).all()
    with pytest.raises(ImageError) as refused:  # of another shape, so another picture
        decode(encoded(first, "TIFF", save_all=True, append_images=[first.resize((32, 32))]))
    assert refused.value.key == "pages"


def test_fast_jpeg_decoder_agrees_with_pillow_on_real_ihc(real_ihc: np.ndarray) -> None:
    data = encoded(Image.fromarray(real_ihc), "JPEG", quality=90)
    want = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(decode(data) - want).max() <= 1


def test_a_memoryview_is_decoded_like_bytes(real_ihc: np.ndarray) -> None:
    data = encode_png(real_ihc)
    assert (decode(memoryview(data)) == real_ihc).all()


def test_the_caller_sets_the_limit_on_pixels() -> None:
    with pytest.raises(ImageError) as refused:
        decode(encode_png(PIXELS), max_pixels=PIXELS.shape[0] * PIXELS.shape[1] - 1)
    assert refused.value.key == "max_pixels"
    assert decode(encode_png(PIXELS), max_pixels=PIXELS.shape[0] * PIXELS.shape[1]).shape == PIXELS.shape


@pytest.mark.filterwarnings("error")
def test_an_image_of_a_slide_s_size_is_decoded_where_the_caller_allows_it() -> None:
    data = encoded(Image.new("1", (15_000, 12_000)), "PNG")  # more than Pillow's own bound
    with pytest.raises(ImageError) as refused:
        decode(data)
    assert refused.value.key == "max_pixels"
    assert "15000 x 12000 px" in refused.value.what
    assert decode(data, max_pixels=200_000_000).shape == (12_000, 15_000, 3)
    assert Image.MAX_IMAGE_PIXELS is not None
