"""ACROBAT: `acrobat_train_pyramid_1_of_9/0_KI67_train.tif`, pyramids of breast sections at 10x."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pydantic

from his2lip import taxonomy
from his2lip.config import Config, validate
from his2lip.data.cards import Mpp
from his2lip.data.images import MIN_SIDE, Tiling, open_slide, slide_tiles
from his2lip.data.readers.base import Item, LeftOut, PassedOver, Reader
from his2lip.data.shards import Patch
from his2lip.errors import DatasetError

_NAME = re.compile(r"(?P<case>\d+)_(?P<stain>[A-Za-z0-9]+)_(?P<split>train|val|validation|test)\.tiff?", re.I)


class AcrobatOptions(Config):
    """Tiles to cut where no `--view` is given, since a slide is too large for a patch."""

    tile_px: int = pydantic.Field(default=224, ge=MIN_SIDE)
    """Pixels per side of a tile."""
    tile_mpp: Mpp = 0.92
    """Microns per pixel of a tile."""
    max_tiles: pydantic.PositiveInt | None = 64
    """Largest number of tiles per slide; null: all."""


class AcrobatReader(Reader):
    """File name = case, stain, split. Tiles of tissue are cut from each slide except those of H&E."""

    suffixes = (".tif", ".tiff")
    views = ("tiles",)

    def item(self, key: str) -> Item:
        file = self.parts(key, 1)[-1]
        match = _NAME.fullmatch(file)
        if match is None:
            raise DatasetError("the name is not CASE_STAIN_SPLIT.tif", key="path")
        if match["stain"].upper() == "HE":
            raise PassedOver("an H&E twin")
        biomarker = taxonomy.biomarker(match["stain"])
        return Item(
            key=key,
            name=file,
            split=self.official_split(match["split"], {"val": "validation"}),
            case_id=f"{match['split'].lower()}-{match['case']}",  # since cases of two splits share numbers
            slide_id=file.rpartition(".")[0],
            biomarker=biomarker,
            label=biomarker,
            mpp=self.card.mpp,
        )

    def patches(self, item: Item, tiling: Tiling | None) -> Iterator[Patch | LeftOut]:
        options = validate(AcrobatOptions, self.card.options, where=f"card {self.card.name}, options")
        tiling = tiling or Tiling(
            kind="tiles", size=options.tile_px, mpp=options.tile_mpp, max_tiles=options.max_tiles, codec="png"
        )
        with open_slide(self.root / item.key, fallback_mpp=item.mpp) as slide:
            if slide.mpp_note:
                yield LeftOut(item.name, slide.mpp_note)
            yield from self.tiles(item, slide_tiles(slide, tiling, seed=item.name))
