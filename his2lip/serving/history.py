"""The history of a model as far as its answers rest on it: its training data, in sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from his2lip.data.shards import PatchScale
from his2lip.evaluation import MIHIC_FIELD, SQUASHED_FROM, TrainingField, View
from his2lip.models import TrainingData, origins, training_data_of
from his2lip.serving.basis import Scale
from his2lip.serving.familiarity import Familiarity

RANDOM = "tiny"  # the backbone whose first weights are random


@dataclass(frozen=True, kw_only=True)
class TrainingHistory:
    """What is recorded of the training of a model.

    data         the datasets; empty: not recorded
    names        names of datasets without further record, as checkpoints of earlier versions have them
    began_as     the models that the weights descend from
    patch        size and microns per pixel of the training patches; None: unknown
    familiarity  distances from the training patches; None: no limit was fitted
    """

    data: tuple[TrainingData, ...] = ()
    names: tuple[str, ...] = ()
    began_as: tuple[str, ...] = ()
    patch: PatchScale | None = None
    familiarity: Familiarity | None = None

    @classmethod
    def of(cls, name: str, meta: Mapping[str, Any]) -> TrainingHistory:
        """The history of the model `name` by the contents of its his2lip.json, which may be empty."""
        terms = meta.get("terms") or {}
        return cls(
            data=tuple(training_data_of(meta)),
            names=tuple(terms.get("datasets", ())),
            began_as=tuple(origins(name, meta)),
            patch=meta.get("patch"),
        )

    @property
    def stains(self) -> list[str]:
        """The stains of the training patches; empty: not recorded."""
        return sorted({stain for data in self.data for stain in data.stains})

    @property
    def datasets(self) -> str:
        """The value of `Basis.trained_on`."""
        began = ", ".join(self.began_as) or "unknown weights"
        if self.data:
            listed = ", ".join(f"{data.title}: {data.patches:,} patches" for data in self.data)
        elif self.names:
            listed = ", ".join(self.names)
        elif self.began_as == (RANDOM,):
            return "nothing: its weights are random"
        else:
            return f"not recorded: {began}, as published by its authors"
        return f"{listed}; began as {began}{' (random weights)' if self.began_as == (RANDOM,) else ''}"

    def biomarker(self, name: str | None) -> str:
        """The value of `Basis.biomarker` for a question about the biomarker `name`, or about none."""
        if name is None:
            return "none was asked for"
        if not self.data:
            return f"{name}: it is not recorded whether training saw it"
        patches = sum((Counter(data.biomarkers) for data in self.data), Counter())[name]
        return (
            f"{name}: seen in training, {patches:,} patches" if patches else f"{name}: not seen in training"
        )

    def guesses(self) -> str:
        """The value of `Basis.biomarker` for the guess of the biomarker."""
        seen = sorted({name for data in self.data for name in data.biomarkers})
        return f"a guess; seen in training: {', '.join(seen) or 'not recorded'}"

    def organ(self, name: str | None) -> str:
        """The value of `Basis.organ` for an image of the organ `name`; None: the user did not name it."""
        seen = sorted({organ for data in self.data for organ in data.organs})
        trained = f"trained on {', '.join(seen)}" if seen else "the organs of training are not recorded"
        if name is None:
            return f"not stated (--organ); {trained}"
        if not seen:
            return f"{name}: {trained}"
        known = name.strip().casefold() in {organ.casefold() for organ in seen}
        return f"{name}: {'' if known else 'not '}seen in training; {trained}"

    def distances(self, features: np.ndarray, appearances: Sequence[np.ndarray]) -> list[float] | list[None]:
        """As `Familiarity.distance`; None for each of the N images where no limit was fitted."""
        if self.familiarity is None:
            return [None] * len(features)
        return self.familiarity.distance(features, np.stack(appearances)).tolist()

    def distance(self, value: float | None) -> str:
        """The value of `Basis.familiarity` for an image at that distance."""
        if self.familiarity is None or value is None:
            return "no limit was fitted, so that an image unlike the training patches is answered too"
        return f"{value:.2f} times the limit; {self.familiarity}"

    @property
    def field(self) -> TrainingField | None:
        """What the model saw per input side in training; None: unknown."""
        return TrainingField.of({"patch": self.patch})

    def times(self, side: int, image: Scale) -> float:
        """How many training fields `side` pixels of an image span; of MIHIC's where training has none."""
        mpp = float("nan") if image.mpp is None else image.mpp
        return float((self.field or MIHIC_FIELD).times(np.array([side]), np.array([mpp]))[0])

    def scale(self, sides: tuple[int, int], image: Scale, view: View) -> str:
        """The value of `Basis.scale` for an image of height and width `sides`, in pixels."""
        parts = [str(image), "the scale of training is not recorded"]
        if self.patch is not None:
            parts[1] = f"training patches: {self.patch['size']} px at {self.patch['mpp']:g}"
        times = self.times(max(sides), image)
        if view.kind == "squash" and times > SQUASHED_FROM:
            what = "a training patch" if self.patch else f"a field of {MIHIC_FIELD.um:g} µm"
            parts.append(f"squashed: {times:.1f} times the side of {what}")
        return "; ".join(parts)
