"""Readers of published layouts, one module per layout. A card names its reader."""

from __future__ import annotations

import importlib
from pathlib import Path

from his2lip.data.cards import Card
from his2lip.data.images import Tiling
from his2lip.data.readers.base import GENERATED, Item, LeftOut, PassedOver, Reader
from his2lip.errors import ConfigError, DatasetError, did_you_mean

__all__ = ["GENERATED", "READERS", "Item", "LeftOut", "PassedOver", "Reader", "check_view", "get_reader"]

# Name of a reader, which is also its module -> class. A module is imported when its reader is needed.
READERS = {
    "acrobat": "AcrobatReader",
    "anhir": "AnhirReader",
    "bcdata": "BcdataReader",
    "bci": "BciReader",
    "folder": "FolderReader",
    "her2_ihc_40x": "Her2Ihc40xReader",
    "hnscc": "HnsccReader",
    "ihc4bc": "Ihc4bcReader",
    "manifest": "ManifestReader",
    "mihic": "MihicReader",
    "mist": "MistReader",
    "pantumor": "PantumorReader",
}


def get_reader(card: Card, root: str | Path) -> Reader:
    """The reader of a card for the dataset's folder.

    Raises DatasetError for an unknown reader and for a folder that does not exist.
    """
    return _reader(card)(Path(root), card)


def check_view(card: Card, tiling: Tiling | None) -> None:
    """Raises ConfigError for a view that the reader of a card does not make, before any file is looked at.

    Raises DatasetError for an unknown reader.
    """
    views = _reader(card).views
    if tiling is None or tiling.kind in views:
        return
    if views:
        what = f"the reader {card.reader} makes only {' and '.join(views)}, not {tiling.kind}"
        fix = f"give {views[0]}(size={tiling.size}), or leave --view out"
    else:
        what = f"the reader {card.reader} cuts patches by the options of its card, and makes no view"
        fix = "leave --view out; a card of your own may have other options"
    raise ConfigError(what, where=f"card {card.name}", key="--view", fix=fix)


def _reader(card: Card) -> type[Reader]:
    if card.reader not in READERS:
        fix = did_you_mean(card.reader, READERS)
        what = f"no reader is named '{card.reader}'"
        raise DatasetError(what, where=f"card {card.name}", key="reader", fix=fix)
    module = importlib.import_module(f"his2lip.data.readers.{card.reader}")
    kind: type[Reader] = getattr(module, READERS[card.reader])
    return kind
