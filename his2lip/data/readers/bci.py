"""BCI: `{HE,IHC}/{train,test}/00000_train_1+.png`; the name contains the HER2 score."""

from __future__ import annotations

import re

from his2lip.data.readers.base import Item, PassedOver, Reader
from his2lip.errors import DatasetError

_NAME = re.compile(r"\d+_(?:train|test)_(?P<score>0|1\+|2\+|3\+)\.\w+")


class BciReader(Reader):
    """IHC images are read. `twin_id` is the H&E image of the same field, if it exists."""

    def item(self, key: str) -> Item:
        kind, folder, file = self.parts(key, 3)[-3:]
        match = _NAME.fullmatch(file)
        if match is None or kind.upper() not in ("HE", "IHC"):
            raise DatasetError("not at {HE,IHC}/{train,test}/NUMBER_SPLIT_SCORE", key="path")
        split = self.official_split(folder)
        if kind.upper() == "HE":
            raise PassedOver("an H&E twin")
        twin = (self.root / key).parents[2] / "HE" / folder / file
        return Item(
            key=key,
            name=f"{kind}/{folder}/{file}",
            split=split,
            twin_id=f"{self.card.name}/HE/{folder}/{file}" if twin.is_file() else None,
            biomarker="HER2",
            label=match["score"],
            score=match["score"],
            mpp=self.card.mpp,
        )
