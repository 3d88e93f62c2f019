"""From encoded bytes to a slot of a batch: decoded, brought to the model's input size, turned."""

from __future__ import annotations

import threading

import numpy as np
import simplejpeg
from PIL import Image

from his2lip.data.augment import Pixels, turn
from his2lip.data.images import decode

_EXIF_WINDOW = 128 << 10  # bytes in which EXIF, which may turn an image, can begin (as in images.py)
_local = threading.local()


def decode_into(data: memoryview, out: Pixels, *, code: int = 0) -> None:
    """Fills `out`, uint8 (S, S, 3) RGB, with the image in `data`, turned by `code` (see augment.turn).

    Another size is squashed to S x S by Pillow's bicubic filter with antialiasing, as CLIP's preprocessing
    does; libjpeg's scaled decoding, which would change the pixels, is not used. Equal to `images.decode` and
    those two steps, without copies where a JPEG has the size already. Raises ImageError as it does.
    """
    size = len(out)
    if not _is_plain_jpeg(data, size):
        _put(_resized(decode(data), size), code, out)
    elif code == 0:
        _decode_jpeg(data, out)
    else:
        turn(_decode_jpeg(data, _scratch(size)), code, out)


def _is_plain_jpeg(data: memoryview, size: int) -> bool:
    """Whether `data` is a size x size JPEG that needs nothing but decoding; unsure is no."""
    if data[:3] != b"\xff\xd8\xff" or b"Exif\x00" in bytes(data[:_EXIF_WINDOW]):
        return False
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return False
    return height == width == size and colours in ("YCbCr", "Gray", "RGB")


def _decode_jpeg(data: memoryview, out: Pixels) -> Pixels:
    try:
        return simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=out)
    except ValueError:
        np.copyto(out, decode(data))  # raises the ImageError that says why
        return out


def _resized(pixels: Pixels, size: int) -> Pixels:
    if pixels.shape[:2] == (size, size):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))


def _put(pixels: Pixels, code: int, out: Pixels) -> None:
    if code:
        turn(pixels, code, out)
    else:
        np.copyto(out, pixels)


def _scratch(size: int) -> Pixels:
    """One image's worth of memory for each thread."""
    held: Pixels | None = getattr(_local, "pixels", None)
    if held is None or len(held) != size:
        held = _local.pixels = np.empty((size, size, 3), dtype=np.uint8)
    return held
