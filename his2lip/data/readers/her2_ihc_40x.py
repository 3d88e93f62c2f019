"""HER2-IHC-40x: `{WSI,Patch}-based-dataset/{train,test}_data_{wsi,patch}/class_{0,1+,2+,3+}/*.png`.

The folders of the splits are also called `train` and `test`.
"""

from __future__ import annotations

import re
from typing import Literal

from his2lip.config import Config, validate
from his2lip.data.readers.base import Item, PassedOver, Reader
from his2lip.errors import DatasetError

_FOLDER = re.compile(r"(?P<split>train|test)(?:_data(?:_(?P<partition>wsi|patch))?)?", re.IGNORECASE)
_BASE = re.compile(r"(?:her2-ihc-40x-)?(?P<partition>wsi|patch)(?:-based-dataset)?", re.IGNORECASE)


class Her2Options(Config):
    """The authors publish two partitions of one set of patches: by slides (wsi) and by patches."""

    partition: Literal["patch", "wsi"] = "wsi"
    """The partition of folders `train` and `test` in whose path neither is named."""


class Her2Ihc40xReader(Reader):
    """Folder = partition and split, then HER2 score.

    The split by slides gives `train` and `test`. Of the split by patches only the test set is read, as
    `patch_test`, since its other patches are in the split by slides too.
    """

    def item(self, key: str) -> Item:
        options = validate(Her2Options, self.card.options, where=f"card {self.card.name}, options")
        parts = self.parts(key, 3)
        folder, label, file = parts[-3:]
        match = _FOLDER.fullmatch(folder)
        if match is None:
            raise DatasetError("not at {train,test}/class_SCORE/FILE", key="path")
        score = self.card.label(label)
        partition = (match["partition"] or _partition(parts[:-3]) or options.partition).lower()
        split = match["split"].lower()
        if partition == "patch" and split == "train":
            raise PassedOver("of the split by patches, whose slides are in train and test")
        return Item(
            key=key,
            name=f"{split}_data_{partition}/{label}/{file}",
            split=self.official_split("patch_test" if partition == "patch" else split),
            biomarker="HER2",
            label=score,
            score=score,
            mpp=self.card.mpp,
        )


def _partition(folders: tuple[str, ...]) -> str | None:
    """The partition that the innermost of the folders names, or None."""
    for folder in reversed(folders):
        match = _BASE.fullmatch(folder)
        if match is not None:
            return match["partition"]
    return None
