"""What is asked of an image: its tissue type, a named biomarker's staining, or a guess at the biomarker."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from his2lip import taxonomy
from his2lip.data.images import decode
from his2lip.errors import ConfigError, ImageError
from his2lip.evaluation import ModelEncoder, PromptSet, Scores, SentenceEncoder, View, score

if TYPE_CHECKING:
    from his2lip.models import DualEncoder

TISSUE, STAINING, GUESS = "tissue", "staining", "biomarker_guess"

# The sets that a benchmark protocol scores, so that its figures speak of these answers too; every other
# biomarker takes a set that is filled with its name, and that no protocol has measured.
_MEASURED = {"ER": "staining", "PR": "staining", "Ki67": "staining", "HER2": "her2_status"}
_NAMED = "marker_staining"
_PLACE = "{biomarker}"  # where a prompt has room for the name


@dataclass(frozen=True)
class Question:
    """A name for programs and one for people, prompts, and a temperature where one was fitted.

    `biomarker` is the canonical one that the question is about, None where it is about any.
    """

    name: str
    title: str
    prompts: PromptSet
    biomarker: str | None = None
    temperature: float | None = None


def ask(
    *,
    prompts: str | Path | PromptSet = "tissue",
    biomarker: str | None = None,
    guess_biomarker: bool = False,
) -> list[Question]:
    """The tissue type always; the staining of `biomarker` (any spelling) where named; a guess if asked for.

    Raises ConfigError for an unknown prompt set, TaxonomyError, naming the nearest, for an unknown biomarker.
    """
    name = None if biomarker is None else taxonomy.biomarker(biomarker)
    chosen = prompts if isinstance(prompts, PromptSet) else PromptSet.load(prompts)
    questions = [Question(TISSUE, "tissue type", _filled(chosen, name))]
    if name is not None:
        staining = _filled(PromptSet.load(_MEASURED.get(name, _NAMED)), name)
        questions.append(Question(STAINING, f"{name} staining", staining, name))
    if guess_biomarker:
        questions.append(Question(GUESS, "biomarker (a guess)", PromptSet.load("biomarker")))
    return questions


def _filled(prompts: PromptSet, biomarker: str | None) -> PromptSet:
    """The sentences with the biomarker's name where they leave room for one."""
    if not any(_PLACE in line for line in prompts.all_sentences()):
        return prompts
    if biomarker is None:
        said = f"the prompt set '{prompts.name}' wants the name of a biomarker"
        raise ConfigError(said, fix="add --biomarker NAME")
    named = (
        (label, tuple(line.replace(_PLACE, biomarker) for line in lines))
        for label, lines in prompts.sentences
    )
    return PromptSet(prompts.name, tuple(named))


IMAGE_FILES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")

Picture = str | Path | bytes | np.ndarray  # a file, encoded bytes, or uint8 (H, W, 3) RGB


@dataclass(frozen=True)
class Answer:
    """A class, and how clearly the image shows it.

    similarity    to the class, by cosine or by dot product as the model compares; margin: over the next class
    prompt        the closest sentence of the class
    similarities  to every class, in the order of the prompt set
    probability   of the class; None unless a temperature was fitted for this model and these prompts
    """

    label: str
    similarity: float
    margin: float
    prompt: str
    similarities: dict[str, float]
    probability: float | None = None


class Classifier:
    """One model with its questions, whose sentences are embedded once."""

    def __init__(
        self,
        model: DualEncoder,
        questions: Sequence[Question] | None = None,
        *,
        view: View | None = None,
        batch_size: int = 64,
    ) -> None:
        """`questions` as `ask` makes them; without, the tissue type. `view`: squashed whole, without."""
        self.model = model
        self.questions = tuple(ask() if questions is None else questions)
        self.batch_size = batch_size
        self._encoder = ModelEncoder(model, view=view)
        sentences = SentenceEncoder(model)
        self._texts = {
            q.name: [sentences.encode(list(lines)) for _, lines in q.prompts.sentences]
            for q in self.questions
        }

    def classify(self, images: Sequence[Picture]) -> list[dict[str, Answer]]:
        """Answers by question, one row an image, in order.

        Raises ImageError, naming the file, for an image that cannot be decoded.
        """
        size = self.batch_size
        batches = (images[a : a + size] for a in range(0, len(images), size))
        return [row for batch in batches for row in self.read(load_pixels(image) for image in batch)]

    def read(self, pixels: Iterable[np.ndarray]) -> list[dict[str, Answer]]:
        """Answers by question of images, uint8 (H, W, 3), all encoded together; none give no row."""
        features, image = self.features(pixels)
        if not len(image):
            return []
        scores = self.score(features, image)
        columns = {q.name: list(answers(q, scores[q.name])) for q in self.questions}
        return [{name: rows[i] for name, rows in columns.items()} for i in range(image[-1] + 1)]

    def score(self, features: np.ndarray, groups: np.ndarray | None = None) -> dict[str, Scores]:
        """Scores by question of raw features (N, D), as the model compares; a group's rows are one unit."""
        return {
            name: score(features, texts, scoring=self.model.similarity, groups=groups)
            for name, texts in self._texts.items()
        }

    def features(self, pixels: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Raw features (N, D) of the crops of images, uint8 (H, W, 3), and int64 (N,), the image of each.

        Of the images one at a time is looked at, and only its crops are kept.
        """
        own = [self.crops(image) for image in pixels]
        image = np.repeat(np.arange(len(own)), [len(crops) for crops in own])
        return self.encode(np.concatenate(own)) if own else np.zeros((0, self.model.dim), np.float32), image

    def crops(self, pixels: np.ndarray) -> np.ndarray:
        """What the model gets to see of an image, uint8 (T, 3, h, w); runs on several threads at once."""
        return self._encoder.crops(pixels, None)

    def encode(self, crops: np.ndarray) -> np.ndarray:
        """Raw features, float32 (N, D), of N >= 1 crops."""
        parts = (crops[a : a + self.batch_size] for a in range(0, len(crops), self.batch_size))
        return np.concatenate([self._encoder.encode(part) for part in parts])


def answers(question: Question, scores: Scores) -> Iterator[Answer]:
    """One answer a unit of the scores."""
    classes, margins = question.prompts.classes, scores.margins()
    chances = None if question.temperature is None else softmax(scores.scores / question.temperature)
    for i, c in enumerate(scores.predicted.tolist()):
        yield Answer(
            label=classes[c],
            similarity=float(scores.scores[i, c]),
            margin=float(margins[i]),
            prompt=question.prompts.sentences[c][1][scores.prompt[i]],
            similarities=dict(zip(classes, scores.scores[i].tolist(), strict=True)),
            probability=None if chances is None else float(chances[i, c]),
        )


def classify(
    images: Sequence[Picture], model: DualEncoder, questions: Sequence[Question] | None = None
) -> list[dict[str, Answer]]:
    """Answers by question, one row an image; a `Classifier` serves more calls than one."""
    return Classifier(model, questions).classify(images)


def comparable(features: np.ndarray, model: DualEncoder) -> np.ndarray:
    """Raw features (N, D) so that products of two compare as the model does: unit vectors under cosine."""
    if model.similarity == "dot":
        return features
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(length > 0, length, 1)


def softmax(logits: np.ndarray) -> np.ndarray:
    """float64 (N, C) of rows that sum to one."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def load_for_use(name: str) -> DualEncoder:
    """A model by its name, on this machine's GPU where it has one."""
    import torch

    from his2lip.models import load_model

    return load_model(name, device="cuda" if torch.cuda.is_available() else "cpu")


def load_pixels(image: Picture) -> np.ndarray:
    """uint8 (H, W, 3) of a file, of encoded bytes, or of pixels, which pass through."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ImageError(f"pixels must be uint8 (H, W, 3), not {image.dtype} {image.shape}")
        return image
    if isinstance(image, bytes):
        return decode(image)
    try:
        return decode(read_image(image))
    except ImageError as error:
        raise ImageError(error.what, where=image, fix=error.fix) from None


def read_image(path: str | Path) -> bytes:
    """A file's bytes. Raises ImageError, naming it, where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"this image cannot be read: {error.strerror}", where=path) from None
