"""The results of a retrieval as one HTML file with thumbnails."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from his2lip.data.images import decode, encode_jpeg
from his2lip.serving.classifier import Check
from his2lip.serving.retrieval import Match
from his2lip.templates import render

_SIDE = 192  # px, longer side of a thumbnail


def write_page(
    path: Path,
    matches: Sequence[Match],
    images: Sequence[bytes],
    *,
    query: str | bytes,
    remark: str,
    check: Check,
) -> None:
    """Writes a page of the matches, with thumbnails of their encoded `images`. It needs no other file.

    query   the sentence, or the encoded image, that was searched for
    remark  a line below the title
    check   what the results rest on, and why they are held back, if they are
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
        reason=None if check.refusal is None else check.refusal.reason,
        forced=bool(matches),
        basis=check.basis.by_title(),
        matches=[
            (match, ", ".join(filter(None, (match.tissue, match.biomarker))) or "no label", _thumbnail(image))
            for match, image in zip(matches, images, strict=True)
        ],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _thumbnail(image: bytes) -> str:
    """A JPEG of an encoded image, at most `_SIDE` px wide and high, in base64."""
    picture = Image.fromarray(decode(image))
    picture.thumbnail((_SIDE, _SIDE))
    return base64.b64encode(encode_jpeg(np.asarray(picture))).decode()
