"""Writes squares of real pixels as files, and images that cannot be used."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from his2lip.data.images.codec import encode_jpeg, encode_png
from his2lip.data.readers import Reader
from his2lip.errors import DatasetError


class Cutter:
    """Cuts a new square of real pixels at each call, as PNG or JPEG bytes by the file's suffix."""

    def __init__(self, pixels: np.ndarray, side: int = 64) -> None:
        self._pixels, self._side, self._rng = pixels, side, np.random.default_rng(0)

    def square(self) -> np.ndarray:
        height, width = self._pixels.shape[:2]
        y, x = self._rng.integers(0, (height - self._side, width - self._side))
        return self._pixels[y : y + self._side, x : x + self._side]

    def write(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        encode = encode_jpeg if path.suffix in (".jpg", ".jpeg") else encode_png
        path.write_bytes(encode(self.square()))
        return path


def refusal(reader: Reader, key: str) -> DatasetError:
    """The error with which a reader refuses a file."""
    with pytest.raises(DatasetError) as refused:
        list(reader.patches(reader.item(key), None))
    return refused.value


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format=kind, **options)
    return out.getvalue()


def bomb() -> bytes:
    """A PNG of about a hundred bytes whose header states 60,000 x 60,000 pixels."""
    return _png(60_000, 60_000, depth=8, raw=b"\0" * 99)


def bad_images(pixels: np.ndarray) -> Iterator[tuple[str, bytes, str]]:
    """(file name, bytes, key of the error) of images that must be refused."""
    image = Image.fromarray(pixels)
    grey16 = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    png, jpeg = encode_png(pixels), encode_jpeg(pixels)
    yield "empty.png", b"", "bytes"
    yield "text.png", b"not an image at all", "format"
    yield "header.png", png[:20], "format"
    yield "truncated.png", png[: len(png) // 2], "pixels"
    yield "truncated.jpg", jpeg[: len(jpeg) // 2], "pixels"
    yield "cmyk.jpg", encoded(image.convert("CMYK"), "JPEG"), "CMYK"
    yield "cmyk.tif", encoded(image.convert("CMYK"), "TIFF"), "CMYK"
    yield "grey16.png", encoded(grey16, "PNG"), "I;16"
    yield "rgb16.png", rgb16(pixels), "bits"
    yield "float.tif", encoded(Image.fromarray(pixels[..., 0].astype(np.float32)), "TIFF"), "F"
    yield "narrow.png", encoded(image.resize((1, 64)), "PNG"), "min_side"
    yield "bomb.png", bomb(), "max_pixels"
    yield "gif.png", encoded(image, "GIF"), "format"


def rgb16(pixels: np.ndarray) -> bytes:
    """A PNG with 16 bits per channel, which Pillow reads as 8 without a warning."""
    height, width = pixels.shape[:2]
    lines = (pixels.astype(">u2") * 257).astype(">u2")
    raw = b"".join(b"\0" + line.tobytes() for line in lines)
    return _png(width, height, depth=16, raw=raw)


def _png(width: int, height: int, *, depth: int, raw: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
