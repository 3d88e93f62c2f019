"""Points of a reliability diagram: how often answers of a given confidence are right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from his2lip.evaluation.reliability import BINS, Answers
from his2lip.evaluation.results import CellResult
from his2lip.evaluation.statistics import LEAST_CLUSTERS, even_clusters, interval
from his2lip.evaluation.stored_cell import stored_predictions

_LEAST = 20  # units of a bin, where there are enough for two


@dataclass(frozen=True)
class ReliabilityPoint:
    """The n units of one bin of confidence.

    confidence  their mean confidence; accuracy: the share of them that is right
    limits      of the 95 % interval of the accuracy; None where there is none
    """

    n: int
    confidence: float
    accuracy: float
    limits: tuple[float, float] | None


def reliability_points(folder: str, cell: CellResult) -> list[ReliabilityPoint]:
    """The points of a grid cell, from its predictions below `folder` and the temperature on its record.

    Bins have equal numbers of units, as those of the calibration error. Empty without a calibration.
    """
    if cell.calibration is None:
        return []
    predictions, clusters = stored_predictions(folder, cell)
    assert predictions.scores is not None
    scores = predictions.scores.astype(np.float64)
    answers = Answers(scores / cell.calibration.temperature, predictions.labels, clusters)
    confidence, right = answers.confidence, answers.right
    order = np.argsort(confidence, kind="stable")
    count = max(1, min(BINS, len(order) // _LEAST))
    points = []
    for own in np.array_split(order, count):
        limits = None if cell.no_interval else _limits(right[own], clusters[own])
        points.append(
            ReliabilityPoint(len(own), float(confidence[own].mean()), float(right[own].mean()), limits)
        )
    return points


def _limits(right: np.ndarray, clusters: np.ndarray) -> tuple[float, float] | None:
    """The interval of the share of right answers, bool (N,), of a bin with clusters (N,)."""
    _, numbers = np.unique(clusters, return_inverse=True)
    wins, sizes = np.bincount(numbers, right), np.bincount(numbers)
    if len(sizes) < LEAST_CLUSTERS:
        return None
    left = len(right) - sizes
    return interval(float(right.mean()), (right.sum() - wins) / left, effective=even_clusters(sizes))
