"""Decodes encoded bytes into a slot of a batch, at the model's input size, augmented."""

from __future__ import annotations

import threading

import numpy as np
import simplejpeg
from PIL import Image

from his2lip.data.images import decode, decode_image, jpeg_head
from his2lip.data.stream.augment import AS_IS, Change, Pixels, turn

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_local = threading.local()


def decode_into(
    data: memoryview, out: Pixels, *, change: Change = AS_IS, interpolation: str = "bicubic"
) -> Pixels:
    """Fills `out`, uint8 (S, S, 3) RGB, with the image in `data`, changed by `change`.

    An image of another size is squashed to S x S by Pillow's filter with antialiasing, as CLIP's
    preprocessing does. libjpeg's scaled decoding is not used, because it changes pixels. The result equals
    `images.decode` followed by these steps; a JPEG of size S x S is decoded without copies.

    Returns the same crop before jitter and turn, uint8 (S, S, 3): its staining is the published one. It is
    valid until this thread decodes again. Raises ImageError as `decode` does.
    """
    size = len(out)
    plain = _is_plain_jpeg(data, size)
    if plain and change == AS_IS:
        return _decode_jpeg(data, out)
    if plain and change.box is None:
        pixels = _decode_jpeg(data, _scratch(size))
    else:
        pixels = np.asarray(_resized(decode_image(data), size, change, interpolation))
    turn(pixels if change.jitter is None else change.jitter(pixels), change.turn, out)
    return pixels


def _is_plain_jpeg(data: memoryview, size: int) -> bool:
    """Whether `data` is surely a size x size JPEG that only needs decoding."""
    if data[:3] != b"\xff\xd8\xff":
        return False
    head = jpeg_head(data)
    return head.height == head.width == size and head.colours in (1, 3) and not head.exif


def _decode_jpeg(data: memoryview, out: Pixels) -> Pixels:
    try:
        return simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=out)
    except ValueError:
        np.copyto(out, decode(data))  # raises the ImageError with the reason
        return out


def _resized(image: Image.Image, size: int, change: Change, interpolation: str) -> Image.Image:
    """The crop of `change`, or the whole image, at size x size."""
    if change.box is None and image.size == (size, size):
        return image
    width, height = image.size
    left, top, right, bottom = change.box or (0.0, 0.0, 1.0, 1.0)
    box = (left * width, top * height, right * width, bottom * height)
    return image.resize((size, size), _FILTERS[interpolation], box=box)


def _scratch(size: int) -> Pixels:
    """Memory for one image, reused by its thread."""
    pixels: Pixels | None = getattr(_local, "pixels", None)
    if pixels is None or len(pixels) != size:
        pixels = _local.pixels = np.empty((size, size, 3), dtype=np.uint8)
    return pixels
