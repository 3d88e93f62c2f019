"""Maps of the tiles of a slide: classes or similarities as colours over the thumbnail, with a legend."""

from __future__ import annotations

import colorsys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from his2lip.serving.questions import Question
from his2lip.serving.slides import SlideReading

Colour = tuple[int, int, int]

# Okabe and Ito (2008), with black last. They can be distinguished with common forms of colour blindness.
_DISTINCT: tuple[Colour, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66),
    (0, 114, 178), (213, 94, 0), (204, 121, 167), (0, 0, 0),
)  # fmt: skip
# Five points of the colour map viridis (van der Walt and Smith 2015), from dark to bright.
_VIRIDIS = np.array(
    [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], dtype=np.float64
)

_COVER = 0.5  # opacity of the colour of a tile over the thumbnail
_LINE = 24  # px, height of a line of the legend
_LEAST_WIDTH = 480  # px, width that the text of the legend needs
_BARS_UM = (50, 100, 200, 500, 1000, 2000, 5000, 10_000)  # possible lengths of the scale bar in microns


def draw_classes(reading: SlideReading, question: Question) -> Image.Image:
    """A map of the tiles in the colours of their classes. The legend has the share of tiles of each class."""
    classes = question.prompts.classes
    colours = class_colours(len(classes))
    tile_colours = np.array(colours, dtype=np.uint8)[reading.tiles[question.name].predicted]
    shares = reading.shares(question)
    lines = [
        (colour, f"{label}  {100 * shares[label]:.1f} %")
        for label, colour in zip(classes, colours, strict=True)
        if shares[label]
    ]
    return _page(reading, tile_colours, f"{question.title}, {len(reading.places):,} tiles", lines)


def draw_similarity(reading: SlideReading, question: Question, label: str) -> Image.Image:
    """A map of the tiles by their similarity to the class `label`, from dark (lowest) to bright (highest)."""
    values = reading.tiles[question.name].scores[:, question.prompts.classes.index(label)]
    low, high = float(values.min()), float(values.max())
    span = high - low or 1.0
    steps = [low + span * i / 4 for i in range(5)]
    ends = similarity_colours(np.linspace(0, 1, 5))
    lines = [(_colour(c), f"{value:.3f}") for c, value in zip(ends, steps, strict=True)]
    return _page(reading, similarity_colours((values - low) / span), f"similarity to {label}", lines)


def class_colours(count: int) -> list[Colour]:
    """One colour per class. More than eight classes get equally spaced hues."""
    if count <= len(_DISTINCT):
        return list(_DISTINCT[:count])
    wheel = (colorsys.hsv_to_rgb(i / count, 0.9, 0.6 + 0.4 * (i % 2)) for i in range(count))
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in wheel]


def similarity_colours(values: np.ndarray) -> np.ndarray:
    """Values (…) in [0, 1] as colours, uint8 (…, 3), from dark to bright."""
    place = np.clip(values, 0, 1) * (len(_VIRIDIS) - 1)
    points = np.arange(len(_VIRIDIS))
    channels = [np.interp(place, points, _VIRIDIS[:, c]) for c in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def _page(
    reading: SlideReading, colours: np.ndarray, title: str, lines: list[tuple[Colour, str]]
) -> Image.Image:
    """The thumbnail with the colours of the tiles, uint8 (T, 3), and below it title, legend and scale bar.

    lines  (colour, text) of each line of the legend
    """
    picture = _covered(reading, colours)
    height, width = picture.shape[:2]
    page = Image.new("RGB", (max(width, _LEAST_WIDTH), height + _LINE * (len(lines) + 3)), "white")
    page.paste(Image.fromarray(picture), (0, 0))
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=16)
    draw.text((8, height + 4), title, fill="black", font=font)
    for row, (colour, text) in enumerate(lines, start=1):
        top = height + 4 + row * _LINE
        seen = [round(255 + _COVER * (channel - 255)) for channel in colour]  # as over white
        draw.rectangle((8, top, 26, top + 16), fill=tuple(seen), outline="black")
        draw.text((34, top), text, fill="black", font=font)
    _scale_bar(draw, font, reading, width, height + 12 + (len(lines) + 1) * _LINE)
    return page


def _covered(reading: SlideReading, colours: np.ndarray) -> np.ndarray:
    """The thumbnail, uint8 (h, w, 3), with the colours of the tiles, uint8 (T, 3), over it."""
    picture = reading.thumbnail.astype(np.float32)
    factor = picture.shape[1] / reading.width  # thumbnail pixels per level-0 pixel
    corners = np.stack([reading.places, reading.places + reading.side], axis=1) * factor
    for ((left, top), (right, bottom)), colour in zip(corners.round().astype(int), colours, strict=True):
        tile = picture[top : max(bottom, top + 1), left : max(right, left + 1)]
        tile += _COVER * (colour.astype(np.float32) - tile)
    return picture.round().astype(np.uint8)


def _scale_bar(
    draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    reading: SlideReading, width: int, top: int,
) -> None:  # fmt: skip
    """Draws the longest of `_BARS_UM` that is at most a third of the picture's width."""
    um_per_pixel = reading.mpp * reading.width / width
    length = max((um for um in _BARS_UM if um / um_per_pixel <= width / 3), default=_BARS_UM[0])
    end = 8 + round(length / um_per_pixel)
    draw.line((8, top + 10, end, top + 10), fill="black", width=4)
    text = f"{length} microns" if length < 1000 else f"{length // 1000} mm"
    draw.text((end + 8, top), text, fill="black", font=font)


def _colour(values: np.ndarray) -> Colour:
    red, green, blue = values.tolist()
    return red, green, blue
