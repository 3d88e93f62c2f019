"""The scale of a split's patches, which a model trained on them knows the world at."""

from __future__ import annotations

from typing import TypedDict

import numpy as np

from his2lip.data.shards.reader import ShardSet


class PatchScale(TypedDict):
    """Side of a patch in pixels, and microns a pixel."""

    size: int
    mpp: float


def patch_scale(shards: ShardSet, split: str) -> PatchScale | None:
    """Medians over the patches whose microns a pixel are known; None where none are."""
    table = shards.table(split, ["width", "height", "mpp"]).drop_null()
    if not len(table):
        return None
    side = np.minimum(table["width"].to_numpy(), table["height"].to_numpy())
    return PatchScale(size=int(np.median(side)), mpp=round(float(np.median(table["mpp"].to_numpy())), 4))
