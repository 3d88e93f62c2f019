"""Encoders of images and sentences for the embedding cache: raw features, and the keys that identify them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from his2lip.config import digest
from his2lip.data.stream import decode_into
from his2lip.evaluation.known_model import TOKENIZED, KnownModel, whole
from his2lip.evaluation.views import View

if TYPE_CHECKING:
    import torch

    from his2lip.models import DualEncoder

Preprocessing = Literal["native", "released"]
PART = 8  # crops that a thread encodes at a time on a CPU
BLANK = -1.0  # in place of the share of tissue that was seen, where an image shows next to no tissue


class Crops(Protocol):
    """What the keys of an encoder's features are made of."""

    @property
    def key(self) -> str:
        """sha256 of everything that a feature depends on, except the image: weights, architecture, view, …"""

    def crop_key(self, mpp: float | None) -> str:
        """Text that differs between microns per pixel that give different crops; empty if none do."""


class ImageEncoder(Crops, Protocol):
    """What the embedding cache needs of an encoder, which is a model or a baseline's measurement."""

    width: int  # D, the length of a feature vector

    def crops(self, pixels: np.ndarray, mpp: float | None) -> np.ndarray:
        """An image, uint8 (H, W, 3), as T >= 1 inputs (T, …). Several threads call it at the same time."""

    def encode(self, crops: np.ndarray) -> np.ndarray:
        """Inputs (T, …) as raw features, float32 (T, D)."""


class ModelEncoder:
    """The image tower of a dual encoder, with a view and a preprocessing."""

    def __init__(
        self,
        model: DualEncoder | KnownModel,
        *,
        view: View | None = None,
        preprocessing: Preprocessing = "native",
        weights: str | None = None,
    ) -> None:
        """
        view           default: `squash`
        preprocessing  "native": the model's own; "released": that of the paper's code
        weights        tensor digest of the model, if the caller has computed it; it takes 1 s per gigabyte
        """
        self.model = model
        self._weights = weights
        self.view = view or View()
        facts = model.facts if isinstance(model, KnownModel) else model
        self.width = facts.dim
        # The view has already cropped the image, so the preprocessing resizes each crop without cropping it.
        self._preprocess = (
            facts.preprocess.as_released()
            if preprocessing == "released"
            else dataclasses.replace(facts.preprocess, resize_mode="squash")
        )

    @cached_property
    def key(self) -> str:
        return digest(
            {
                "schema": 1,
                **_weights_key(self.model, self._weights),
                "preprocess": self._preprocess.digest,
                "view": self.view.key(),
                "decoder": decoder_version(),
            }
        )

    def __getstate__(self) -> dict[str, Any]:
        """Everything except the model: another process has its own, which it gives to `bind`."""
        return {name: value for name, value in vars(self).items() if name not in ("model", "_weights", "key")}

    def bind(self, model: DualEncoder, weights: str | None) -> None:
        """Gives an encoder that came from another process its model; `weights` as in `__init__`."""
        self.model, self._weights = model, weights

    def crop_key(self, mpp: float | None) -> str:
        return crop_key(self.view, mpp)

    def crops(self, pixels: np.ndarray, mpp: float | None) -> np.ndarray:
        """The crops of the view as uint8 (T, h, w, 3), resized to the model's input size."""
        return np.stack([self._preprocess.resize(crop) for crop in self.view.crops(pixels, mpp)])

    def slots(self, count: int) -> np.ndarray | None:
        """Memory, uint8 (count, h, w, 3), for the crops of as many images; None where `fill` cannot be used.

        That is where an image may have several crops, or a part of it is one. For a GPU it is pinned.
        """
        height, width = self._preprocess.size
        if self.view.kind != "squash" or height != width:
            return None
        import torch

        # A GPU's copy of it ends before the features are there, which the caller waits for.
        return torch.empty((count, height, width, 3), dtype=torch.uint8, pin_memory=self.on_gpu).numpy()

    def fill(self, data: bytes, place: np.ndarray) -> None:
        """Decodes an image into one of `slots`: the pixels of `crops`. Raises ImageError as `decode` does."""
        decode_into(memoryview(data), place, interpolation=self._preprocess.interpolation)

    def encode(self, crops: np.ndarray) -> np.ndarray:
        return self.begin(crops)()

    @property
    def on_gpu(self) -> bool:
        """Whether the model is on a GPU, so that `begin` returns before the features are computed."""
        return whole(self.model).device.type == "cuda"

    def begin(self, crops: np.ndarray) -> Callable[[], np.ndarray]:
        """Starts to encode; the function that is returned waits, and returns what `encode` returns."""
        import torch

        from his2lip.models import send

        with inference(model := whole(self.model)):
            pixels = send(torch.from_numpy(crops), model.device).permute(0, 3, 1, 2).contiguous()
            images = self._preprocess.normalize(pixels)
            features = in_parts(lambda part: model.encode_image(part, normalize=False), images)
            if not self.on_gpu:
                return features.numpy
            there, done = features.to("cpu", non_blocking=True), torch.cuda.Event()
            done.record()

        def finish() -> np.ndarray:
            done.synchronize()
            return there.numpy()

        return finish


def is_ahead(encoder: ImageEncoder) -> bool:
    """Whether `begin` returns before the features are computed."""
    return isinstance(encoder, ModelEncoder) and encoder.on_gpu


def begin(encoder: ImageEncoder, crops: np.ndarray) -> Callable[[], np.ndarray]:
    """`ModelEncoder.begin` on a GPU; elsewhere encodes at once."""
    if isinstance(encoder, ModelEncoder) and encoder.on_gpu:
        return encoder.begin(crops)
    features = encoder.encode(crops)
    return lambda: features


class SeenEncoder:
    """The share of an image's tissue that a view shows, from 0 to 1, or BLANK for a nearly blank image.

    It is an `ImageEncoder`, so that the embedding cache measures each image once for all models that have
    the same view.
    """

    width = 1

    def __init__(self, view: View) -> None:
        self.view = view

    @cached_property
    def key(self) -> str:
        return digest({"encoder": "seen", "view": self.view.key(), "decoder": decoder_version()})

    def crop_key(self, mpp: float | None) -> str:
        return crop_key(self.view, mpp)

    def crops(self, pixels: np.ndarray, mpp: float | None) -> np.ndarray:
        seen = self.view.squares(pixels, mpp).seen
        return np.array([[BLANK if seen is None else seen]], dtype=np.float32)

    def encode(self, crops: np.ndarray) -> np.ndarray:
        return crops


class SentenceEncoder:
    """The text tower of a dual encoder."""

    def __init__(self, model: DualEncoder | KnownModel, *, weights: str | None = None) -> None:
        """`weights` as in `ModelEncoder`."""
        self.model = model
        self.width = model.facts.dim if isinstance(model, KnownModel) else model.dim
        self._weights = weights

    @cached_property
    def key(self) -> str:
        """sha256 of everything that a feature depends on, except the sentence."""
        model = self.model
        # The tokenizer: a released CLIP tower may have been trained with the token ids of BERT.
        if isinstance(model, KnownModel):
            tokens = model.facts.tokens
        else:
            tokens = model.tokenize([TOKENIZED]).tolist()
        return digest({"schema": 1, **_weights_key(model, self._weights), "tokens": tokens})

    def too_long(self, sentences: list[str]) -> list[str]:
        """The sentences that have more tokens than the tower reads."""
        return whole(self.model).tokenizer.too_long(sentences)

    def encode(self, sentences: list[str]) -> np.ndarray:
        """P sentences as raw features, float32 (P, D)."""
        with inference(model := whole(self.model)):
            return model.encode_text(sentences, normalize=False).cpu().numpy()


def _weights_key(model: DualEncoder | KnownModel, weights: str | None) -> dict[str, str]:
    """What a model itself adds to the key of its features; `weights`: its tensor digest, if known."""
    if isinstance(model, KnownModel):
        facts = model.facts
        return {"tensors": facts.tensors, "config": facts.config, "precision": facts.precision}
    tensors = weights or model.tensor_digest()
    return {"tensors": tensors, "config": model.config_digest(), "precision": model.arithmetic}


def crop_key(view: View, mpp: float | None) -> str:
    """Text that differs between microns per pixel at which a view cuts other crops."""
    side = view.side(mpp)
    return "" if side is None else f"@{side}"


def in_parts(tower: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """Features (B, D) of images (B, …) without gradients; on a CPU in parts of PART, on all threads of torch.

    Each thread encodes a part of its own. That is faster than threads that share each matrix product, and a
    small part stays in the processor's cache. The parts do not depend on the number of threads, so the
    features are the same to the bit on any number of cores.
    """
    import torch

    if images.device.type != "cpu":
        return tower(images)

    def encode(part: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return tower(part)

    threads, parts = torch.get_num_threads(), images.split(PART)
    if threads == 1:
        return torch.cat([encode(part) for part in parts])
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return torch.cat(list(pool.map(encode, parts)))
    finally:
        torch.set_num_threads(threads)  # those of the pool set it for threads that begin later, too


@contextmanager
def inference(model: DualEncoder) -> Iterator[None]:
    """Puts the model into evaluation mode, without gradients, and restores its mode afterwards."""
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
