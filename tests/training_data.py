"""Small shards from which a tiny model can learn."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from his2lip.data.cards.card import load_card
from his2lip.data.shards.schema import Patch
from his2lip.data.shards.writer import ShardWriter
from his2lip.taxonomy import MIHIC_BIOMARKERS, TISSUES


def write_small_shards(out: Path, *, train: int = 160, select: int = 48, size: int = 64) -> str:
    """Shards with MIHIC's card: noisy stripes, whose period shows the tissue and whose tint the biomarker."""
    with ShardWriter(out, card=load_card("mihic"), generated=True, row_group_bytes=120_000) as writer:
        for split, count in (("train", train), ("val", select)):
            for i in range(count):
                writer.add(_patch(split, i, size))
        writer.close()
    return str(out)


def _patch(split: str, i: int, size: int) -> Patch:
    tissue, biomarker = i % 4, (i // 4) % 2
    rng = np.random.default_rng([len(split), i])
    stripes = np.sin(np.arange(size) * (0.3 + 0.35 * tissue) + rng.uniform(0, 6))[None, :, None]
    tint = np.array([[1.0, 0.6, 0.3], [0.4, 0.5, 1.0]][biomarker])
    pixels = 128 + 70 * stripes * tint + rng.normal(0, 12, (size, size, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return Patch(
        patch_id=f"small/{split}/{i:05d}",
        image=buffer.getvalue(),
        dataset="mihic",
        split=split,
        width=size,
        height=size,
        tissue=TISSUES[tissue],
        biomarker=MIHIC_BIOMARKERS[biomarker],
        label=TISSUES[tissue],
    )
