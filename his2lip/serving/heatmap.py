"""A picture of a slide's tiles over its thumbnail: winning classes, or one class's similarity."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from his2lip.serving.palette import Colour, class_colours, scale_colours
from his2lip.serving.questions import Question
from his2lip.serving.slides import SlideReading

_COVER = 0.5  # how much of the thumbnail a tile's colour covers
_LINE = 24  # pixels of a line of the legend
_LEAST_WIDTH = 480  # pixels; a legend needs some
_BARS_UM = (50, 100, 200, 500, 1000, 2000, 5000, 10_000)  # lengths of the scale bar, microns


def draw_classes(reading: SlideReading, question: Question) -> Image.Image:
    """Every tile in its class's colour; below, each class with its share of the tiles, and a scale bar."""
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
    """Every tile by its similarity to one class, dark to bright between the least and the most seen."""
    values = reading.tiles[question.name].scores[:, question.prompts.classes.index(label)]
    low, high = float(values.min()), float(values.max())
    span = high - low or 1.0
    steps = [low + span * i / 4 for i in range(5)]
    ends = scale_colours(np.linspace(0, 1, 5))
    lines = [(_colour(c), f"{value:.3f}") for c, value in zip(ends, steps, strict=True)]
    return _page(reading, scale_colours((values - low) / span), f"similarity to {label}", lines)


def _page(
    reading: SlideReading, colours: np.ndarray, title: str, lines: list[tuple[Colour, str]]
) -> Image.Image:
    """The thumbnail under the tiles' colours, uint8 (T, 3), above a title, a legend and a scale bar."""
    picture = _covered(reading, colours)
    height, width = picture.shape[:2]
    page = Image.new("RGB", (max(width, _LEAST_WIDTH), height + _LINE * (len(lines) + 3)), "white")
    page.paste(Image.fromarray(picture), (0, 0))
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=16)
    draw.text((8, height + 4), title, fill="black", font=font)
    for row, (colour, text) in enumerate(lines, start=1):
        top = height + 4 + row * _LINE
        seen = [round(255 + _COVER * (channel - 255)) for channel in colour]  # as over bright tissue
        draw.rectangle((8, top, 26, top + 16), fill=tuple(seen), outline="black")
        draw.text((34, top), text, fill="black", font=font)
    _scale_bar(draw, font, reading, width, height + 12 + (len(lines) + 1) * _LINE)
    return page


def _covered(reading: SlideReading, colours: np.ndarray) -> np.ndarray:
    picture = reading.thumbnail.astype(np.float32)
    down = picture.shape[1] / reading.width  # thumbnail pixels a level-0 pixel
    corners = np.stack([reading.places, reading.places + reading.side], axis=1) * down
    for ((left, top), (right, bottom)), colour in zip(corners.round().astype(int), colours, strict=True):
        tile = picture[top : max(bottom, top + 1), left : max(right, left + 1)]
        tile += _COVER * (colour.astype(np.float32) - tile)
    return picture.round().astype(np.uint8)


def _scale_bar(
    draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    reading: SlideReading, width: int, top: int,
) -> None:  # fmt: skip
    """The longest round length that takes at most a third of the picture."""
    um_a_pixel = reading.mpp * reading.width / width
    length = max((um for um in _BARS_UM if um / um_a_pixel <= width / 3), default=_BARS_UM[0])
    end = 8 + round(length / um_a_pixel)
    draw.line((8, top + 10, end, top + 10), fill="black", width=4)
    text = f"{length} microns" if length < 1000 else f"{length // 1000} mm"
    draw.text((end + 8, top), text, fill="black", font=font)


def _colour(values: np.ndarray) -> Colour:
    red, green, blue = values.tolist()
    return red, green, blue
