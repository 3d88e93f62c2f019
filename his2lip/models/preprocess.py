"""Preprocessing: a decoded RGB image to the tensor that an image tower reads, as open_clip does it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from his2lip.config import digest
from his2lip.models.transfer import send


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Resize to `size`, scale to [0, 1], then subtract `mean` and divide by `std`, channel by channel.

    resize_mode    shortest (then a centre crop), longest (then padding with `fill_color`) or squash
    interpolation  bicubic or bilinear, antialiased, on uint8 as PIL computes it; random is bicubic

    Raises ValueError, which names the setting, for a value that is not allowed.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill_color: int = 0

    def __post_init__(self) -> None:
        valid = {
            "size": len(self.size) == 2 and all(isinstance(side, int) and side > 0 for side in self.size),
            "mean": len(self.mean) == 3 and all(map(math.isfinite, self.mean)),
            "std": len(self.std) == 3 and all(0 < value < math.inf for value in self.std),
            "interpolation": self.interpolation in ("bicubic", "bilinear", "random"),
            "resize_mode": self.resize_mode in ("shortest", "longest", "squash"),
        }
        for name, fits in valid.items():
            if not fits:
                raise ValueError(f"{name} is {getattr(self, name)}")

    @classmethod
    def from_open_clip(cls, config: Mapping[str, Any]) -> Preprocess:
        """From open_clip's `preprocess_cfg`, with open_clip's defaults for what it leaves out."""
        known = {k: v for k, v in config.items() if k != "mode" and v is not None}
        full = PreprocessCfg(**known)
        size = (full.size, full.size) if isinstance(full.size, int) else tuple(full.size)
        return cls(
            size=size,
            mean=tuple(full.mean),
            std=tuple(full.std),
            interpolation=full.interpolation,
            resize_mode=full.resize_mode,
            fill_color=full.fill_color,
        )

    def as_released(self) -> Preprocess:
        """The preprocessing of the paper's code, at this size."""
        return replace(RELEASED_PREPROCESS, size=self.size)

    def to_open_clip(self) -> dict[str, Any]:
        """The `preprocess_cfg` of `open_clip_config.json`; `from_open_clip` reads it back."""
        square = self.size[0] == self.size[1]
        config = asdict(self)
        return config | {"size": self.size[0] if square else list(self.size), "mode": "RGB"}

    def resize(self, image: Image.Image | np.ndarray) -> np.ndarray:
        """`image` (any size; an array is uint8 (H, W, 3) RGB) at the model's size, uint8 (h, w, 3).

        An array that has that size is returned itself.
        """
        if isinstance(image, np.ndarray):
            if image.shape == (*self.size, 3):
                return image
            image = Image.fromarray(image)
        return np.asarray(self._resize(image.convert("RGB")))

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (B, 3, h, w) at the model's size to float32 of the same shape on the same device."""
        mean = send(torch.tensor(self.mean), images.device).view(3, 1, 1)
        std = send(torch.tensor(self.std), images.device).view(3, 1, 1)
        return images.to(torch.float32).div_(255).sub_(mean).div_(std)

    def __call__(self, image: Image.Image | np.ndarray) -> torch.Tensor:
        """One image, as for `resize`, to float32 (3, h, w); equal to open_clip's `preprocess_val`."""
        pixels = torch.from_numpy(self.resize(image).copy())
        return self.normalize(pixels.permute(2, 0, 1).contiguous())

    @cached_property
    def digest(self) -> str:
        """sha256 of these settings: part of the identity of an embedding."""
        return digest(asdict(self))

    @cached_property
    def _resize(self) -> Any:
        """The part of open_clip's transform before the conversion to a tensor: PIL image to PIL image."""
        whole = image_transform_v2(PreprocessCfg(**asdict(self)), is_train=False)
        steps = [type(step).__name__ for step in whole.transforms[-2:]]
        assert steps == ["MaybeToTensor", "Normalize"], steps
        whole.transforms = whole.transforms[:-2]
        return whole


# The released code's input: any image squashed to 224 px by torchvision's Resize; mean and standard deviation
# of MIHIC (design section 9).
RELEASED_PREPROCESS = Preprocess(
    size=(224, 224),
    mean=(0.7424657, 0.7176911, 0.7305417),
    std=(0.2142405, 0.2137353, 0.2084592),
    interpolation="bilinear",
    resize_mode="squash",
)
