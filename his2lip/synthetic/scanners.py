"""Scanners: how transmitted light becomes pixels, with different settings for each dataset."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from his2lip.synthetic.cases import SlideStaining
from his2lip.synthetic.grid import Grid, blur, noise


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanner:
    """The settings of a scanner. Light and pixel values are relative to full scale, which is 1."""

    white: tuple[float, float, float] = (0.95, 0.945, 0.95)  # red, green and blue of bare glass
    blur: float = 0.45  # microns, standard deviation of the point spread function
    sharpen: float = 0.2  # weight of the firmware's unsharp mask
    noise: float = 0.008  # standard deviation
    gamma: float = 1.0  # exponent of the tone curve; 1 is linear in light
    saturation: float = 1.0  # factor
    shading: float = 0.01  # relative variation of the illumination over the field
    jpeg: int | None = 88  # quality of the scanner's own compression; None: not compressed


DEFAULT = Scanner()
# Our settings. They are plausible for the scanners in the paper's Table 1, and differ between datasets.
SCANNERS: dict[str, Scanner] = {
    "mihic": DEFAULT,
    "pantumor": Scanner(white=(0.93, 0.92, 0.94), blur=0.38, saturation=1.1, jpeg=80),
    "bcdata": Scanner(white=(0.89, 0.87, 0.82), blur=0.55, sharpen=0.6, gamma=1.15, noise=0.012, jpeg=75),
    "hnscc": Scanner(white=(0.94, 0.94, 0.945), blur=0.5, saturation=0.95, jpeg=85),
    "ihc4bc": Scanner(white=(0.96, 0.96, 0.965), blur=0.35, saturation=1.15, jpeg=90),
    "her2-ihc-40x": Scanner(white=(0.92, 0.93, 0.94), blur=0.5, saturation=0.9, noise=0.01, jpeg=80),
    "bci": Scanner(white=(0.91, 0.90, 0.92), blur=0.6, saturation=1.05, jpeg=85),
    "mist": Scanner(white=(0.90, 0.90, 0.91), blur=0.55, gamma=1.05, noise=0.01, jpeg=80),
    "anhir-lung": Scanner(white=(0.95, 0.93, 0.95), blur=0.8, saturation=0.85, jpeg=85),
    "acrobat": Scanner(white=(0.93, 0.92, 0.93), blur=0.9, saturation=1.05, jpeg=80),
}


def capture(
    light: NDArray[np.float32],
    grid: Grid,
    scanner: Scanner,
    staining: SlideStaining,
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """What the scanner records of transmitted `light` (S, S, 3) in 0..1: uint8 (S, S, 3) RGB."""
    gain = (
        np.array(scanner.white, np.float32) * np.array(staining.tint, np.float32) * np.float32(staining.light)
    )
    image = light * gain
    if scanner.shading:
        image *= (1 + scanner.shading * noise(rng, grid, grid.span)[0])[..., None]
    if scanner.blur:
        image = blur(image, scanner.blur / grid.mpp)
    if scanner.sharpen:
        image = image + scanner.sharpen * (image - blur(image, 1.0))
    if scanner.saturation != 1.0:
        grey = image.mean(-1, keepdims=True)
        image = grey + scanner.saturation * (image - grey)
    image = np.clip(image, 0, 1)
    if scanner.gamma != 1.0:
        image = image**scanner.gamma
    if scanner.noise:
        image = image + scanner.noise * rng.standard_normal(image.shape, dtype=np.float32)
    pixels = (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    return pixels if scanner.jpeg is None else _through_jpeg(pixels, scanner.jpeg)


def _through_jpeg(pixels: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """The pixels after JPEG compression by a real encoder."""
    import simplejpeg

    coded = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=quality, colorsubsampling="422")
    return np.asarray(simplejpeg.decode_jpeg(coded))
