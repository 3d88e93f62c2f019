"""Image statistics of prepared shards: size, colour, blank share and stain, by split and class."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from his2lip.data.images import LOOKS, StainLook, encode_jpeg, sampled

SAMPLES = 6  # pictures kept of each class
_CLASSES = 100  # classes of which pictures are kept, at most
_THUMBNAIL = 96  # pixels a side, at most
NO_STAIN = "(not said)"


@dataclass
class GroupStats:
    """Sums over the images of one split and class; colours are means over an image's pixels, 0 to 255."""

    images: int = 0
    blank: int = 0
    widths: tuple[int, int] = (0, 0)  # the least and the most
    heights: tuple[int, int] = (0, 0)
    colour: np.ndarray = field(default_factory=lambda: np.zeros(3))  # sum of each image's mean R, G, B
    grey: float = 0.0
    grey_squared: float = 0.0

    def add(self, pixels: np.ndarray, look: StainLook) -> None:
        """Takes one image, uint8 (H, W, 3)."""
        colour = sampled(pixels).reshape(-1, 3).mean(axis=0)
        grey = float(colour.mean())
        height, width = pixels.shape[:2]
        self.widths = _widened(self.widths, width) if self.images else (width, width)
        self.heights = _widened(self.heights, height) if self.images else (height, height)
        self.images += 1
        self.blank += look.blank
        self.colour += colour
        self.grey += grey
        self.grey_squared += grey * grey

    @property
    def rgb(self) -> tuple[int, int, int]:
        """The mean colour, rounded."""
        red, green, blue = (self.colour / max(self.images, 1)).round().astype(int).tolist()
        return red, green, blue

    @property
    def brightness(self) -> tuple[float, float]:
        """Mean and standard deviation, over images, of their mean grey level."""
        mean = self.grey / max(self.images, 1)
        return mean, max(self.grey_squared / max(self.images, 1) - mean * mean, 0.0) ** 0.5

    @property
    def blank_percent(self) -> str:
        """How many images show hardly any tissue, as people read it."""
        return f"{100 * self.blank / max(self.images, 1):.1f}%"

    @property
    def size(self) -> str:
        """`128 x 128 px`, or the smallest and the largest width and height."""
        return f"{_range(self.widths)} x {_range(self.heights)} px"


class ImageStats:
    """Gathers them image by image; memory grows with the number of classes only.

    groups   (split, class) -> its sums
    stains   stain as the row says -> what deconvolution says (None: blank) -> images
    samples  class -> thumbnails (JPEG bytes), a few chosen by their patch id's hash; empty unless asked for
    """

    def __init__(self, *, samples: int = 0) -> None:
        self.groups: dict[tuple[str, str], GroupStats] = defaultdict(GroupStats)
        self.stains: dict[str, Counter[str | None]] = defaultdict(Counter)
        self._samples = samples
        self._kept: dict[str, list[tuple[int, str, bytes]]] = {}

    def add(
        self, pixels: np.ndarray, look: StainLook, *, patch_id: str, split: str, label: str, stain: str | None
    ) -> None:
        """Takes one image, uint8 (H, W, 3), and what it looks like."""
        self.groups[split, label].add(pixels, look)
        self.stains[stain or NO_STAIN][look.stain] += 1
        if self._samples:
            self._sample(pixels, patch_id, label)

    @property
    def samples(self) -> dict[str, list[tuple[str, bytes]]]:
        """class -> (patch id, JPEG thumbnail) of its samples, sorted by patch id."""
        return {label: sorted((i, data) for _, i, data in kept) for label, kept in sorted(self._kept.items())}

    def warnings(self) -> Iterator[str]:
        """What the stain check finds against the `stain` column, a sentence each."""
        for said, looks in sorted(self.stains.items()):
            if said not in (*LOOKS, NO_STAIN):
                known = ", ".join(LOOKS)
                yield f"{sum(looks.values()):,} images are said to be stained '{said}', none of {known}"
            judged = sum(n for look, n in looks.items() if look is not None)
            against = {look: n for look, n in looks.items() if look in _AGAINST.get(said, {})}
            for look, n in sorted(against.items(), key=lambda one: str(one[0])):
                if n > _AGAINST[said][str(look)] * judged:
                    yield f"{n:,} of {judged:,} images that should be {said} look like {look}"

    def _sample(self, pixels: np.ndarray, patch_id: str, label: str) -> None:
        """Keeps those whose hash is smallest: a fair choice, the same in any order of rows."""
        if label not in self._kept and len(self._kept) >= _CLASSES:
            return
        kept = self._kept.setdefault(label, [])
        rank = -int.from_bytes(hashlib.blake2b(patch_id.encode(), digest_size=8).digest(), "big")
        if len(kept) < self._samples:
            heapq.heappush(kept, (rank, patch_id, _thumbnail(pixels)))
        elif rank > kept[0][0]:
            heapq.heapreplace(kept, (rank, patch_id, _thumbnail(pixels)))


# Stain as a row says -> look -> share of the images that show a stain from which it is worth a warning. A
# haematoxylin look is no evidence against an antibody (a negative patch has it), and AEC against DAB is only
# where nearly all say so, for each is easily taken for the other.
_AGAINST: dict[str, dict[str, float]] = {
    "DAB": {"H&E": 0.05, "AEC": 0.5},
    "AEC": {"H&E": 0.05, "DAB": 0.5},
    "haematoxylin": {"H&E": 0.05, "DAB": 0.05, "AEC": 0.05},
    "H&E": {"DAB": 0.25, "AEC": 0.25, "haematoxylin": 0.75},
}


def _thumbnail(pixels: np.ndarray) -> bytes:
    image = Image.fromarray(pixels)
    image.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
    return encode_jpeg(np.asarray(image), quality=80)


def _widened(bounds: tuple[int, int], value: int) -> tuple[int, int]:
    return min(bounds[0], value), max(bounds[1], value)


def _range(bounds: tuple[int, int]) -> str:
    return str(bounds[0]) if bounds[0] == bounds[1] else f"{bounds[0]} to {bounds[1]}"
