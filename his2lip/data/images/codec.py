"""Encoded images: bytes to RGB pixels and back; images whose pixels would have to be guessed are refused."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from his2lip.errors import ImageError

# Pixels of one image, the limit above which Pillow warns; larger images are tiled as slides.
MAX_PIXELS = 89_478_485
# Pixels per side. Smaller images hold no tissue: the smallest published patches are 64 px.
MIN_SIDE = 8
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")

_PNG = b"\x89PNG\r\n\x1a\n"
_pillow_lock = threading.Lock()  # Pillow's limit on pixels is global, while `max_pixels` is the caller's
_SOF = frozenset({0xC0, 0xC1, 0xC2})  # JPEG markers of a frame that libjpeg decodes (ITU-T T.81, B.1.1.3)
_SOS, _APP1 = 0xDA, 0xE1  # the markers before the pixels, and of EXIF
_SIXTEEN_BIT = "has 16 bits per channel, of which the used range is unknown"
_REFUSED_MODES = {
    "CMYK": "is CMYK, whose stain colours depend on a printer's profile",
    "YCCK": "is CMYK, whose stain colours depend on a printer's profile",
    "I": _SIXTEEN_BIT,
    "I;16": _SIXTEEN_BIT,
    "I;16B": _SIXTEEN_BIT,
    "I;16L": _SIXTEEN_BIT,
    "I;16N": _SIXTEEN_BIT,
    "F": "holds floating-point pixels, whose range is unknown",
    "LAB": "is in CIELAB, not RGB",
    "HSV": "is in HSV, not RGB",
}
_FIX = "convert it to 8-bit RGB"
# TIFF tags (TIFF 6.0, and NewSubfileType in section 8)
_NEW_SUBFILE_TYPE, _BITS_PER_SAMPLE, _ORIENTATION, _SAMPLE_FORMAT = 254, 258, 274, 339
_SIGNED = 2  # a value of SampleFormat
_ASPECT = 0.02  # relative difference of aspect ratios up to which a smaller TIFF page is the same picture


class JpegHead(NamedTuple):
    """What precedes the pixels of a JPEG.

    height, width  in pixels; 0 where they cannot be told
    colours        number of its channels; 0 likewise
    exif           whether it may have EXIF, which may turn it
    """

    height: int
    width: int
    colours: int
    exif: bool


def decode(data: bytes | memoryview, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Pixels of an encoded image: uint8 (H, W, 3) RGB, turned as its EXIF or TIFF orientation says.

    Grey and palette images become RGB. Transparent pixels are laid on white, the colour of glass. Values are
    returned as they are stored: an ICC profile is not applied. A multi-page TIFF gives its first page where
    the others are smaller copies of it.

    Raises ImageError for images whose pixels would have to be guessed (CMYK, CIELAB, 16-bit, signed,
    floating-point, several pictures in one file), and for empty, truncated, unknown, tiny (`MIN_SIDE`) and
    huge (`max_pixels`) images. Releases the GIL while it decodes JPEG.
    """
    if not _is_jpeg(data):
        return np.array(decode_image(data, max_pixels=max_pixels))
    height, width = _jpeg_size(data)
    _check_size(width, height, max_pixels)
    try:
        pixels = simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError as error:
        raise _jpeg_error(error) from None
    return _turned(pixels, _jpeg_orientation(data))


def encode_png(pixels: np.ndarray) -> bytes:
    """uint8 (H, W, 3) RGB as PNG bytes; equal pixels give equal bytes."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG", compress_level=3)
    return out.getvalue()


def encode_jpeg(pixels: np.ndarray, *, quality: int = 90) -> bytes:
    """uint8 (H, W, 3) RGB as JPEG bytes without chroma subsampling (stains differ in chroma)."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=quality, colorsubsampling="444")


def tiff_orientation(path: Path) -> int:
    """The orientation tag (1 to 8) of a TIFF's first page, and 1 for any other file."""
    try:
        with Image.open(path, formats=("TIFF",)) as image:
            return int(image.tag_v2.get(_ORIENTATION, 1))  # type: ignore[attr-defined]
    except Exception:  # not a TIFF, or one whose tags Pillow cannot read
        return 1


def _is_jpeg(data: bytes | memoryview) -> bool:
    if len(data) == 0:
        raise ImageError("the image is empty (0 bytes)", key="bytes")
    return bytes(data[:3]) == b"\xff\xd8\xff"


def _jpeg_size(data: bytes | memoryview) -> tuple[int, int]:
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise _jpeg_error(error) from None
    if colorspace in _REFUSED_MODES:
        raise ImageError(f"the image {_REFUSED_MODES[colorspace]}", key=colorspace, fix=_FIX)
    return height, width


def jpeg_head(data: bytes | memoryview) -> JpegHead:
    """What the segments before the pixels of a JPEG say (ITU-T T.81, annex B), read without searching it."""
    height = width = colours = 0
    exif, at = False, 2
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == _SOS:
            return JpegHead(height, width, colours, exif)
        if marker in _SOF:
            height, width = data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
            colours = data[at + 9]
        elif marker == _APP1:
            exif = exif or data[at + 4 : at + 9] == b"Exif\x00"
        at += 1 if marker == 0xFF else 2 + (data[at + 2] << 8 | data[at + 3])  # 0xFF fills
    return JpegHead(0, 0, 0, True)


def _jpeg_orientation(data: bytes | memoryview) -> int:
    if not jpeg_head(data).exif:
        return 1
    with _open(data) as image:
        return _orientation(image)


def _jpeg_error(error: ValueError) -> ImageError:
    text = str(error).strip().rstrip(".")
    kind = "truncated" if "remature end" in text else "broken"
    return ImageError(f"the JPEG is {kind}: {text[:120]}", key="pixels", fix="fetch the file again")


def decode_image(data: bytes | memoryview, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """`decode`, as an RGB image of Pillow, which spares copies where Pillow resizes it next."""
    if _is_jpeg(data):
        return Image.fromarray(decode(data, max_pixels=max_pixels))
    with _open(data) as image:
        _check_mode(image, bytes(data[:32]))
        _check_size(*image.size, max_pixels)
        _check_single(image)
        try:
            image.load()
        except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, struct.error, zlib.error, …
            reason = str(error) or type(error).__name__
            raise ImageError(f"the image is truncated or broken: {reason[:120]}", key="pixels") from None
        orientation = _orientation(image)  # after loading: a PNG may store its EXIF behind the pixels
        image = _on_white(image)
        return image if orientation == 1 else Image.fromarray(_turned(np.asarray(image), orientation))


def _open(data: bytes | memoryview) -> Image.Image:
    if len(data) == 0:
        raise ImageError("the image is empty (0 bytes)", key="bytes")
    if bytes(data[:8]) == _PNG:  # Image.open would find this class and check the limit, under our lock
        try:
            return PngImageFile(io.BytesIO(data))
        except Exception:  # whatever Pillow raises for a broken header
            raise ImageError("this is a PNG file with a broken header", key="format") from None
    with _pillow_lock:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:  # only the header is read here
            return Image.open(io.BytesIO(data), formats=FORMATS)
        except Exception:  # an unknown format, and whatever a plugin raises for a broken header
            what = f"this is not an image in {', '.join(FORMATS)}, or its header is broken"
            raise ImageError(what, key="format") from None
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _check_mode(image: Image.Image, header: bytes) -> None:
    if image.mode in _REFUSED_MODES:
        raise ImageError(f"the image {_REFUSED_MODES[image.mode]}", key=image.mode, fix=_FIX)
    if _bits(image, header) > 8:
        raise ImageError(f"the image {_SIXTEEN_BIT}", key="bits", fix=_FIX)
    if image.format == "TIFF" and _SIGNED in image.tag_v2.get(_SAMPLE_FORMAT, ()):  # type: ignore[attr-defined]
        what = "the image has signed pixels, whose black and white are unknown"
        raise ImageError(what, key="sign", fix=_FIX)


def _bits(image: Image.Image, header: bytes) -> int:
    """Bits per channel in the file; read from it because Pillow opens 16-bit RGB as 8-bit without notice."""
    if image.format == "PNG":
        return header[24] if len(header) > 24 else 8  # IHDR's bit depth (PNG specification, 11.2.2)
    if image.format == "TIFF":
        return max(image.tag_v2.get(_BITS_PER_SAMPLE, (8,)))  # type: ignore[attr-defined]
    return 8


def _check_single(image: Image.Image) -> None:
    """Raises ImageError for several pictures in one file: channels, focal planes, an animation.

    Further pages of a TIFF may be smaller copies of the first: those marked as reduced, and those of its
    aspect ratio.
    """
    try:
        count = getattr(image, "n_frames", 1)
    except Exception as error:  # Pillow reads the directories of all pages to count them
        what = f"the image is truncated or broken: {str(error)[:120]}"
        raise ImageError(what, key="pages") from None
    if count == 1:
        return
    first = image.size
    if image.format != "TIFF" or not all(_is_smaller_copy(image, page, first) for page in range(1, count)):
        what = f"the file holds {count} pictures, and which of them is meant is unknown"
        raise ImageError(what, key="pages", fix="save the picture that is meant in a file of its own")
    image.seek(0)


def _is_smaller_copy(image: Image.Image, page: int, first: tuple[int, int]) -> bool:
    try:
        image.seek(page)
        reduced = bool(int(image.tag_v2.get(_NEW_SUBFILE_TYPE, 0)) & 1)  # type: ignore[attr-defined]
    except Exception:  # a page that Pillow cannot describe may be anything
        return False
    (width, height), (full_width, full_height) = image.size, first
    same_shape = abs(width * full_height / (height * full_width) - 1) <= _ASPECT
    return width < full_width and height < full_height and (reduced or same_shape)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if min(width, height) < MIN_SIDE:
        what = f"the image is {width} x {height} px, below the minimum of {MIN_SIDE} px per side"
        raise ImageError(what, key="min_side")
    if width * height > max_pixels:
        raise ImageError(
            f"the image is {width} x {height} px, above the limit of {max_pixels / 1e6:.0f} million pixels: "
            "a slide, or a decompression bomb",
            key="max_pixels",
            fix="tile a slide (prepare --view 'tiles(…)', classify --slide)",
        )


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation that remains to be applied to the pixels of a loaded image."""
    if image.format == "TIFF":
        return 1  # Pillow applies a TIFF's orientation tag itself, to size and pixels
    for key in ("xmp", "XML:com.adobe.xmp"):  # Pillow's second source, which JPEGs are not asked for here
        image.info.pop(key, None)
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a broken EXIF block does not make the pixels wrong
        return 1


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """uint8 (H, W, 3) as the EXIF orientation 1 to 8 means it to be seen (CIPA DC-008, 4.6.4)."""
    if orientation in (2, 7):
        pixels = pixels[:, ::-1]
    if orientation in (4, 5):
        pixels = pixels[::-1]
    turns = {3: 2, 5: 3, 6: 3, 7: 3, 8: 1}.get(orientation, 0)
    return np.ascontiguousarray(np.rot90(pixels, turns))


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
