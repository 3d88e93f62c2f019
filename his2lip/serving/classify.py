"""Classification of new images by a model and a prompt set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from his2lip import taxonomy
from his2lip.data.images import decode
from his2lip.errors import ImageError
from his2lip.evaluation.encoders import ModelEncoder, SentenceEncoder
from his2lip.evaluation.prompts import PromptSet
from his2lip.evaluation.views import View
from his2lip.evaluation.zero_shot import score

if TYPE_CHECKING:
    from his2lip.models.encoder import DualEncoder

Picture = str | Path | bytes | np.ndarray  # a file, encoded bytes, or uint8 (H, W, 3) RGB


@dataclass(frozen=True)
class Classification:
    """What one image shows: a class (of `tissue` prompts: a tissue type) and how clearly.

    cosine   to the class, -1 to 1; margin: how much more than to the next class; prompt: its closest sentence
    """

    tissue: str
    cosine: float
    margin: float
    prompt: str


class Classifier:
    """One model with one prompt set, whose sentences are embedded once."""

    def __init__(
        self,
        model: DualEncoder,
        *,
        prompts: str | PromptSet = "tissue",
        biomarker: str | None = None,
        view: View | None = None,
        batch_size: int = 64,
    ) -> None:
        """`biomarker` names the stain, where known, in every sentence.

        Raises ConfigError for an unknown prompt set, TaxonomyError for an unknown biomarker.
        """
        chosen = prompts if isinstance(prompts, PromptSet) else PromptSet.load(prompts)
        self._prompts = chosen if biomarker is None else _stained(chosen, taxonomy.biomarker(biomarker))
        self._encoder, self._batch_size = ModelEncoder(model, view=view), batch_size
        sentences = SentenceEncoder(model)
        self._texts = [sentences.encode(list(lines)) for _, lines in self._prompts.sentences]

    def classify(self, images: Sequence[Picture]) -> list[Classification]:
        """One row an image, in order. Raises ImageError, naming the file, for one that cannot be decoded."""
        size = self._batch_size
        return [row for a in range(0, len(images), size) for row in self._batch(images[a : a + size])]

    def _batch(self, images: Sequence[Picture]) -> list[Classification]:
        own = [self._encoder.crops(load_pixels(image), None) for image in images]
        crops = np.concatenate(own)
        slices = (crops[a : a + self._batch_size] for a in range(0, len(crops), self._batch_size))
        features = np.concatenate([self._encoder.encode(part) for part in slices])
        image = np.repeat(np.arange(len(own)), [len(c) for c in own])
        found = score(features, self._texts, groups=image)
        margins = found.margins()
        return [
            Classification(
                tissue=self._prompts.classes[c],
                cosine=float(found.scores[i, c]),
                margin=float(margins[i]),
                prompt=self._prompts.sentences[c][1][found.prompt[i]],
            )
            for i, c in enumerate(found.predicted.tolist())
        ]


def classify(images: Sequence[Picture], model: DualEncoder, **options: Any) -> list[Classification]:
    """One row an image, in order; `options` are those of `Classifier`, which serves more calls than one."""
    return Classifier(model, **options).classify(images)


def load_pixels(image: Picture) -> np.ndarray:
    """uint8 (H, W, 3) of a file, of encoded bytes, or of pixels, which pass through."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ImageError(f"pixels must be uint8 (H, W, 3), not {image.dtype} {image.shape}")
        return image
    if isinstance(image, bytes):
        return decode(image)
    try:
        return decode(Path(image).read_bytes())
    except ImageError as error:
        raise ImageError(error.what, where=image, mend=error.mend) from None
    except OSError as error:
        raise ImageError(f"this image cannot be read: {error.strerror}", where=image) from None


def _stained(prompts: PromptSet, biomarker: str) -> PromptSet:
    """Every sentence with the stain's name behind it."""
    named = (
        (label, tuple(f"{s}, stained for {biomarker}" for s in lines)) for label, lines in prompts.sentences
    )
    return PromptSet(prompts.name, tuple(named))
