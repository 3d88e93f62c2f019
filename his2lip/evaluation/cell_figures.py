"""The figures of a grid cell, from its units or from drawn confusion matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from his2lip.evaluation.metrics import (
    Predictions,
    accuracy,
    balanced_accuracy,
    confusion,
    macro_f1,
    measure,
    per_class,
    positive_class,
)
from his2lip.evaluation.protocols import APART, ORGAN
from his2lip.evaluation.random_tables import RandomTables
from his2lip.evaluation.reliability import Fitted, calibrated
from his2lip.evaluation.results import CellResult, intervals
from his2lip.evaluation.statistics import Clusters

MOST_PARTS = 500  # a column of more values is left out of the breakdowns


@dataclass(frozen=True)
class Units:
    """The U units of a grid cell with what a scorer said of them; units that are not scored included.

    labels, predicted  int64 (U,); APART for units that are not scored
    scores             float32 (U, C)
    breakdown          column -> (U,) values, None where unknown
    """

    classes: tuple[str, ...]
    ids: Sequence[str]
    labels: np.ndarray
    predicted: np.ndarray
    scores: np.ndarray
    clusters: Clusters
    breakdown: Mapping[str, Sequence[str | None]]
    ordered: bool

    @property
    def scored(self) -> np.ndarray:
        return self.labels != APART

    @property
    def whole(self) -> Predictions:
        """The scored units."""
        scored = self.scored
        predicted, scores = self.predicted[scored], self.scores[scored]
        return Predictions(self.labels[scored], predicted, self.classes, self.ordered, scores)


def figures(units: Units, tables: RandomTables | None) -> dict[str, Any]:
    """The fields of the record that follow from the predictions, or from drawn confusion matrices."""
    whole, scored = units.whole, units.scored
    clusters = units.clusters.where(scored)
    binary = len(whole.classes) == 2
    fields = {
        "n": len(whole.labels),
        "clusters": clusters.count,
        "cluster_kind": clusters.kind,
        "positive": whole.classes[positive_class(whole.classes)] if binary else None,
        "classes": list(units.classes),
        "apart": int((~scored).sum()),
    }
    if tables is not None:
        return fields | _expected(whole, tables)
    reason = clusters.refusal(whole.labels, whole.classes)
    return fields | {
        "no_interval": reason,
        **measure(whole),
        **(intervals(whole, clusters) if reason is None else {}),
        "confusion": confusion(whole),
        "per_class": per_class(whole),
        "breakdown": {
            column: parts
            for column, values in units.breakdown.items()
            if (parts := _parts(whole, clusters, column, np.array(values, dtype=object)[scored]))
        },
    }


def calibration(units: Units, fitted: Fitted | str | None) -> dict[str, Any]:
    """The fields of the record on calibration."""
    if not isinstance(fitted, Fitted):
        return {"calibration": None, "no_calibration": fitted}
    whole, clusters = units.whole, units.clusters.where(units.scored)
    has_interval = clusters.refusal(whole.labels, whole.classes) is None
    scores = units.scores[units.scored]
    found = calibrated(scores, whole.labels, clusters.numbers, fitted, has_interval=has_interval)
    return {"calibration": found, "no_calibration": None}


def _expected(whole: Predictions, tables: RandomTables) -> dict[str, Any]:
    """The figures of predictions at random: their expectation, and limits that hold 95 % of the draws."""
    known = tables.figures(whole)
    return {
        "no_interval": None,
        **{name: value for name, value in known.items() if name in CellResult.model_fields},
        "confusion": tables.confusion(),
        "per_class": tables.per_class(tuple(whole.classes)),
        "breakdown": {},
    }


def _parts(
    whole: Predictions, clusters: Clusters, column: str, values: np.ndarray
) -> dict[str, dict[str, int | float]]:
    """Value -> figures of the units that have it, where `values` (N,) has from 2 to `MOST_PARTS` of them.

    A single organ is a part too, so that the datasets of an organ can be found by it.
    """
    names = sorted({value for value in values.tolist() if value is not None})
    if not (1 if column == ORGAN else 2) <= len(names) <= MOST_PARTS:
        return {}
    parts: dict[str, dict[str, int | float]] = {}
    for name in names:
        mask = values == name
        part = whole.where(mask)
        found: dict[str, int | float] = {
            "n": len(part.labels),
            "clusters": len(np.unique(clusters.numbers[mask])),
            "accuracy": float(accuracy(part.counts)),
        }
        if part.counts.present == len(whole.classes):  # else an absent class would count as 0 in macro F1
            found["macro_f1"] = float(macro_f1(part.counts))
        if part.counts.present > 1:
            found["balanced_accuracy"] = float(balanced_accuracy(part.counts))
        parts[name] = found
    return parts
