"""Readers of published layouts, one file per layout; a card names its reader."""

from __future__ import annotations

import importlib
from pathlib import Path

from his2lip.data.cards import Card
from his2lip.data.readers.base import GENERATED, Item, LeftOut, PassedOver, Reader
from his2lip.errors import DatasetError, did_you_mean

__all__ = ["GENERATED", "READERS", "Item", "LeftOut", "PassedOver", "Reader", "get_reader"]

# Reader name -> class, in the module of that name; imported when asked for.
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
    """The reader that a card names, on the dataset's folder. Raises DatasetError for an unknown one."""
    if card.reader not in READERS:
        fix = did_you_mean(card.reader, READERS)
        raise DatasetError(f"no reader is named '{card.reader}'", where=f"card {card.name}", fix=fix)
    module = importlib.import_module(f"his2lip.data.readers.{card.reader}")
    kind: type[Reader] = getattr(module, READERS[card.reader])
    return kind(Path(root), card)
