"""HNSCC-mIF-mIHC: `mIHC_Data/Case1_M1_0_0_CD8.png`, or `Case1/mIHC_Data-T1_0_0_Hematoxylin.png`.

In the second layout, `mIHC_Data` is followed by `-` or `_`.
"""

from __future__ import annotations

import re

from his2lip import taxonomy
from his2lip.data.readers.base import Item, PassedOver, Reader
from his2lip.errors import DatasetError

_PLACE = re.compile(
    r"(?:^|/)(?P<case>Case\d+)[/_](?:mIHC_Data[-_])?(?P<field>(?P<region>[TMS])\d+_\d+_\d+)_(?P<stain>\w+)\.\w+$",
    re.IGNORECASE,
)
_COUNTERSTAIN = ("hematoxylin", "haematoxylin")


class HnsccReader(Reader):
    """The letter T, M or S is core, margin or stroma. One image per field and stain, stained with AEC."""

    def item(self, key: str) -> Item:
        self.parts(key, 2)
        if re.search(r"(^|/)mIF", key):
            raise PassedOver("immunofluorescence")
        if re.search(r"(^|/)Segmentation", key, re.IGNORECASE):
            raise PassedOver("a mask of a segmentation")
        match = _PLACE.search(key)
        if match is None:
            raise DatasetError("the name is not CASE_REGION_N_N_STAIN", key="path")
        is_counterstain = match["stain"].lower() in _COUNTERSTAIN
        case = match["case"].capitalize()
        field = f"{case}_{match['field']}"
        return Item(
            key=key,
            name=f"{field}_{match['stain']}.{key.rpartition('.')[2]}",
            split=self.base_split,
            case_id=case,
            region_id=field,
            biomarker=None if is_counterstain else taxonomy.biomarker(match["stain"]),
            label=self.card.label(match["region"].upper()),
            stain="haematoxylin" if is_counterstain else "AEC",
            mpp=self.card.mpp,
        )
