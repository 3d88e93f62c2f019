"""Images without what is written beside their pixels: EXIF, comments, text, thumbnails, trailing bytes."""

from __future__ import annotations

import numpy as np

from his2lip.data.images import decode, encode_png

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")  # those that make pixels
_JPEG_DROPPED = {0xFE, *range(0xE1, 0xEE), 0xEF}  # comments, and all APPn but JFIF's and Adobe's (colours)
_EOI, _SOS = 0xD9, 0xDA


def without_metadata(data: bytes) -> bytes:
    """The same pixels (as `images.decode` gives them), and nothing else of the file.

    JPEG and PNG keep their compressed pixels; other formats, and images that EXIF turns, become PNG.
    Raises ImageError where `decode` does.
    """
    pixels = decode(data)
    strip = _jpeg if data.startswith(b"\xff\xd8\xff") else _png if data.startswith(_PNG) else None
    bare = strip(data) if strip else None
    if bare is not None and np.array_equal(decode(bare), pixels):
        return bare
    return encode_png(pixels)


def _png(data: bytes) -> bytes | None:
    """The chunks that make pixels (PNG specification, 5.3); None for a file that breaks off."""
    kept, at = [_PNG], len(_PNG)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        if kind in _PNG_CHUNKS:
            kept.append(data[at:end])
        if kind == b"IEND":
            return b"".join(kept)
        at = end
    return None


def _jpeg(data: bytes) -> bytes | None:
    """The segments that make pixels, to the end of the image (ITU T.81, B.1); None for a broken file."""
    kept, at = [data[:2]], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == _SOS:
            end = _scan_end(data, end)
        if marker not in _JPEG_DROPPED:
            kept.append(data[at:end])
        if data[end : end + 2] == bytes((0xFF, _EOI)):
            return b"".join([*kept, data[end : end + 2]])
        at = end
    return None


def _scan_end(data: bytes, at: int) -> int:
    """Where entropy-coded data ends: at a marker that is neither a stuffed zero nor a restart."""
    while (at := data.find(b"\xff", at)) >= 0 and at + 1 < len(data):
        if data[at + 1] != 0 and not 0xD0 <= data[at + 1] <= 0xD7:
            return at
        at += 2
    return len(data)
