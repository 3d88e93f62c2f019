"""Zero-shot classification of images: one model, its questions, and the answers for each image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from his2lip.data.images import decode
from his2lip.errors import ImageError
from his2lip.evaluation import ModelEncoder, Scores, SentenceEncoder, View, score
from his2lip.serving.questions import Question, ask

if TYPE_CHECKING:
    from his2lip.models import DualEncoder

IMAGE_FILES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")

ImageInput = str | Path | bytes | np.ndarray  # a file, encoded bytes, or uint8 (H, W, 3) RGB


@dataclass(frozen=True)
class Answer:
    """The answer to a question: a class, and how similar the image is to it.

    similarity    to the class: cosine or dot product, as the model compares
    margin        difference between this similarity and that of the second class
    prompt        the most similar sentence of the class
    similarities  to each class, in the order of the prompt set
    probability   of the class; None without a temperature, which is fitted for one model and its prompts
    """

    label: str
    similarity: float
    margin: float
    prompt: str
    similarities: dict[str, float]
    probability: float | None = None


class Classifier:
    """One model with its questions, whose sentences are embedded only once."""

    def __init__(
        self,
        model: DualEncoder,
        questions: Sequence[Question] | None = None,
        *,
        view: View | None = None,
        batch_size: int = 64,
    ) -> None:
        """
        questions   as from `ask`; default: the tissue type
        view        default: `squash`
        batch_size  crops per forward pass
        """
        self.model = model
        self.questions = tuple(ask() if questions is None else questions)
        self.batch_size = batch_size
        self._encoder = ModelEncoder(model, view=view)
        sentences = SentenceEncoder(model)
        self._texts = {
            q.name: [sentences.encode(list(lines)) for _, lines in q.prompts.sentences]
            for q in self.questions
        }

    def classify(self, images: Sequence[ImageInput]) -> list[dict[str, Answer]]:
        """One mapping per image: name of the question -> its answer.

        Raises ImageError for an image that cannot be read or decoded. Its `where` is the file, if it is one.
        """
        size = self.batch_size
        batches = (images[a : a + size] for a in range(0, len(images), size))
        return [row for batch in batches for row in self.classify_batch(load_pixels(i) for i in batch)]

    def classify_batch(self, pixels: Iterable[np.ndarray]) -> list[dict[str, Answer]]:
        """As `classify`, for images uint8 (H, W, 3) that are encoded together."""
        features, image = self.features(pixels)
        if not len(image):
            return []
        scores = self.score(features, image)
        columns = {q.name: list(answers(q, scores[q.name])) for q in self.questions}
        return [{name: rows[i] for name, rows in columns.items()} for i in range(image[-1] + 1)]

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
        """The model's inputs from one image, uint8 (T, 3, h, w). Several threads may call this at once."""
        return self._encoder.crops(pixels, None)

    def encode(self, crops: np.ndarray) -> np.ndarray:
        """Raw features, float32 (N, D), of N >= 1 crops, uint8 (N, 3, h, w)."""
        parts = (crops[a : a + self.batch_size] for a in range(0, len(crops), self.batch_size))
        return np.concatenate([self._encoder.encode(part) for part in parts])


def answers(question: Question, scores: Scores) -> Iterator[Answer]:
    """The answer to `question` of each unit of its scores."""
    classes, margins = question.prompts.classes, scores.margins()
    probabilities = None if question.temperature is None else softmax(scores.scores / question.temperature)
    for i, c in enumerate(scores.predicted.tolist()):
        yield Answer(
            label=classes[c],
            similarity=float(scores.scores[i, c]),
            margin=float(margins[i]),
            prompt=question.prompts.sentences[c][1][scores.prompt[i]],
            similarities=dict(zip(classes, scores.scores[i].tolist(), strict=True)),
            probability=None if probabilities is None else float(probabilities[i, c]),
        )


def comparison_features(features: np.ndarray, model: DualEncoder) -> np.ndarray:
    """Features (N, D) whose scalar products are the model's similarities: normalised for cosine, else raw."""
    if model.similarity == "dot":
        return features
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(length > 0, length, 1)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities float64 (N, C) of logits (N, C); each row sums to 1."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def load_for_inference(name: str) -> DualEncoder:
    """Loads a model by its name, on the GPU of this machine if it has one."""
    import torch

    from his2lip.models import load_model

    return load_model(name, device="cuda" if torch.cuda.is_available() else "cpu")


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
