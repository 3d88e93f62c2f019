"""Overlap: how many of the scored units a model was trained on, by their images and by their cases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from his2lip.evaluation.protocols import Selection
from his2lip.models import UNKNOWN_CASE

if TYPE_CHECKING:
    from his2lip.models import TrainingRecord


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Numbers of scored units that a model was trained on.

    images  units with an image that is equal, byte by byte, to one of the training images
    cases   units of a case that the model was trained on; None where none is known to be, and the case of a
            scored unit is unknown
    units   units that count in either number
    """

    images: int
    cases: int | None
    units: int


def overlap(record: TrainingRecord | None, selection: Selection) -> Overlap | None:
    """The overlap of a selection with the training data of a model.

    None where nothing is recorded. A record that is not complete cannot show that there is no overlap, so
    that it gives None in place of zero.
    """
    if record is None:
        return None
    by_image = _units(np.isin(selection.image_keys, record.images), selection)
    by_case = _units(np.isin(selection.case_keys, record.cases), selection)
    is_known = by_case.any() or not _units(selection.case_keys == UNKNOWN_CASE, selection).any()
    found = Overlap(
        images=int(by_image.sum()),
        cases=int(by_case.sum()) if is_known else None,
        units=int((by_image | by_case).sum()),
    )
    return found if record.complete or found.units else None


def _units(rows: np.ndarray, selection: Selection) -> np.ndarray:
    """bool (U,): the scored units that have one of `rows`, bool (N,)."""
    units = np.zeros(len(selection.labels), dtype=bool)
    units[selection.unit[rows]] = True
    return units & selection.scored
