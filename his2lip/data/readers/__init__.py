"""Readers of published layouts, one module per layout. A card names its reader."""

from __future__ import annotations

import importlib
from pathlib import Path

from his2lip.data.cards import Card
from his2lip.data.readers.base import GENERATED, Item, LeftOut, PassedOver, Reader
from his2lip.errors import DatasetError, did_you_mean

__all__ = ["GENERATED", "READERS", "Item", "LeftOut", "PassedOver", "Reader", "get_reader"]

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
    if card.reader not in READERS:
        fix = did_you_mean(card.reader, READERS)
        what = f"no reader is named '{card.reader}'"
        raise DatasetError(what, where=f"card {card.name}", key="reader", fix=fix)
    module = importlib.import_module(f"his2lip.data.readers.{card.reader}")
    kind: type[Reader] = getattr(module, READERS[card.reader])
    return kind(Path(root), card)
