"""The typical size and resolution of the patches of a split."""

from __future__ import annotations

from typing import TypedDict

import numpy as np

from his2lip.data.shards.reader import ShardSet


class PatchScale(TypedDict):
    """Pixels per side of a patch, and microns per pixel."""

    size: int
    mpp: float


def patch_scale(shards: ShardSet, split: str) -> PatchScale | None:
    """Medians over the patches of a split whose microns per pixel are known; None where there are none."""
    table = shards.table(split, ["width", "height", "mpp"]).drop_null()
    if not len(table):
        return None
    sides = np.minimum(table["width"].to_numpy(), table["height"].to_numpy())
    return PatchScale(size=int(np.median(sides)), mpp=round(float(np.median(table["mpp"].to_numpy())), 4))
