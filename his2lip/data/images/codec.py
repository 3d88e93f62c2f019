"""Decoding of image bytes to RGB, and refusal, with a reason, of what would give wrong pixels."""

from __future__ import annotations

import io
import threading

import numpy as np
import simplejpeg
from PIL import Image

from his2lip.errors import ImageError

# Pixels of one image, as many as Pillow bears without a warning; larger images are tiled as slides.
MAX_PIXELS = 89_478_485
# Pixels a side. Less holds no tissue: the smallest published patches are 64 px.
MIN_SIDE = 8
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")

_pillow_bound = threading.Lock()  # its bound on pixels is global; ours is the caller's, and holds sooner
_EXIF_WINDOW = 128 << 10  # bytes; EXIF stands before the pixels, after at most one colour profile
_SIXTEEN_BIT = "has 16 bits a channel, of which the used range is unknown"
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


def decode(data: bytes | memoryview, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Pixels of an encoded image: uint8 (H, W, 3) RGB, turned as its EXIF orientation says.

    Grey and palette images are widened to RGB, transparency is laid on white (glass is white). CMYK, 16-bit
    and floating-point images are refused on purpose: their conversion would have to guess colours.
    Raises ImageError for those, and for empty, truncated, unknown, tiny (`MIN_SIDE`) and huge (`max_pixels`)
    images. Releases the GIL while it decodes JPEG.
    """
    if not _is_jpeg(data):
        return _decode_with_pillow(data, max_pixels)
    height, width = _jpeg_size(data)
    _check_size(width, height, max_pixels)
    try:
        pixels = simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError as error:
        raise _jpeg_error(error) from None
    return _turned(pixels, _jpeg_orientation(data))


def probe(data: bytes | memoryview, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(width, height) in pixels as `decode` will give them, from the header alone.

    Raises ImageError where the header shows already that `decode` would; truncated pixels do not show.
    """
    if _is_jpeg(data):
        height, width = _jpeg_size(data)
        orientation = _jpeg_orientation(data)
    else:
        with _open(data) as image:
            _check_mode(image, bytes(data[:32]))
            width, height = image.size
            orientation = _orientation(image)
    _check_size(width, height, max_pixels)
    return (height, width) if orientation >= 5 else (width, height)


def encode_png(pixels: np.ndarray) -> bytes:
    """uint8 (H, W, 3) RGB as PNG bytes, the same bytes for the same pixels."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG", compress_level=3)
    return out.getvalue()


def encode_jpeg(pixels: np.ndarray, *, quality: int = 90) -> bytes:
    """uint8 (H, W, 3) RGB as JPEG bytes without chroma subsampling (stains differ in chroma)."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=quality, colorsubsampling="444")


def _is_jpeg(data: bytes | memoryview) -> bool:
    if len(data) == 0:
        raise ImageError("the image is empty (0 bytes)")
    return bytes(data[:3]) == b"\xff\xd8\xff"


def _jpeg_size(data: bytes | memoryview) -> tuple[int, int]:
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise _jpeg_error(error) from None
    if colorspace in _REFUSED_MODES:
        raise ImageError(f"the image {_REFUSED_MODES[colorspace]}", fix=_FIX)
    return height, width


def _jpeg_orientation(data: bytes | memoryview) -> int:
    if b"Exif\x00" not in bytes(data[:_EXIF_WINDOW]):
        return 1
    with _open(data) as image:
        return _orientation(image)


def _jpeg_error(error: ValueError) -> ImageError:
    text = str(error).strip().rstrip(".")
    kind = "truncated" if "remature end" in text else "broken"
    return ImageError(f"the JPEG is {kind}: {text[:120]}", fix="fetch the file again")


def _decode_with_pillow(data: bytes | memoryview, max_pixels: int) -> np.ndarray:
    with _open(data) as image:
        _check_mode(image, bytes(data[:32]))
        _check_size(*image.size, max_pixels)
        orientation = _orientation(image)
        try:
            image.load()
        except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, struct.error, zlib.error, …
            reason = str(error) or type(error).__name__
            raise ImageError(f"the image is truncated or broken: {reason[:120]}") from None
        return _turned(np.array(_on_white(image)), orientation)


def _open(data: bytes | memoryview) -> Image.Image:
    if len(data) == 0:
        raise ImageError("the image is empty (0 bytes)")
    with _pillow_bound:
        bound, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:  # the header alone is read here
            return Image.open(io.BytesIO(data), formats=FORMATS)
        except Exception:  # an unknown format, and whatever a plugin trips over in a broken header
            said = f"this is not an image in {', '.join(FORMATS)}, or its header is broken"
            raise ImageError(said) from None
        finally:
            Image.MAX_IMAGE_PIXELS = bound


def _check_mode(image: Image.Image, header: bytes) -> None:
    if image.mode in _REFUSED_MODES:
        raise ImageError(f"the image {_REFUSED_MODES[image.mode]}", fix=_FIX)
    if _bits(image, header) > 8:
        raise ImageError(f"the image {_SIXTEEN_BIT}", fix=_FIX)


def _bits(image: Image.Image, header: bytes) -> int:
    """Bits a channel in the file: Pillow opens 16-bit RGB as 8-bit without a word, so the file is asked."""
    if image.format == "PNG":
        return header[24] if len(header) > 24 else 8  # IHDR's bit depth (PNG specification, 11.2.2)
    if image.format == "TIFF":
        return max(image.tag_v2.get(258, (8,)))  # type: ignore[attr-defined]  # BitsPerSample
    return 8


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if min(width, height) < MIN_SIDE:
        raise ImageError(f"the image is {width} x {height} px; {MIN_SIDE} px a side is the least")
    if width * height > max_pixels:
        raise ImageError(
            f"the image is {width} x {height} px, over the bound of {max_pixels / 1e6:.0f} million pixels: "
            "a slide, or a decompression bomb",
            fix="tile a slide (prepare --view 'tiles(…)', classify --slide)",
        )


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # broken EXIF says nothing about the pixels
        return 1


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels as EXIF orientation 1 to 8 means them to be seen (CIPA DC-008, 4.6.4)."""
    if orientation in (2, 7):
        pixels = pixels[:, ::-1]
    if orientation in (4, 5):
        pixels = pixels[::-1]
    turns = {3: 2, 5: 3, 6: 3, 7: 3, 8: 1}.get(orientation, 0)
    return np.ascontiguousarray(np.rot90(pixels, turns))


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        ground = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(ground, layer).convert("RGB")
    return image.convert("RGB")
