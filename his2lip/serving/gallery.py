"""A page of the patches that were found: one HTML file, pictures in it, nothing fetched and nothing run."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from his2lip.data.images import decode, encode_jpeg
from his2lip.serving.retrieve import Match

_SIDE = 192  # pixels of a thumbnail's longer side

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
      content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2rem; color: #222; }}
ol {{ display: flex; flex-wrap: wrap; gap: 1.2rem; list-style: none; padding: 0; }}
li {{ width: {side}px; overflow-wrap: anywhere; }}
img {{ display: block; max-width: 100%; margin-bottom: .3rem; }}
small {{ color: #666; }}
</style>
<h1>{title}</h1>
<p>{said}</p>
{query}
<ol>
{items}
</ol>
</html>
"""


def write_page(
    path: Path,
    matches: Sequence[Match],
    images: Sequence[bytes],
    *,
    query: str | bytes,
    said: str,
) -> None:
    """The matches with their thumbnails; `query` is a sentence or an encoded image, `said` a remark."""
    shown = f"<p>{_img(query, 'the query')}</p>" if isinstance(query, bytes) else ""
    title = "Patches most like an image" if isinstance(query, bytes) else f"Patches most like “{query}”"
    items = "\n".join(_item(m, image) for m, image in zip(matches, images, strict=True))
    page = _PAGE.format(title=escape(title), said=escape(said), query=shown, items=items, side=_SIDE)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _item(match: Match, image: bytes) -> str:
    labels = ", ".join(label for label in (match.tissue, match.biomarker) if label) or "no label"
    return (
        f"<li>{_img(image, match.patch_id)}<b>{match.rank}</b> {match.similarity:.3f} · {escape(labels)}"
        f"<br><small>{escape(match.patch_id)} ({escape(match.split)})</small></li>"
    )


def _img(image: bytes, alt: str) -> str:
    picture = Image.fromarray(decode(image))
    picture.thumbnail((_SIDE, _SIDE))
    data = base64.b64encode(encode_jpeg(np.asarray(picture))).decode()
    return f'<img src="data:image/jpeg;base64,{data}" alt="{escape(alt, quote=True)}">'
