"""Intervals of figures: the jackknife over clusters of units that depend on each other.

Patches of one patient are not independent, so a resample of patches, or of patches within classes, gives
intervals that are far too narrow. Here whole clusters are left out, one at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.special import stdtrit

if TYPE_CHECKING:
    from his2lip.data.cards import LabelsOf

ClusterKind = Literal["case", "slide", "file", "pair"]

LEVEL = 0.95  # coverage of an interval
LEAST_CLUSTERS = 5  # an interval from fewer clusters is not computed
_BLOCK = 2**22  # entries of the confusion matrices that are in memory at once

_ORDER: tuple[ClusterKind, ...] = ("file", "slide", "case")  # from the smallest to the largest


@dataclass(frozen=True)
class Clusters:
    """Which of U units depend on each other.

    ids        (U,) the case of each unit; else its slide, where the case is unknown; else its file
    kind       the smallest of these that was needed
    labels_of  what the authors gave a label to (field of the card)
    """

    ids: Sequence[str]
    kind: ClusterKind
    labels_of: LabelsOf = "patch"

    @cached_property
    def numbers(self) -> np.ndarray:
        """int64 (U,): the number of each unit's cluster, from 0 to G-1."""
        return np.unique(np.asarray(self.ids, dtype=object).astype(str), return_inverse=True)[1].reshape(-1)

    @property
    def count(self) -> int:
        """G, the number of clusters."""
        return int(self.numbers.max()) + 1 if len(self.ids) else 0

    def where(self, mask: np.ndarray) -> Clusters:
        """The units where `mask`, bool (U,), is true."""
        kept = [name for name, keep in zip(self.ids, mask.tolist(), strict=True) if keep]
        return Clusters(kept, self.kind, self.labels_of)

    def refusal(self, labels: np.ndarray, classes: Sequence[str]) -> str | None:
        """Why no interval can be computed for units of these classes; None where one can.

        labels   int64 (U,), class numbers
        classes  (C,) names
        """
        if self.labels_of != "patch" and _ORDER.index(self.kind) < _ORDER.index(self.labels_of):
            return (
                f"each {self.labels_of} has one label, and the dataset does not say which {self.labels_of} "
                f"a {'patch' if self.kind == 'file' else self.kind} is from"
            )
        if self.count < LEAST_CLUSTERS:
            known = "is only 1" if self.count == 1 else f"are only {self.count}"
            return f"an interval needs {LEAST_CLUSTERS} {self.kind}s, and there {known}"
        for c in np.unique(labels).tolist():
            if len(np.unique(self.numbers[labels == c])) == 1:
                return f"all units of '{classes[c]}' are of one {self.kind}, so how it varies is not measured"
        return None


def clusters_of(
    cases: Sequence[str | None],
    slides: Sequence[str | None],
    files: Sequence[str],
    *,
    labels_of: LabelsOf = "patch",
) -> Clusters:
    """The clusters of U units from their cases, slides and files, each (U,)."""
    ids, kinds = [], set()
    for case, slide, file in zip(cases, slides, files, strict=True):
        kind: ClusterKind = "case" if case is not None else "slide" if slide is not None else "file"
        kinds.add(kind)
        ids.append(f"{kind} {case if case is not None else slide if slide is not None else file}")
    return Clusters(ids, min(kinds, key=_ORDER.index, default="file"), labels_of)


def leave_one_out_counts(
    labels: np.ndarray, predicted: np.ndarray, clusters: np.ndarray, classes: int
) -> Iterator[np.ndarray]:
    """Confusion matrices without one cluster each, float64 (B, C, C), in blocks, in the clusters' order.

    labels, predicted  int64 (U,), class numbers from 0 to C-1
    clusters           int64 (U,), cluster numbers from 0 to G-1
    """
    pairs, size = labels * classes + predicted, classes * classes
    total = np.bincount(pairs, minlength=size)
    order = np.argsort(clusters, kind="stable")
    pairs, clusters = pairs[order], clusters[order]
    groups = int(clusters[-1]) + 1
    step = max(1, _BLOCK // size)
    for first in range(0, groups, step):
        last = min(first + step, groups)
        a, b = np.searchsorted(clusters, [first, last])
        own = np.bincount((clusters[a:b] - first) * size + pairs[a:b], minlength=(last - first) * size)
        yield (total - own.reshape(-1, size)).reshape(-1, classes, classes).astype(np.float64)


def standard_error(replicates: np.ndarray) -> np.ndarray:
    """The standard errors of figures from their values without one cluster each, (..., G).

    The delete-one jackknife of clusters: Efron and Stein 1981; for clusters MacKinnon, Nielsen and Webb 2023,
    CV3J.
    """
    groups = replicates.shape[-1]
    away = replicates - replicates.mean(axis=-1, keepdims=True)
    return np.sqrt((groups - 1) / groups * (away**2).sum(axis=-1))


def even_clusters(sizes: np.ndarray) -> float:
    """The number of clusters of equal sizes that carry as much as those of these sizes, (G,) (Kish 1965)."""
    return float(sizes.sum() ** 2 / (sizes**2).sum())


def clusters_of_classes(sizes: np.ndarray) -> float:
    """The number of clusters by which the variance of a mean over classes is known.

    sizes  (G, C), units of each class in each cluster. Only whether there are any counts: the clusters of a
           class share its weight. Where each class is in each cluster it is G; where one class is in two
           clusters only, it is little more than 2 (Satterthwaite 1946, variances as the squared weights).
    """
    has = sizes[:, sizes.sum(axis=0) > 0] > 0
    weights = (has / has.sum(axis=0)).mean(axis=1)
    return float((weights**2).sum() ** 2 / (weights**4).sum())


def crossed_interval(
    values: np.ndarray,
    replicates: np.ndarray,
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    effective: float | None = None,
) -> tuple[float, float] | None:
    """The limits of the 95 % interval of the mean figure of S trainings that differ in their seed only.

    values      float64 (S,), the figure of each training
    replicates  float64 (S, G), the same without one cluster each
    effective   as in `interval`

    Seeds and clusters are crossed: all trainings are scored on the same cases. The variance of the mean is
    that of seeds plus that of clusters less that of their interaction, which is in both (two-way analysis of
    variance with random effects; degrees of freedom of Satterthwaite 1946). None where `interval` has none.
    """
    seeds, groups = replicates.shape
    if not np.isfinite(replicates).all():
        return None
    pseudo = values[:, None] - (groups - 1) * (replicates - replicates.mean(axis=1, keepdims=True))
    mean = float(values.mean())
    by_cluster = pseudo.mean(axis=0)
    left = pseudo - values[:, None] - by_cluster + mean
    of_seeds = float(values.var(ddof=1)) / seeds
    of_clusters = float(by_cluster.var(ddof=1)) / groups
    of_both = float((left**2).sum()) / ((seeds - 1) * (groups - 1)) / (seeds * groups)
    variance = max(of_seeds + of_clusters - of_both, of_seeds, of_clusters)
    if variance < 1e-24:
        return None
    own = degrees_of(groups if effective is None else effective)
    degrees = variance**2 / (of_seeds**2 / (seeds - 1) + of_clusters**2 / own)
    reach = float(stdtrit(degrees, (1 + LEVEL) / 2)) * variance**0.5
    return max(mean - reach, bounds[0]), min(mean + reach, bounds[1])


@dataclass(frozen=True)
class Part:
    """The term of one dataset in a mean: its figure, the standard error of that, its degrees of freedom.

    The limits of its interval do not tell the error, since they are cut to the range of the figure.
    """

    value: float
    error: float
    degrees: float


def mean_interval(
    parts: Sequence[Part], *, models: int = 1, bounds: tuple[float, float] = (-1.0, 1.0)
) -> tuple[float, float]:
    """The limits of the 95 % interval of the mean of figures of several datasets.

    Datasets are independent. Degrees of freedom are those of Satterthwaite (1946). The limits are cut to
    `bounds`, the range of the figure.

    models  number of models whose intervals hold together at 95 % (Bonferroni): the one with the highest mean
            is above the lower limit of its own interval at `models=1` too often
    """
    errors = [part.error / len(parts) for part in parts]
    variance = sum(error**2 for error in errors)
    pairs = zip(errors, parts, strict=True)
    degrees = variance**2 / sum(error**4 / part.degrees for error, part in pairs)
    mean = sum(part.value for part in parts) / len(parts)
    reach = float(stdtrit(degrees, 1 - (1 - LEVEL) / 2 / models)) * variance**0.5
    return max(mean - reach, bounds[0]), min(mean + reach, bounds[1])


def all_right_limit(sizes: np.ndarray, *, models: int = 1) -> float:
    """The lower limit of the 95 % interval of balanced accuracy where every unit is right; the upper is 1.

    Where a case with units of class c has a wrong one with a probability above 1 - p, all n_c such cases are
    right with a probability below p^n_c: the exact limit of Clopper and Pearson (1934). The one event "all
    are right" gives the limits of all classes together. Cases of unequal sizes count as fewer (Kish 1965).

    sizes   (G, C), units of each class in each cluster
    models  as in `mean_interval`
    """
    level = (1 - LEVEL) / 2 / models
    return float(np.mean([level ** (1 / even_clusters(own)) for own in sizes.T if own.any()]))


def joined_interval(values: Sequence[float], limits: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The limits of the mean of independent figures from the limits of each (MOVER; Zou and Donner 2008)."""
    mean = float(np.mean(values))
    below, above = (
        np.linalg.norm(np.subtract(end, values)) / len(values) for end in zip(*limits, strict=True)
    )
    return mean - float(below), mean + float(above)


def degrees_of(effective: float) -> float:
    """Degrees of freedom of an interval from this number of clusters; at least 1."""
    return max(effective - 1, 1.0)


def interval(
    value: float,
    replicates: np.ndarray,
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    effective: float | None = None,
) -> tuple[float, float] | None:
    """The limits of the 95 % interval of a figure: value +- t(G-1) standard errors.

    replicates  float64 (G,), the figure without one cluster each
    effective   the number of clusters of equal weight that tell as much, in place of G; None: G. With G, the
                figure of clusters whose sizes differ by a factor of 40 was in 85 % of its intervals
    bounds      the range of the figure; the limits are cut to it. This cannot change the coverage, since the
                true value is in the range.

    None where the figure is not defined without each cluster, and where no cluster changes it: then nothing
    measures its error, and an interval of width 0 would claim certainty.
    """
    if not np.isfinite(replicates).all() or not np.isfinite(value):
        return None
    error = float(standard_error(replicates))
    if error < 1e-12:
        return None
    degrees = degrees_of(len(replicates) if effective is None else effective)
    reach = float(stdtrit(degrees, (1 + LEVEL) / 2)) * error
    return max(value - reach, bounds[0]), min(value + reach, bounds[1])
