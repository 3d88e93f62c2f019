"""Gates: images whose question a model cannot answer, each with a plain reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from his2lip.data.images import LEAST_TISSUE, StainLook
from his2lip.serving.basis import Scale
from his2lip.serving.history import TrainingHistory

NOT_ANSWERED = "not answered"  # the label of an answer that a gate holds back
MOST_SCALE = 2.0  # largest factor between the scale at which an image is read and that of training
_HE = "H&E"

Gate = Literal["glass", "stain", "scale", "unfamiliar", "unsure"]


@dataclass(frozen=True)
class Refusal:
    """Why a question is not answered: the gate, for programs, and one sentence for people."""

    gate: Gate
    reason: str


def glass(look: StainLook) -> Refusal | None:
    """An image that shows almost no tissue."""
    if not look.blank:
        return None
    least = f"less than {100 * LEAST_TISSUE:.0f} %"
    return Refusal("glass", f"the image shows {100 * look.tissue:.1f} % tissue, {least}")


def stain(look: StainLook, history: TrainingHistory, *, about_staining: bool) -> Refusal | None:
    """An H&E image, where a question is about staining, or where training saw other stains only."""
    if look.stain != _HE:
        return None
    seen = "the image looks stained with haematoxylin and eosin"
    if about_staining:
        return Refusal("stain", f"{seen}, which shows no biomarker")
    if history.stains and _HE not in history.stains:
        return Refusal("stain", f"{seen}, and the model was trained on {' and '.join(history.stains)} only")
    return None


def scale(sides: tuple[int, int], image: Scale, history: TrainingHistory) -> Refusal | None:
    """An image whose field, resized to the model's input, has another scale than the training patches.

    sides  height and width of the image in pixels
    """
    if history.field is None or image.mpp is None:
        return None
    largest, smallest = history.times(max(sides), image), history.times(min(sides), image)
    if largest <= MOST_SCALE and smallest >= 1 / MOST_SCALE:
        return None
    here = f"the model would see {max(sides) * image.mpp:.0f} µm per side at once"
    fix = "; --slide reads the image in tiles" if largest > MOST_SCALE else ""
    return Refusal("scale", f"{here}, and its training patches showed {history.field.um:.0f} µm{fix}")


def unfamiliar(distance: float | None) -> Refusal | None:
    """An image beyond the limit of familiarity. `distance`: in units of the limit; None: not measured."""
    if distance is None or distance <= 1:
        return None
    what = "the image is unlike the training patches"
    return Refusal("unfamiliar", f"{what}: its distance is {distance:.2f} times the limit")


def unsure(probability: float, least: float) -> Refusal | None:
    """An answer whose probability is below the least that was asked for."""
    if probability >= least:
        return None
    return Refusal("unsure", f"its probability is {probability:.3f}, below {least:g}")
