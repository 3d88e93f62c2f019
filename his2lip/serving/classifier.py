"""Zero-shot classification of images: one model, its questions, and the answers for each image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from his2lip.data.images import StainLook, decode, look_at
from his2lip.errors import ConfigError, ImageError
from his2lip.evaluation import (
    AREA_LEVEL,
    ModelEncoder,
    Scores,
    SentenceEncoder,
    View,
    dab_area,
    score,
    softmax,
    unit_rows,
)
from his2lip.serving import gates
from his2lip.serving.appearance import appearance
from his2lip.serving.basis import Basis, Scale, stated_precision
from his2lip.serving.gates import NOT_ANSWERED, Refusal
from his2lip.serving.history import TrainingHistory
from his2lip.serving.questions import GUESS, Question, ask

if TYPE_CHECKING:
    from his2lip.models import DualEncoder

IMAGE_FILES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
# Suffixes of whole-slide files that OpenSlide reads, besides those of images.
SLIDE_FILES = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".dcm")
DAB_UNIT = f"share of the tissue's pixels with an optical density of DAB of {AREA_LEVEL} or more"

UNKNOWN = Scale()
ImageInput = str | Path | bytes | np.ndarray  # a file, encoded bytes, or uint8 (H, W, 3) RGB


@dataclass(frozen=True)
class Answer:
    """The answer to a question: a class, and how similar the image is to it.

    similarity    to the class: cosine or dot product, as the model compares
    margin        difference between this similarity and that of the second class
    prompt        the most similar sentence of the class
    similarities  to each class, in the order of the prompt set
    basis         what the answer rests on
    probability   of the class; None without a temperature, which is fitted for one model and its prompts
    refusal       why the question cannot be answered; None: it can
    forced        whether the answer is shown in spite of the refusal
    dab           measured DAB area as a fraction (`DAB_UNIT`), beside an answer about staining of tissue

    Where there is a refusal and the answer is not forced, the label is NOT_ANSWERED, and similarity, margin,
    prompt, similarities and probability are None or empty.
    """

    label: str
    similarity: float | None
    margin: float | None
    prompt: str | None
    similarities: dict[str, float]
    basis: Basis
    probability: float | None = None
    refusal: Refusal | None = None
    forced: bool = False
    dab: float | None = None


@dataclass(frozen=True)
class Check:
    """What is known beside the scores of one image and question: `Answer` has the meaning of the fields."""

    basis: Basis
    refusal: Refusal | None = None
    dab: float | None = None


@dataclass(frozen=True)
class Examined:
    """What an image shows.

    sides  height and width in pixels
    seen   share of the image's tissue that the model is shown; None for a nearly blank image
    dab    measured DAB area; None for a nearly blank image, and where no question is about staining
    appearances  of each crop; none where no limit of familiarity was fitted
    """

    look: StainLook
    sides: tuple[int, int]
    scale: Scale
    seen: float | None
    dab: float | None
    appearances: list[np.ndarray]


class Classifier:
    """One model with its questions, whose sentences are embedded only once."""

    def __init__(
        self,
        model: DualEncoder,
        questions: Sequence[Question] | None = None,
        *,
        history: TrainingHistory | None = None,
        organ: str | None = None,
        force: bool = False,
        abstain_below: float | None = None,
        view: View | None = None,
        batch_size: int = 64,
    ) -> None:
        """
        questions   as from `ask`; default: the tissue type
        history     of the model's training; default: nothing is recorded
        organ       of the images, as the user states it
        force       whether to show answers that a gate holds back
        abstain_below  least probability of an answer; one of a lower probability is held back
        view        default: `squash`
        batch_size  crops per forward pass
        """
        self.model = model
        self.questions = tuple(ask() if questions is None else questions)
        self.history = history or TrainingHistory(began_as=(model.name,))
        self.organ, self.force, self.abstain_below = organ, force, abstain_below
        uncalibrated = next((q for q in self.questions if q.temperature is None), None)
        if abstain_below is not None and uncalibrated is not None:
            what = f"the {uncalibrated.title} has no probability, by which an answer could be held back"
            fix = "fit a temperature with his2lip calibrate, and name its file with --calibration"
            raise ConfigError(what, key="--abstain-below", fix=fix)
        self.view = view or View()
        self.batch_size = batch_size
        self._encoder = ModelEncoder(model, view=view)
        sentences = SentenceEncoder(model)
        self._texts = {
            q.name: [sentences.encode(list(lines)) for _, lines in q.prompts.sentences]
            for q in self.questions
        }

    def classify(self, images: Sequence[ImageInput], *, scale: Scale = UNKNOWN) -> list[dict[str, Answer]]:
        """One mapping per image, all of one scale: name of the question -> its answer.

        Raises ImageError for an image that cannot be read or decoded. Its `where` is the file, if it is one.
        """
        size = self.batch_size
        batches = (images[a : a + size] for a in range(0, len(images), size))
        pixels = (((load_pixels(image), scale) for image in batch) for batch in batches)
        return [row for batch in pixels for row in self.classify_batch(batch)]

    def classify_batch(self, samples: Iterable[tuple[np.ndarray, Scale]]) -> list[dict[str, Answer]]:
        """As `classify`, for images uint8 (H, W, 3), each with its scale, that are encoded together."""
        return self.classify_seen([self.see(pixels, scale) for pixels, scale in samples])

    def see(self, pixels: np.ndarray, scale: Scale) -> tuple[Examined, np.ndarray]:
        """What an image, uint8 (H, W, 3), shows, and the model's inputs from it, uint8 (T, h, w, 3).

        Several threads may call this at once.
        """
        return self.examine(pixels, scale), self.crops(pixels)

    def classify_seen(self, seen: Sequence[tuple[Examined, np.ndarray]]) -> list[dict[str, Answer]]:
        """As `classify`, for images as `see` returns them, which are encoded together."""
        if not seen:
            return []
        features = self.encode(np.concatenate([crops for _, crops in seen]))
        image = np.repeat(np.arange(len(seen)), [len(crops) for _, crops in seen])
        scores = self.score(features, image)
        looks = [look for one, _ in seen for look in one.appearances]
        distances = _mean_by_image(self.history.distances(features, looks), image)
        rows: list[dict[str, Answer]] = [{} for _ in seen]
        for question in self.questions:
            checks = [
                self.check(question, one, distance)
                for (one, _), distance in zip(seen, distances, strict=True)
            ]
            checks = self.doubted(question, scores[question.name], checks)
            found = answers(question, scores[question.name], checks, force=self.force)
            for row, answer in zip(rows, found, strict=True):
                row[question.name] = answer
        return rows

    def examine(self, pixels: np.ndarray, scale: Scale) -> Examined:
        """What the pixels of an image, uint8 (H, W, 3), show. Several threads may call this at once."""
        asked = any(question.about_staining for question in self.questions)
        height, width = pixels.shape[:2]
        look = look_at(pixels)
        return Examined(
            look=look,
            sides=(height, width),
            scale=scale,
            seen=None if look.blank else self.view.squares(pixels).seen,
            dab=dab_area(pixels) if asked and not look.blank else None,
            appearances=[appearance(crop) for crop in self.view.crops(pixels)]
            if self.history.familiarity
            else [],
        )

    def check(self, question: Question, image: Examined, distance: float | None) -> Check:
        """The basis of the answer to `question`, and the first gate that holds it back.

        distance  from the training patches, in units of the limit; None: there is no limit
        """
        basis = self.basis(
            question,
            scale=self.history.scale(image.sides, image.scale, self.view),
            familiarity=self.history.distance(distance),
            coverage="nearly no tissue" if image.seen is None else f"{image.seen:.0%} of the tissue",
        )
        refusal = (
            gates.glass(image.look)
            or gates.stain(image.look, self.history, about_staining=question.about_staining)
            or (gates.scale(image.sides, image.scale, self.history) if self.view.kind == "squash" else None)
            or gates.unfamiliar(distance)
        )
        return Check(basis, refusal, image.dab if question.about_staining else None)

    def doubted(self, question: Question, scores: Scores, checks: Sequence[Check]) -> list[Check]:
        """The checks of the units of `scores`, where answers below `abstain_below` are held back too."""
        if self.abstain_below is None or question.temperature is None:
            return list(checks)
        sure = softmax(scores.scores / question.temperature).max(axis=1).tolist()
        return [
            replace(check, refusal=check.refusal or gates.unsure(probability, self.abstain_below))
            for check, probability in zip(checks, sure, strict=True)
        ]

    def basis(self, question: Question, *, scale: str, familiarity: str, coverage: str) -> Basis:
        """The basis of answers to `question`, with what depends on the image."""
        history = self.history
        guess = question.name == GUESS
        return Basis(
            trained_on=history.datasets,
            calibrated_on=question.calibrated,
            biomarker=history.guesses() if guess else history.biomarker(question.biomarker),
            organ=history.organ(self.organ),
            scale=scale,
            familiarity=familiarity,
            coverage=coverage,
            precision=stated_precision(self.model),
        )

    def score(self, features: np.ndarray, groups: np.ndarray | None = None) -> dict[str, Scores]:
        """Name of the question -> scores of raw features (N, D), as the model compares them.

        groups  int64 (N,), the image of each row; None: each row is an image
        """
        return {
            name: score(features, texts, scoring=self.model.similarity, groups=groups)
            for name, texts in self._texts.items()
        }

    def features(self, pixels: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The raw features (N, D) of all crops of images, uint8 (H, W, 3), and the image of each, int64 (N,).

        Images are read one at a time, and only their crops are kept in memory.
        """
        own = [self.crops(image) for image in pixels]
        image = np.repeat(np.arange(len(own)), [len(crops) for crops in own])
        return self.encode(np.concatenate(own)) if own else np.zeros((0, self.model.dim), np.float32), image

    def crops(self, pixels: np.ndarray) -> np.ndarray:
        """The model's inputs from one image, uint8 (T, h, w, 3). Several threads may call this at once."""
        return self._encoder.crops(pixels, None)

    def encode(self, crops: np.ndarray) -> np.ndarray:
        """Raw features, float32 (N, D), of N >= 1 crops, uint8 (N, 3, h, w)."""
        parts = (crops[a : a + self.batch_size] for a in range(0, len(crops), self.batch_size))
        return np.concatenate([self._encoder.encode(part) for part in parts])


def answers(
    question: Question, scores: Scores, checks: Iterable[Check], *, force: bool = False
) -> Iterator[Answer]:
    """The answer to `question` of each unit of its scores, with what is known of the unit."""
    classes, margins = question.prompts.classes, scores.margins()
    probabilities = None if question.temperature is None else softmax(scores.scores / question.temperature)
    for i, (c, check) in enumerate(zip(scores.predicted.tolist(), checks, strict=True)):
        answer = Answer(
            label=classes[c],
            similarity=float(scores.scores[i, c]),
            margin=float(margins[i]),
            prompt=question.prompts.sentences[c][1][scores.prompt[i]],
            similarities=dict(zip(classes, scores.scores[i].tolist(), strict=True)),
            basis=check.basis,
            probability=None if probabilities is None else float(probabilities[i, c]),
            refusal=check.refusal,
            forced=force and check.refusal is not None,
            dab=check.dab,
        )
        yield answer if check.refusal is None or force else _held_back(answer)


def _mean_by_image(distances: Sequence[float | None], image: np.ndarray) -> list[float | None]:
    """The mean over the crops of each image; `image` int64 (N,) has the image of each crop, in order."""
    found: dict[int, list[float | None]] = {}
    for distance, number in zip(distances, image.tolist(), strict=True):
        found.setdefault(number, []).append(distance)
    return [
        None if None in crops else float(np.mean(np.array(crops, dtype=float))) for crops in found.values()
    ]


def _held_back(answer: Answer) -> Answer:
    return replace(
        answer,
        label=NOT_ANSWERED,
        similarity=None,
        margin=None,
        prompt=None,
        similarities={},
        probability=None,
    )


def comparison_features(features: np.ndarray, model: DualEncoder) -> np.ndarray:
    """Features (N, D) whose scalar products are the model's similarities: normalised for cosine, else raw."""
    return features if model.similarity == "dot" else unit_rows(features)


def load_pixels(image: ImageInput) -> np.ndarray:
    """The pixels, uint8 (H, W, 3), of a file, of encoded bytes, or of an array, which is returned unchanged.

    Raises ImageError for an array of another shape or dtype, and for an image that cannot be read or decoded.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            what = f"pixels must be uint8 (H, W, 3), got {image.dtype} {image.shape}"
            raise ImageError(what, key="pixels")
        return image
    if isinstance(image, bytes):
        return decode(image)
    try:
        return decode(read_image(image))
    except ImageError as error:
        raise ImageError(error.what, where=image, key=error.key, fix=error.fix) from None


def read_image(path: str | Path) -> bytes:
    """The bytes of a file. Raises ImageError, whose `where` is the file, if it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"this image cannot be read: {error.strerror}", where=path) from None
