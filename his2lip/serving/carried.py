"""What a checkpoint has beside its weights: model card, calibrations and limit of familiarity."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

from his2lip.files import writing
from his2lip.serving.calibration import CALIBRATIONS
from his2lip.serving.familiarity import FAMILIARITY
from his2lip.serving.hub_card import CARD, card_for_transformers


def carry(checkpoint: Path, export: Path, *, format: Literal["open_clip", "transformers"]) -> None:
    """Copies it from a checkpoint into its export, which is itself a checkpoint only for open_clip."""
    with writing("an export", export):
        if format == "transformers":
            if (card := checkpoint / CARD).is_file():
                text = card_for_transformers(card.read_text(encoding="utf-8"))
                (export / CARD).write_text(text, encoding="utf-8")
            return
        for name in (CARD, FAMILIARITY):
            if (file := checkpoint / name).is_file():
                shutil.copyfile(file, export / name)
        if (folder := checkpoint / CALIBRATIONS).is_dir():
            shutil.copytree(folder, export / CALIBRATIONS)
