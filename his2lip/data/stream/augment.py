"""Augmentation of images and captions, as a pure function of (seed, epoch, patch id)."""

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
from his2lip.data.captions import PLACES, STAINS, Subject
from his2lip.data.images import restaining
from his2lip.data.shards import Staining

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
CaptionDraw = Callable[[int, int, str, Subject], str]  # the signature of CaptionBank.draw

TURNS = 8  # the flips and quarter turns of a square; all are equally likely, as tissue has no orientation

_DENSITY = -np.log(np.arange(256, dtype=np.float32).clip(1) / 255)  # natural optical density; 0 counts as 1


class Augment(Config):
    """Random changes of a patch, different in each epoch."""

    turns: bool = True
    """One of the eight flips and quarter turns."""
    crop: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Smallest share of the area that a random crop keeps; 1 does not crop."""
    stain: Annotated[float, Field(ge=0, le=0.1)] = 0.0
    """Largest random change of each stain's amount: a factor of 1 ± stain, and an offset of ± stain."""

    @property
    def changes(self) -> bool:
        """Whether a patch is not the same in all epochs."""
        return self.turns or self.crop < 1 or self.stain > 0

    def draw(self, seed: int, epoch: int, key: str) -> Change:
        """The change of the patch with the id `key` in an epoch."""
        code = draw_turn(seed, epoch, key) if self.turns else 0
        if self.crop == 1 and not self.stain:
            return Change(code)
        numbers = _uniform(seed, epoch, key, b"his2lip.pixels", 9)
        box = None if self.crop == 1 else _box(self.crop, numbers[:3])
        jitter = Jitter.of(self.stain, numbers[3:]) if self.stain else None
        return Change(code, box, jitter)


# Values that a config may have in place of the three fields.
PRESETS = {True: Augment(), False: Augment(turns=False), "ihc": Augment(crop=0.6, stain=0.05)}


def _preset(value: Any) -> Any:
    if isinstance(value, str) and value not in PRESETS:
        raise ValueError("augment must be true, false, ihc, or a mapping of turns, crop and stain")
    return PRESETS[value] if isinstance(value, bool | str) else value


Augmentation = Annotated[
    Augment, pydantic.BeforeValidator(_preset, json_schema_input_type=Augment | bool | Literal["ihc"])
]


@dataclass(frozen=True, slots=True)
class Jitter:
    """Random amounts of haematoxylin, eosin and DAB (Tellez et al., IEEE Trans Med Imaging 37 (2018) 2126).

    The amount s of each stain becomes a s + b, with a in [1 - sigma, 1 + sigma] and b in [-sigma, sigma]. The
    hues of the stains do not change, so DAB stays brown. The change is linear in the natural optical density
    of a pixel: density @ matrix + offset.
    """

    matrix: Floats  # (3, 3)
    offset: Floats  # (3,)

    @classmethod
    def of(cls, sigma: float, numbers: npt.NDArray[np.float64]) -> Jitter:
        """The jitter of six random numbers in [0, 1): a of the three stains, then b of the three stains."""
        spread = sigma * (2 * numbers - 1)
        return cls(*restaining(1 + spread[:3], spread[3:]))

    def __call__(self, pixels: Pixels) -> Pixels:
        """The changed pixels of an image; both are uint8 (H, W, 3).

        Sums are computed plane by plane, because the last bits of a matrix product differ between machines.
        """
        density = [_DENSITY[pixels[..., channel]] for channel in range(3)]
        part, out = np.empty_like(density[0]), np.empty_like(pixels)
        for channel in range(3):
            light = density[0] * -self.matrix[0, channel]
            for source in (1, 2):
                light += np.multiply(density[source], -self.matrix[source, channel], out=part)
            light += np.log(np.float32(255)) - self.offset[channel]
            np.exp(light, out=light)
            light += np.float32(0.5)  # the conversion to uint8 truncates, so this rounds
            out[..., channel] = np.minimum(light, np.float32(255), out=light)
        return out


@dataclass(frozen=True, slots=True)
class Change:
    """The change of one patch.

    turn    0 to 7: bit 0 swaps left and right, then bit 1 swaps top and bottom, then bit 2 transposes
    box     left, top, right and bottom of a crop, as fractions of the width and height; None: no crop
    jitter  change of the amounts of stains; None: no change
    """

    turn: int = 0
    box: tuple[float, float, float, float] | None = None
    jitter: Jitter | None = None


AS_IS = Change()


def draw_turn(seed: int, epoch: int, key: str) -> int:
    """A `Change.turn`, 0 to 7; all are equally likely."""
    text = f"{seed}/{epoch}/{key}".encode()
    return hashlib.blake2b(text, digest_size=1, person=b"his2lip.turn").digest()[0] % TURNS


def turn(pixels: Pixels, code: int, out: Pixels) -> None:
    """Writes the flip or quarter turn `code` (`Change.turn`) of `pixels` (S, S, 3) to `out` (S, S, 3)."""
    if code & 1:
        pixels = pixels[:, ::-1]
    if code & 2:
        pixels = pixels[::-1]
    if code & 4:
        pixels = pixels.transpose(1, 0, 2)
    if code in (0, 2):  # whole rows are copied
        np.copyto(out, pixels)
        return
    for channel in range(3):  # five times as fast as one copy of all three channels
        np.copyto(out[..., channel], pixels[..., channel])


def with_class_captions(draw: CaptionDraw, share: float) -> CaptionDraw:
    """Caption dropout: `draw`, but with `class_caption` in a share of the draws.

    Which draws are replaced depends on (seed, epoch, patch id) only.
    """

    def drawn(seed: int, epoch: int, patch_id: str, subject: Subject) -> str:
        if _uniform(seed, epoch, patch_id, b"his2lip.caption", 1)[0] < share:
            return class_caption(*subject)
        return draw(seed, epoch, patch_id, subject)

    return drawn if share else draw


def class_caption(
    tissue: str | None, biomarker: str | None, staining: Staining | None = None, described: str | None = None
) -> str:
    """A caption that names only the classes and no finding, such as `necrosis, CD3, weak staining`."""
    named = [PLACES[tissue][0], STAINS[biomarker].name if biomarker else None]
    named += [f"{staining} staining" if staining else None, described]
    return ", ".join(name for name in named if name)


def _box(least: float, numbers: npt.NDArray[np.float64]) -> tuple[float, float, float, float]:
    """A random crop with the aspect ratio of the image, as (left, top, right, bottom) in fractions.

    Its share of the area is uniform in [least, 1]. `numbers` are three random numbers in [0, 1).
    """
    side = float(np.sqrt(least + (1 - least) * numbers[0]))
    left, top = ((1 - side) * numbers[1:]).tolist()
    return left, top, left + side, top + side


def _uniform(seed: int, epoch: int, key: str, purpose: bytes, count: int) -> npt.NDArray[np.float64]:
    """`count` (at most 16) random numbers in [0, 1) that depend only on seed, epoch, key and purpose."""
    text = f"{seed}/{epoch}/{key}".encode()
    digest = hashlib.blake2b(text, digest_size=4 * count, person=purpose).digest()
    return np.frombuffer(digest, dtype="<u4") / 2.0**32
