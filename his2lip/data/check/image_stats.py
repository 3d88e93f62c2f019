"""Statistics of the images of prepared shards: size, colour, blank share and stain, by split and class."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from his2lip.data.images import LOOKS, StainLook, encode_jpeg, sampled

SAMPLES = 6  # thumbnails per class
NO_STAIN = "(none)"  # the stain of rows whose column `stain` is empty
_CLASSES = 100  # largest number of classes with thumbnails
_THUMBNAIL = 96  # pixels per side, at most
# Declared stain -> look -> share of the images that show a stain above which the look is worth a warning.
# A haematoxylin look is no evidence against DAB and AEC, since a negative patch has it. AEC and DAB are
# easily confused, so they count against each other only above half of the images.
_CONTRADICTS: dict[str, dict[str, float]] = {
    "DAB": {"H&E": 0.05, "AEC": 0.5},
    "AEC": {"H&E": 0.05, "DAB": 0.5},
    "haematoxylin": {"H&E": 0.05, "DAB": 0.05, "AEC": 0.05},
    "H&E": {"DAB": 0.25, "AEC": 0.25, "haematoxylin": 0.75},
}


@dataclass
class GroupStats:
    """Sums over the images of one split and class.

    images, blank        number of images, and of those that show hardly any tissue
    widths, heights      the smallest and the largest, in pixels
    colour               float64 (3,): sum of the images' mean R, G, B (0 to 255)
    grey, grey_squared   sums of the images' mean grey levels (0 to 255), and of their squares
    """

    images: int = 0
    blank: int = 0
    widths: tuple[int, int] = (0, 0)
    heights: tuple[int, int] = (0, 0)
    colour: np.ndarray = field(default_factory=lambda: np.zeros(3))
    grey: float = 0.0
    grey_squared: float = 0.0

    def add(self, pixels: np.ndarray, look: StainLook) -> None:
        """Adds one image, uint8 (H, W, 3)."""
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
        """Mean R, G, B of the images, rounded."""
        red, green, blue = (self.colour / max(self.images, 1)).round().astype(int).tolist()
        return red, green, blue

    @property
    def brightness(self) -> tuple[float, float]:
        """Mean and standard deviation of the images' mean grey levels."""
        mean = self.grey / max(self.images, 1)
        return mean, max(self.grey_squared / max(self.images, 1) - mean * mean, 0.0) ** 0.5

    @property
    def blank_percent(self) -> str:
        """Share of the images that show hardly any tissue, as text."""
        return f"{100 * self.blank / max(self.images, 1):.1f}%"

    @property
    def size(self) -> str:
        """Width and height as text: `128 x 128 px`, or ranges such as `48 to 64 x 32 to 64 px`."""
        return f"{_range(self.widths)} x {_range(self.heights)} px"


class ImageStats:
    """Gathers statistics image by image. Memory grows only with the number of classes.

    groups  (split, class) -> sums
    stains  declared stain -> stain by colour deconvolution (None: blank) -> number of images

    The argument `samples` is the number of thumbnails to keep per class.
    """

    def __init__(self, *, samples: int = 0) -> None:
        self.groups: dict[tuple[str, str], GroupStats] = defaultdict(GroupStats)
        self.stains: dict[str, Counter[str | None]] = defaultdict(Counter)
        self._samples = samples
        self._kept: dict[str, list[tuple[int, str, bytes]]] = {}

    def add(
        self, pixels: np.ndarray, look: StainLook, *, patch_id: str, split: str, label: str, stain: str | None
    ) -> None:
        """Adds one image, uint8 (H, W, 3), with its look and its row's values."""
        self.groups[split, label].add(pixels, look)
        self.stains[stain or NO_STAIN][look.stain] += 1
        if self._samples:
            self._sample(pixels, patch_id, label)

    @property
    def samples(self) -> dict[str, list[tuple[str, bytes]]]:
        """Class -> (patch id, JPEG thumbnail) of each sample, sorted by patch id."""
        return {label: sorted((i, data) for _, i, data in kept) for label, kept in sorted(self._kept.items())}

    def warnings(self) -> Iterator[str]:
        """Unknown stains in the column `stain`, and looks that contradict it; one sentence each."""
        for declared, looks in sorted(self.stains.items()):
            if declared not in (*LOOKS, NO_STAIN):
                yield f"{sum(looks.values()):,} images have the stain '{declared}'; known: {', '.join(LOOKS)}"
            stained = sum(n for look, n in looks.items() if look is not None)
            limits = _CONTRADICTS.get(declared, {})
            for look, n in sorted(
                (look, n) for look, n in looks.items() if look is not None and look in limits
            ):
                if n > limits[look] * stained:
                    yield f"{n:,} of {stained:,} images have the stain '{declared}' but look like {look}"

    def _sample(self, pixels: np.ndarray, patch_id: str, label: str) -> None:
        """Keeps the images whose patch ids have the smallest hashes, whatever the order of the rows."""
        if label not in self._kept and len(self._kept) >= _CLASSES:
            return
        kept = self._kept.setdefault(label, [])
        rank = -int.from_bytes(hashlib.blake2b(patch_id.encode(), digest_size=8).digest(), "big")
        if len(kept) < self._samples:
            heapq.heappush(kept, (rank, patch_id, _thumbnail(pixels)))
        elif rank > kept[0][0]:
            heapq.heapreplace(kept, (rank, patch_id, _thumbnail(pixels)))


def _thumbnail(pixels: np.ndarray) -> bytes:
    image = Image.fromarray(pixels)
    image.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
    return encode_jpeg(np.asarray(image), quality=80)


def _widened(bounds: tuple[int, int], value: int) -> tuple[int, int]:
    return min(bounds[0], value), max(bounds[1], value)


def _range(bounds: tuple[int, int]) -> str:
    return str(bounds[0]) if bounds[0] == bounds[1] else f"{bounds[0]} to {bounds[1]}"
