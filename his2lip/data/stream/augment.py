"""Augmentation of pixels and captions, as a pure function of (seed, epoch, patch)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pydantic
from pydantic import Field

from his2lip.config import Config
from his2lip.data.captions import PLACES, STAINS
from his2lip.data.images import restaining

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
CaptionDraw = Callable[[int, int, str, str | None, str | None], str]  # the signature of CaptionBank.draw

TURNS = 8  # symmetries of a square; tissue has no orientation, so all are equally likely

_DENSITY = -np.log(np.arange(256, dtype=np.float32).clip(1) / 255)  # of each intensity; 0 counts as 1


class Augment(Config):
    """Random changes of a patch, drawn again for each epoch."""

    turns: bool = True
    """One of the eight flips and quarter turns."""
    crop: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Smallest share of the area that a random crop keeps; 1 does not crop."""
    stain: Annotated[float, Field(ge=0, le=0.1)] = 0.0
    """Half width of the random change of each stain's strength and tint, in natural optical density."""

    def draw(self, seed: int, epoch: int, key: str) -> Change:
        """The change of the patch `key` in an epoch."""
        code = draw_turn(seed, epoch, key) if self.turns else 0
        if self.crop == 1 and not self.stain:
            return Change(code)
        numbers = _uniform(seed, epoch, key, b"his2lip.pixels", 9)
        box = None if self.crop == 1 else _box(self.crop, numbers[:3])
        jitter = Jitter.of(self.stain, numbers[3:]) if self.stain else None
        return Change(code, box, jitter)


# Names that a config may give in place of the three fields.
PRESETS = {True: Augment(), False: Augment(turns=False), "ihc": Augment(crop=0.6, stain=0.05)}
NONE = PRESETS[False]


def _preset(value: Any) -> Any:
    if isinstance(value, str) and value not in PRESETS:
        raise ValueError("augment must be true, false, ihc, or a mapping of turns, crop and stain")
    return PRESETS[value] if isinstance(value, bool | str) else value


Augmentation = Annotated[
    Augment, pydantic.BeforeValidator(_preset, json_schema_input_type=Augment | bool | Literal["ihc"])
]


@dataclass(frozen=True, slots=True)
class Jitter:
    """Random strength of haematoxylin, eosin and DAB (Tellez et al., IEEE Trans Med Imaging 37 (2018) 2126).

    The amount s of each stain becomes a s + b, with a in 1 +- sigma and b in +- sigma. Hues do not change:
    more or less DAB keeps its brown. The change is linear in optical density: density @ matrix + offset.
    """

    matrix: Floats  # (3, 3)
    offset: Floats  # (3,)

    @classmethod
    def of(cls, sigma: float, numbers: npt.NDArray[np.float64]) -> Jitter:
        """From six numbers in [0, 1)."""
        spread = sigma * (2 * numbers - 1)
        return cls(*restaining(1 + spread[:3], spread[3:]))

    def __call__(self, pixels: Pixels) -> Pixels:
        """uint8 (H, W, 3), restained by planes: the last bits of a matrix product vary by machine."""
        density = [_DENSITY[pixels[..., channel]] for channel in range(3)]
        part, out = np.empty_like(density[0]), np.empty_like(pixels)
        for channel in range(3):
            light = density[0] * -self.matrix[0, channel]
            for source in (1, 2):
                light += np.multiply(density[source], -self.matrix[source, channel], out=part)
            light += np.log(np.float32(255)) - self.offset[channel]
            np.exp(light, out=light)
            light += np.float32(0.5)  # rounds
            out[..., channel] = np.minimum(light, np.float32(255), out=light)
        return out


@dataclass(frozen=True, slots=True)
class Change:
    """The change of one patch.

    turn    0 to 7: bit 0 mirrors left and right, bit 1 top and bottom, bit 2 transposes
    box     left, top, right, bottom of a crop, as shares of width and height
    jitter  the new strengths of the stains
    """

    turn: int = 0
    box: tuple[float, float, float, float] | None = None
    jitter: Jitter | None = None


AS_IS = Change()


def draw_turn(seed: int, epoch: int, key: str) -> int:
    """A `Change.turn`; all eight are equally likely."""
    text = f"{seed}/{epoch}/{key}".encode()
    return hashlib.blake2b(text, digest_size=1, person=b"his2lip.turn").digest()[0] % TURNS


def turn(pixels: Pixels, code: int, out: Pixels) -> None:
    """Writes one of the eight flips and quarter turns of `pixels` (S, S, 3) to `out`, of the same shape."""
    if code & 1:
        pixels = pixels[:, ::-1]
    if code & 2:
        pixels = pixels[::-1]
    if code & 4:
        pixels = pixels.transpose(1, 0, 2)
    if code == 0:
        np.copyto(out, pixels)
        return
    for channel in range(3):  # five times as fast as numpy's copy of all three at once
        np.copyto(out[..., channel], pixels[..., channel])


def with_class_captions(draw: CaptionDraw, share: float) -> CaptionDraw:
    """Caption dropout: `draw`, with class captions for a share of its draws, by (seed, epoch, patch)."""

    def drawn(seed: int, epoch: int, patch_id: str, tissue: str | None, biomarker: str | None) -> str:
        if _uniform(seed, epoch, patch_id, b"his2lip.caption", 1)[0] < share:
            return class_caption(tissue, biomarker)
        return draw(seed, epoch, patch_id, tissue, biomarker)

    return drawn if share else draw


def class_caption(tissue: str | None, biomarker: str | None) -> str:
    """A caption of the classes only, without any finding, such as `necrosis, CD3`."""
    place = PLACES[tissue][0]
    return f"{place}, {STAINS[biomarker].name}" if biomarker else place


def _box(least: float, numbers: npt.NDArray[np.float64]) -> tuple[float, float, float, float]:
    """A random crop of the image's aspect ratio; its share of the area is uniform in [least, 1]."""
    side = float(np.sqrt(least + (1 - least) * numbers[0]))
    left, top = ((1 - side) * numbers[1:]).tolist()
    return left, top, left + side, top + side


def _uniform(seed: int, epoch: int, key: str, purpose: bytes, count: int) -> npt.NDArray[np.float64]:
    """`count` numbers in [0, 1), at most 16, keyed by seed, epoch, key and purpose."""
    text = f"{seed}/{epoch}/{key}".encode()
    digest = hashlib.blake2b(text, digest_size=4 * count, person=purpose).digest()
    return np.frombuffer(digest, dtype="<u4") / 2.0**32
