"""A web page of retrieved patches that needs no other file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from his2lip.data.images import decode, encode_jpeg
from his2lip.serving.retrieval import Match
from his2lip.templates import render

_SIDE = 192  # px, the longer side of a thumbnail


def write_page(
    path: Path, matches: Sequence[Match], images: Sequence[bytes], *, query: str | bytes, remark: str
) -> None:
    """Writes the matches with thumbnails of their encoded `images`.

    query    the sentence, or the encoded image, that was searched for
    remark   a line below the title
    """
    if isinstance(query, bytes):
        title, thumbnail = "Patches most similar to an image", _thumbnail(query)
    else:
        title, thumbnail = f"Patches most similar to “{query}”", ""
    page = render(
        "serving/gallery.html",
        title=title,
        remark=remark,
        side=_SIDE,
        query=thumbnail,
        matches=[
            (match, ", ".join(filter(None, (match.tissue, match.biomarker))) or "no label", _thumbnail(image))
            for match, image in zip(matches, images, strict=True)
        ],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _thumbnail(image: bytes) -> str:
    """A small JPEG of an encoded image, in base64."""
    picture = Image.fromarray(decode(image))
    picture.thumbnail((_SIDE, _SIDE))
    return base64.b64encode(encode_jpeg(np.asarray(picture))).decode()
