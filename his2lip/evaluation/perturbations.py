"""Perturbations of images: stains, compression, blur and resolution. Equal images are changed alike."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from PIL import Image, ImageFilter

from his2lip.config import digest
from his2lip.data.images import AEC, DAB, HED, restained
from his2lip.evaluation.encoders import ModelEncoder

if TYPE_CHECKING:
    from his2lip.evaluation.encoders import Preprocessing
    from his2lip.evaluation.known_model import KnownModel
    from his2lip.evaluation.views import View
    from his2lip.models import DualEncoder

PerturbationKind = Literal["stain-intensity", "stain-hue", "AEC", "JPEG", "blur", "downscaling"]
PERTURBATIONS: tuple[PerturbationKind, ...] = get_args(PerturbationKind)

# The levels of each kind, from weak to strong, and what a level is.
LEVELS: dict[PerturbationKind, tuple[float, ...]] = {
    "stain-intensity": (0.25, 0.5, 1.0),
    "stain-hue": (5, 10, 20),
    "AEC": (1,),
    "JPEG": (70, 30, 10),
    "blur": (1, 2, 4),
    "downscaling": (2, 4, 8),
}
MEANINGS: dict[PerturbationKind, str] = {
    "stain-intensity": "haematoxylin and DAB are multiplied or divided by 1 + level, each by chance",
    "stain-hue": "degrees by which the optical-density vectors of haematoxylin and DAB turn, by chance",
    "AEC": "the optical-density vector of AEC (red) in place of that of DAB (brown), at level 1",
    "JPEG": "quality of a JPEG compression",
    "blur": "standard deviation of a Gaussian blur, in pixels of the image",
    "downscaling": "factor by which the image is made smaller, and then larger again",
}
_BOUNDS: dict[PerturbationKind, tuple[float, float]] = {
    "stain-intensity": (0.01, 4),
    "stain-hue": (0.1, 45),
    "AEC": (1, 1),
    "JPEG": (1, 95),
    "blur": (0.1, 64),
    "downscaling": (1.1, 64),
}
_VERSION = 1


@dataclass(frozen=True)
class Perturbation:
    """One kind at one level. `seed` decides, with the pixels, what is random about it."""

    kind: PerturbationKind
    level: float
    seed: int = 0

    @property
    def key(self) -> dict[str, object]:
        """What decides the pixels, besides those of the image."""
        return {"kind": self.kind, "level": self.level, "seed": self.seed, "version": _VERSION}

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """The perturbed image; both are uint8 (H, W, 3). Equal images are perturbed alike."""
        return _KINDS[self.kind](pixels, self.level, self._random(pixels))

    def _random(self, pixels: np.ndarray) -> np.random.Generator:
        """Random numbers that differ between images and seeds, and are the same at all levels of a kind."""
        content = hashlib.sha256(np.ascontiguousarray(pixels).data)
        content.update(f"{pixels.shape}/{self.kind}/{self.seed}".encode())
        return np.random.default_rng(int.from_bytes(content.digest()[:8], "big"))


def refusal(kind: PerturbationKind, level: float) -> str | None:
    """Why a level is not one of a kind; None where it is."""
    low, high = _BOUNDS[kind]
    return None if low <= level <= high else f"{kind} has levels from {low:g} to {high:g}, not {level:g}"


class PerturbedEncoder(ModelEncoder):
    """A model's image tower on perturbed images. Its key has the perturbation, so no features are mixed."""

    def __init__(
        self,
        model: DualEncoder | KnownModel,
        perturbation: Perturbation,
        *,
        view: View | None = None,
        preprocessing: Preprocessing = "native",
        weights: str | None = None,
    ) -> None:
        """The perturbation comes before view and preprocessing; other arguments as in ModelEncoder."""
        super().__init__(model, view=view, preprocessing=preprocessing, weights=weights)
        self.perturbation = perturbation

    @cached_property
    def key(self) -> str:
        inner = super().key
        return digest({"encoder": inner, "perturbation": self.perturbation.key})

    def slots(self, count: int) -> None:
        """None: an image is perturbed after it was decoded."""

    def crops(self, pixels: np.ndarray, mpp: float | None) -> np.ndarray:
        return super().crops(self.perturbation(pixels), mpp)


def _stain_intensity(pixels: np.ndarray, level: float, random: np.random.Generator) -> np.ndarray:
    up = random.random(2) < 0.5
    haematoxylin, dab = np.where(up, 1 + level, 1 / (1 + level))
    return restained(pixels, np.diag([haematoxylin, 1.0, dab]) @ HED)


def _stain_hue(pixels: np.ndarray, level: float, random: np.random.Generator) -> np.ndarray:
    turned = HED.copy()
    for stain in (0, 2):
        turned[stain] = _turned(HED[stain], np.radians(level), random.normal(size=3))
    return restained(pixels, turned)


def _aec(pixels: np.ndarray, level: float, random: np.random.Generator) -> np.ndarray:
    red = np.array(AEC) * np.linalg.norm(DAB) / np.linalg.norm(AEC)
    return restained(pixels, np.stack([HED[0], HED[1], red]))


def _jpeg(pixels: np.ndarray, level: float, random: np.random.Generator) -> np.ndarray:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="JPEG", quality=round(level))
    return np.asarray(Image.open(out).convert("RGB"))


def _blur(pixels: np.ndarray, level: float, random: np.random.Generator) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(level)))


def _downscaling(pixels: np.ndarray, level: float, random: np.random.Generator) -> np.ndarray:
    image = Image.fromarray(pixels)
    small = image.resize([max(1, round(side / level)) for side in image.size], Image.Resampling.BOX)
    return np.asarray(small.resize(image.size, Image.Resampling.BICUBIC))


def _turned(vector: np.ndarray, angle: float, towards: np.ndarray) -> np.ndarray:
    """A vector (3,) turned by an angle, in radians, towards a direction; no component becomes negative."""
    length = np.linalg.norm(vector)
    across = towards - vector * (towards @ vector) / length**2
    turned = np.cos(angle) * vector + np.sin(angle) * length * across / np.linalg.norm(across)
    return np.maximum(turned, 0)


_KINDS: dict[PerturbationKind, Callable[[np.ndarray, float, np.random.Generator], np.ndarray]] = {
    "stain-intensity": _stain_intensity,
    "stain-hue": _stain_hue,
    "AEC": _aec,
    "JPEG": _jpeg,
    "blur": _blur,
    "downscaling": _downscaling,
}
