"""HER2-IHC-40x: `Patch-based-dataset/{train,test}_data_patch/class_{0,1+,2+,3+}/*.png`."""

from __future__ import annotations

import re
from typing import Literal

from his2lip.config import Config, validate
from his2lip.data.readers.base import Item, PassedOver, Reader
from his2lip.errors import DatasetError

_FOLDER = re.compile(r"(?P<split>train|test)_data_(?P<partition>\w+)", re.IGNORECASE)


class Her2Options(Config):
    """Which of the authors' two partitions is read. A patch may be in both, so only one is read at a time."""

    partition: Literal["patch", "wsi"] = "patch"


class Her2Ihc40xReader(Reader):
    """Folder = partition and split, then HER2 score."""

    def item(self, key: str) -> Item:
        options = validate(Her2Options, self.card.options, where=f"card {self.card.name}, options")
        folder, label, file = self.parts(key, 3)[-3:]
        match = _FOLDER.fullmatch(folder)
        if match is None:
            raise DatasetError("not at {train,test}_data_{patch,wsi}/class_SCORE/FILE", key="path")
        score = self.card.label(label)
        partition = match["partition"].lower()
        if partition != options.partition:
            raise PassedOver(f"of the {partition} split, where the card asks for {options.partition}")
        return Item(
            key=key,
            name=f"{folder}/{label}/{file}",
            split=self.official_split(match["split"]),
            biomarker="HER2",
            label=score,
            score=score,
            mpp=self.card.mpp,
        )
