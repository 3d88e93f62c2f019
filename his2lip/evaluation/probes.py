"""Probes: k-NN and logistic regression on the frozen embeddings of a model, fitted on labelled units.

A probe measures what an embedding holds. It reads labels, so it is never a zero-shot figure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol as Interface

import numpy as np

from his2lip.data.cards import Protocol
from his2lip.data.shards import ShardSet
from his2lip.errors import DatasetError
from his2lip.evaluation.config import Probe, ProbeKind
from his2lip.evaluation.protocols import Selection, select, shared_units
from his2lip.evaluation.statistics import Clusters

NEIGHBOURS = 15  # largest k of a k-NN; the square root of the fitted units where that is smaller
FOLDS = 5
_STEPS = 2000  # most iterations of the logistic regression
_RANK = 1e-4  # of a vote, by which a neighbour counts less than the next nearer one
VERSION = 3  # raised whenever the same embeddings would give other predictions
_NAMES: dict[ProbeKind, str] = {"knn": "k nearest neighbours", "logistic": "logistic regression"}


class Classifier(Interface):
    """A fitted classifier. `classes_` (C,) are the class numbers that it knows."""

    classes_: np.ndarray

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """float64 (U, C) for features (U, D)."""


@dataclass(frozen=True)
class Labelled:
    """Which labelled units the probes of a protocol may be fitted on.

    split    the train split; None: the scored split itself, in folds of whole clusters
    folds    number of folds; 1 with a train split
    left_out  units of the train split that are of a case, slide or file of the scored split, or show the
             same image; they are not fitted on
    shots    labelled units of the rarest class that every fit has
    refusal  why nothing can be fitted; None where it can
    """

    split: str | None
    folds: int = 1
    left_out: int = 0
    shots: int = 0
    refusal: str | None = None

    def refuses(self, probe: Probe) -> str | None:
        """Why this probe cannot be fitted; None where it can."""
        if self.refusal is None and probe.shots is not None and probe.shots > self.shots:
            return f"it needs {probe.shots} labelled units per class, and the rarest class has {self.shots}"
        return self.refusal

    def describe(self, kind: ProbeKind, shots: int | None, clusters: str) -> str:
        """What a probe was fitted on, in words. `clusters`: what the folds keep whole, such as `case`."""
        many = "all labelled units" if shots is None else f"{shots} labelled units per class"
        if self.split is None:
            place = f"of the scored split, in {self.folds} folds of whole {clusters}s"
        else:
            place = f"of the split {self.split}"
            place += f" without {self.left_out} of scored cases or images" if self.left_out else ""
        return f"probe, not zero-shot: {_NAMES[kind]} on the embeddings, fitted on {many} {place}"


@dataclass(frozen=True)
class Fit:
    """One fit of a probe: what it is fitted on, and what it predicts then.

    fitted, predicted  int64, unit numbers: of the train split, or of the scored split; and of the scored one
    """

    fitted: np.ndarray
    predicted: np.ndarray


def labelled(shards: ShardSet, protocol: Protocol, selection: Selection, train: str | None) -> Labelled:
    """What the probes of a protocol can be fitted on.

    train  the dataset's train split; None: there is none
    """
    try:
        fitted = selection if train is None else select(shards, protocol, split=train)
        fits = list(_fits(selection, None if train is None else fitted))
    except DatasetError as error:
        return Labelled(train, refusal=error.what)
    least = min(_rarest(fitted, fit.fitted) for fit in fits)
    if least == 0:
        return Labelled(train, refusal="a class has no labelled unit to fit on")
    left_out = 0 if train is None else int(fitted.scored.sum()) - len(fits[0].fitted)
    return Labelled(train, len(fits), left_out, least)


def _rarest(selection: Selection, units: np.ndarray) -> int:
    return int(np.bincount(selection.labels[units], minlength=len(selection.classes)).min())


def _fits(scored: Selection, train: Selection | None) -> Iterator[Fit]:
    """One fit on the units of the train split, or one for each fold of the scored split.

    No case (else slide, else file) and no image is on both sides of a fit.
    """
    if train is not None:
        known = train.scored & ~shared_units(train, scored)
        yield Fit(np.flatnonzero(known), np.arange(len(scored.labels)))
        return
    for fold in _folds(scored.clusters, scored.labels, len(scored.classes)):
        inside = np.isin(np.arange(len(scored.labels)), fold)
        of_fold = scored.image_keys[inside[scored.unit]]
        inside[scored.unit[np.isin(scored.image_keys, of_fold)]] = True  # the same image in another fold
        yield Fit(np.flatnonzero(~inside & scored.scored), fold)


def _folds(clusters: Clusters, labels: np.ndarray, classes: int) -> list[np.ndarray]:
    """The units of each fold, int64. Folds are of whole clusters, with the classes as even as these allow.

    Raises DatasetError where all units of a class are of one cluster.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    groups = [len(np.unique(clusters.numbers[labels == c])) for c in range(classes)]
    if min(groups) < 2:
        raise DatasetError(f"all units of a class are of one {clusters.kind}, or it has none")
    splitter = StratifiedGroupKFold(min(FOLDS, *groups), shuffle=True, random_state=0)
    return [held for _, held in splitter.split(labels, labels, clusters.numbers)]


def fit_classifier(
    kind: ProbeKind, features: np.ndarray, labels: np.ndarray, *, unlabelled: np.ndarray | None = None
) -> Classifier:
    """k nearest neighbours, or the logistic regression of scikit-learn.

    features    float32 (N, D)
    labels      int64 (N,), class numbers
    unlabelled  float32 (M, D), by whose mean and deviation logistic regression standardises features; None:
                by those of `features`
    """
    if kind == "knn":
        return _Nearest(features, labels)
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(features if unlabelled is None else unlabelled)
    regression = LogisticRegression(max_iter=_STEPS, class_weight="balanced")
    regression.fit(scaler.transform(features), labels)
    return make_pipeline(scaler, regression)


class _Nearest:
    """k nearest neighbours with one vote each, whatever the order of the fitted units.

    Of classes with equally many votes, that of the nearer neighbours wins, and not the one with the lowest
    number: one unit per class and K = 2 would always tie. Units with equal features are at one distance from
    everything, so the votes of those among the neighbours are shared by the labels of all of them.
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray) -> None:
        """features float32 (N, D), labels int64 (N,)"""
        from sklearn.neighbors import NearestNeighbors

        self.classes_, numbers = np.unique(labels, return_inverse=True)
        place: dict[bytes, int] = {}
        self._vector = np.array([place.setdefault(row.tobytes(), len(place)) for row in features])
        counts = np.zeros((len(place), len(self.classes_)))
        np.add.at(counts, (self._vector, numbers), 1)
        self._shares = counts / counts.sum(axis=1, keepdims=True)
        self._nearest = NearestNeighbors(n_neighbors=min(NEIGHBOURS, math.isqrt(len(labels)))).fit(features)

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """float64 (U, C) for features (U, D)."""
        ranked = self._vector[self._nearest.kneighbors(X, return_distance=False)].T
        votes = np.zeros((len(X), len(self.classes_)))
        for rank, vectors in enumerate(ranked):
            votes += (1 - _RANK * rank) * self._shares[vectors]
        return votes / votes.sum(axis=1, keepdims=True)


def fitted_scores(
    kind: ProbeKind,
    scored: Selection,
    features: np.ndarray,
    *,
    train: tuple[Selection, np.ndarray] | None = None,
    shots: int | None = None,
    draw: int = 0,
) -> np.ndarray:
    """Probabilities of the classes, float32 (U, C), of every unit of the scored split.

    features  float32 (U, D) of the units of the scored split
    train     the train split with its features; None: folds of the scored split
    shots     labelled units per class in each fit; None: all
    draw      number of the random draw of these units; a larger `shots` keeps those of a smaller one
    """
    known, of_known = train or (scored, features)
    scores = np.zeros((len(features), len(scored.classes)), dtype=np.float32)
    for number, fit in enumerate(_fits(scored, None if train is None else known)):
        chosen = fit.fitted
        if shots is not None:
            rng = np.random.default_rng([int(scored.split_sha256[:8], 16), draw, number])
            chosen = _shots(known.labels, fit.fitted, shots, rng)
        classifier = fit_classifier(
            kind, of_known[chosen], known.labels[chosen], unlabelled=of_known[fit.fitted]
        )
        found = classifier.predict_proba(features[fit.predicted])
        scores[np.ix_(fit.predicted, classifier.classes_)] = found
    return scores


def _shots(labels: np.ndarray, units: np.ndarray, shots: int, rng: np.random.Generator) -> np.ndarray:
    """`shots` units of each class, int64."""
    shuffled = rng.permutation(units)
    of_class = [shuffled[labels[shuffled] == c][:shots] for c in np.unique(labels[units])]
    return np.concatenate(of_class)
