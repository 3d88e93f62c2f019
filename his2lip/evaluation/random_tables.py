"""Figures of predictions at random: their expectation and the range of 95 % of them, from many seeded draws.

Only confusion matrices are drawn, since the metrics follow from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import random_table

from his2lip.evaluation.metrics import METRICS, ClassFigures, Counts, Predictions

Drawn = Literal["uniform", "shuffled"]

TABLES = 1000  # drawn confusion matrices
_LIMITS = (0.025, 0.975)  # quantiles of the tables that are the limits of a figure


def seed_of(split_sha256: str) -> int:
    """The seed of what is drawn for the units of this digest, so that the same units have the same draws."""
    return int(split_sha256[:16], 16)


@dataclass(frozen=True)
class RandomTables:
    """Drawn confusion matrices, float64 (TABLES, C, C): rows of true classes, columns of predicted ones.

    drawn  "uniform": each unit's class; "shuffled": which unit has which label
    """

    matrix: np.ndarray
    drawn: Drawn

    @classmethod
    def draw(cls, how: Drawn, whole: Predictions, *, seed: int) -> RandomTables:
        """The tables of `uniform` or of `shuffled` for these units and predictions."""
        if how == "uniform":
            return cls.uniform(whole.labels, len(whole.classes), seed=seed)
        return cls.shuffled(whole.labels, whole.predicted, len(whole.classes), seed=seed)

    @classmethod
    def uniform(cls, labels: np.ndarray, classes: int, *, seed: int) -> RandomTables:
        """Each unit's class is drawn from all classes with equal probability.

        labels  int64 (N,), true class numbers
        """
        support = np.bincount(labels, minlength=classes)
        rng = np.random.default_rng(seed)
        rows = [rng.multinomial(n, np.full(classes, 1 / classes), size=TABLES) for n in support]
        return cls(np.stack(rows, axis=1).astype(np.float64), "uniform")

    @classmethod
    def shuffled(cls, labels: np.ndarray, predicted: np.ndarray, classes: int, *, seed: int) -> RandomTables:
        """The labels are shuffled among the units, whose predictions stay: int64 (N,) class numbers each."""
        rows, columns = (np.bincount(numbers, minlength=classes) for numbers in (labels, predicted))
        drawn = random_table(rows, columns, seed=np.random.default_rng(seed)).rvs(size=TABLES)
        return cls(np.asarray(drawn, dtype=np.float64), "shuffled")

    def figures(self, whole: Predictions) -> dict[str, float | None]:
        """The mean of each metric over the tables, and its limits as NAME_lo and NAME_hi.

        whole  the units and one prediction of them. Metrics that follow from more than the confusion matrix
               have no limits: with shuffled labels their expectation, else the figure of this prediction
        """
        counts = Counts(self.matrix, whole.counts.positive, whole.ordered)
        found: dict[str, float | None] = {}
        for name, metric in METRICS.items():
            if metric.of_counts is None:
                own = metric.compute(whole)
                found[name] = metric.at_random if self.drawn == "shuffled" and own is not None else own
                continue
            values = metric.of_counts(counts)
            values = values[~np.isnan(values)]
            found[name] = float(values.mean()) if len(values) else None
            if len(values):
                found[f"{name}_lo"], found[f"{name}_hi"] = map(float, np.quantile(values, _LIMITS))
        return found

    def confusion(self) -> list[list[int]]:
        """The mean table, in whole units, whose rows sum to the support (largest remainders)."""
        mean = self.matrix.mean(axis=0)
        whole = np.floor(mean)
        for row, exact in zip(whole, mean, strict=True):
            left = round(float(exact.sum() - row.sum()))
            row[np.argsort(row - exact, kind="stable")[:left]] += 1
        return whole.astype(int).tolist()

    def per_class(self, classes: tuple[str, ...]) -> dict[str, ClassFigures]:
        """Mean precision, recall and F1 of each class over the tables; 0 where a quotient is undefined."""
        counts = Counts(self.matrix)
        means = [
            np.nan_to_num(values).mean(axis=0) for values in (counts.precision, counts.recall, counts.f1)
        ]
        support = counts.support[0]
        return {
            name: ClassFigures(
                precision=float(means[0][c]),
                recall=float(means[1][c]),
                f1=float(means[2][c]),
                support=int(support[c]),
            )
            for c, name in enumerate(classes)
        }
