"""Encoders for the cache: from pixels to crops, from crops or sentences to raw features, and an identity."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from his2lip.config import digest
from his2lip.evaluation.views import View

if TYPE_CHECKING:
    from his2lip.models import DualEncoder

# A sentence that different tokenizers encode differently.
_PROBE = "Ki67-positive tumour nuclei, 3,3'-diaminobenzidine (DAB), x40: unbelievably dense!"

Preprocessing = Literal["native", "released"]


class ImageEncoder(Protocol):
    """What the embedding cache needs of an encoder: a model, or the features of a baseline."""

    width: int  # D, the numbers of one feature

    @property
    def key(self) -> str:
        """sha256 of everything but the image that decides a feature: weights, architecture, view, …"""

    def crop_key(self, mpp: float | None) -> str:
        """Text that differs where microns per pixel change the crops; empty where they do not."""

    def crops(self, pixels: np.ndarray, mpp: float | None) -> np.ndarray:
        """From uint8 (H, W, 3) to an array (T, …) of T >= 1 inputs. Several threads call it at once."""

    def encode(self, crops: np.ndarray) -> np.ndarray:
        """From inputs (T, …) to raw features, float32 (T, D)."""


class ModelEncoder:
    """The image tower of a dual encoder under a view and a preprocessing."""

    def __init__(
        self,
        model: DualEncoder,
        *,
        view: View | None = None,
        preprocessing: Preprocessing = "native",
        weights: str | None = None,
    ) -> None:
        """`weights` is the model's tensor digest where the caller knows it: hashing takes 1 s per gigabyte.

        `preprocessing` is the model's own ("native"), or that of the paper's code ("released").
        """
        self.model = model
        self._weights = weights
        self.view = view or View()
        self.width = model.dim
        # The view decides what is cut off, so every crop is resized whole.
        self._preprocess = (
            model.preprocess.as_released()
            if preprocessing == "released"
            else dataclasses.replace(model.preprocess, resize_mode="squash")
        )

    @cached_property
    def key(self) -> str:
        return digest(
            {
                "schema": 1,
                "tensors": self._weights or self.model.tensor_digest(),
                "config": self.model.config_digest(),
                "preprocess": self._preprocess.digest,
                "view": self.view.key(),
                "decoder": decoder_version(),
                "precision": self.model.precision,
            }
        )

    def crop_key(self, mpp: float | None) -> str:
        side = self.view.side(mpp)
        return "" if side is None else f"@{side}"

    def crops(self, pixels: np.ndarray, mpp: float | None) -> np.ndarray:
        """uint8 (T, 3, h, w) at the model's input size."""
        resized = [self._preprocess.resize(crop) for crop in self.view.crops(pixels, mpp)]
        return np.ascontiguousarray(np.stack(resized).transpose(0, 3, 1, 2))

    def encode(self, crops: np.ndarray) -> np.ndarray:
        import torch

        with inference(self.model):
            images = self._preprocess.normalize(torch.from_numpy(crops).to(self.model.device))
            return self.model.encode_image(images, normalize=False).cpu().numpy()


class SentenceEncoder:
    """The text tower of a dual encoder."""

    def __init__(self, model: DualEncoder, *, weights: str | None = None) -> None:
        """`weights` as for `ModelEncoder`."""
        self.model = model
        self.width = model.dim
        self._weights = weights

    @cached_property
    def key(self) -> str:
        """sha256 of everything but the sentence that decides a feature."""
        return digest(
            {
                "schema": 1,
                "tensors": self._weights or self.model.tensor_digest(),
                "config": self.model.config_digest(),
                "precision": self.model.precision,
                # A released CLIP tower may have been trained with BERT's ids: the tokenizer counts.
                "tokens": self.model.tokenize([_PROBE]).tolist(),
            }
        )

    def encode(self, sentences: list[str]) -> np.ndarray:
        """Raw features, float32 (P, D)."""
        with inference(self.model):
            return self.model.encode_text(sentences, normalize=False).cpu().numpy()


@contextmanager
def inference(model: DualEncoder) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards the model is in the mode that it was in before."""
    import torch

    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def decoder_version() -> str:
    """Versions of the libraries that decode or resize images."""
    from importlib.metadata import version

    return " ".join(f"{name}-{version(name)}" for name in ("simplejpeg", "pillow"))
