"""Small prepared datasets made of real IHC pixels, with labels that follow from the pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from real_tiles import tiles

from his2lip.data.cards.card import Card
from his2lip.data.images.codec import encode_png
from his2lip.data.shards.reader import ShardSet, open_shards
from his2lip.data.shards.schema import Patch
from his2lip.data.shards.writer import ShardWriter

SPLITS = {"train": {"role": "train"}, "select": {"role": "select"}, "test": {"role": "report"}}


@pytest.fixture
def write_shards(real_ihc: np.ndarray, tmp_path: Path) -> Callable[..., ShardSet]:
    """write_shards(name, images=…, column=value) -> shards of 24 real tiles: Tumor if brown, else Stroma."""

    def write(name: str = "toy", *, images: list[np.ndarray] | None = None, **columns: Any) -> ShardSet:
        images = tiles(real_ihc)[:24] if images is None else images
        card = Card.model_validate({"name": name, "reader": "none", "splits": SPLITS})
        brown = [float(i[..., 0].mean()) - float(i[..., 2].mean()) for i in images]
        with ShardWriter(tmp_path / name, card=card, row_group_bytes=60_000) as writer:
            for number, image in enumerate(images):
                writer.add(
                    Patch(
                        patch_id=f"{name}/{number}.png",
                        image=encode_png(image),
                        dataset=name,
                        split=("train", "select", "test")[number % 3],
                        tissue="Tumor" if brown[number] > np.median(brown) else "Stroma",
                        width=image.shape[1],
                        height=image.shape[0],
                        **(
                            {"mpp": 0.5, "slide_id": f"slide-{number % 6}", "case_id": f"case-{number % 6}"}
                            | columns
                        ),
                    )
                )
        return open_shards(tmp_path / name)

    return write
