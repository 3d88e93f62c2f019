"""MIHIC: `dataset/{train,val,test}/{tissue}/{core}-{stain}-{region}-{patch}.png`."""

from __future__ import annotations

import re

from his2lip import taxonomy
from his2lip.data.readers.base import Item, Reader
from his2lip.errors import DatasetError

# A stain may contain the separator: 0011-D2-40-1-1, 0011-cyclin-D1-3-12. `Copy of 0011` is no core.
_NAME = re.compile(r"(?P<case>[^-\s]+)-(?P<stain>.+)-(?P<region>\d+)-(?P<patch>\d+)\.\w+")


class MihicReader(Reader):
    """Folder = tissue type; file name = core (case), biomarker, annotated region, patch."""

    def item(self, key: str) -> Item:
        split, folder, file = self.parts(key, 3)[-3:]
        match = _NAME.fullmatch(file)
        if match is None:
            raise DatasetError("the name is not CORE-STAIN-REGION-PATCH", key="path")
        tissue, biomarker = taxonomy.tissue(folder), taxonomy.biomarker(match["stain"])
        slide = f"{match['case']}-{match['stain']}"
        return Item(
            key=key,
            name=f"{split}/{folder}/{file}",
            split=self.official_split(split),
            case_id=match["case"],
            slide_id=slide,
            region_id=f"{slide}-{match['region']}",
            tissue=tissue,
            biomarker=biomarker,
            label=tissue,
            mpp=self.card.mpp,
        )
