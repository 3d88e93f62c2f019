"""MIST: `{HER2,Ki67,ER,PR}/TrainValAB/{trainA,trainB,valA,valB}/67M2100642_15_18.*`; A is H&E, B is IHC."""

from __future__ import annotations

import re

from his2lip import taxonomy
from his2lip.data.readers.base import Item, PassedOver, Reader
from his2lip.errors import DatasetError

_FOLDER = re.compile(r"(?P<split>train|val)(?P<side>[AB])")
_NAME = re.compile(r"(?P<slide>\w+)_\d+_\d+\.\w+")


class MistReader(Reader):
    """Folder = biomarker; file name = slide, column, row. `twin_id` is the H&E patch, if it exists."""

    def item(self, key: str) -> Item:
        stain, _, folder, file = self.parts(key, 4)[-4:]
        place, name = _FOLDER.fullmatch(folder), _NAME.fullmatch(file)
        if place is None or name is None:
            raise DatasetError("not at BIOMARKER/TrainValAB/{train,val}{A,B}/SLIDE_COLUMN_ROW", key="path")
        biomarker = self.card.label(stain)
        if place["side"] == "A":
            raise PassedOver("an H&E twin")
        twin = (self.root / key).parents[1] / f"{place['split']}A" / file
        return Item(
            key=key,
            name="/".join((stain, folder, file)),
            split=self.official_split(place["split"]),
            slide_id=name["slide"],
            twin_id=f"{self.card.name}/{stain}/{place['split']}A/{file}" if twin.is_file() else None,
            biomarker=taxonomy.biomarker(biomarker),
            label=biomarker,
            mpp=self.card.mpp,
        )
