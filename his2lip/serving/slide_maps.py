"""Colours of classes and of similarities, as readers with any colour vision tell them apart."""

from __future__ import annotations

import colorsys
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from his2lip.serving.classifier import Answer, Question, answers
from his2lip.serving.slides import SlideReading

Colour = tuple[int, int, int]

# Okabe and Ito (2008), black last: told apart under the common colour blindnesses.
_DISTINCT: tuple[Colour, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66),
    (0, 114, 178), (213, 94, 0), (204, 121, 167), (0, 0, 0),
)  # fmt: skip
# Five points of viridis (van der Walt and Smith 2015), dark to bright.
_SCALE = np.array(
    [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], dtype=np.float64
)


def class_colours(count: int) -> list[Colour]:
    """One colour a class; more than eight are spread over the hues."""
    if count <= len(_DISTINCT):
        return list(_DISTINCT[:count])
    wheel = (colorsys.hsv_to_rgb(i / count, 0.9, 0.6 + 0.4 * (i % 2)) for i in range(count))
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in wheel]


def scale_colours(values: np.ndarray) -> np.ndarray:
    """uint8 (…, 3) of values in [0, 1]."""
    place = np.clip(values, 0, 1) * (len(_SCALE) - 1)
    points = np.arange(len(_SCALE))
    channels = [np.interp(place, points, _SCALE[:, c]) for c in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


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


def write_geojson(path: Path, reading: SlideReading) -> None:
    """A FeatureCollection of squares, one line per tile, in level-0 pixels from the slide's `origin`.

    Written as QuPath's own export is read back (its `QuPathTypeAdapters`, 0.4 and later): `objectType` tile,
    `classification` of the first question with its colour, `measurements` as a map of finite numbers, and
    answers in words under `metadata`.
    """
    with path.open("w", encoding="utf-8") as out:
        out.write('{"type": "FeatureCollection", "features": [')
        for number, feature in enumerate(_features(reading)):
            out.write(("," if number else "") + "\n" + json.dumps(feature, allow_nan=False))
        out.write("\n]}\n")


def _features(reading: SlideReading) -> Iterator[dict[str, Any]]:
    first = reading.questions[0]
    classes = first.prompts.classes
    colours = dict(zip(classes, class_colours(len(classes)), strict=True))
    streams = [answers(q, reading.tiles[q.name]) for q in reading.questions]
    places = reading.places - reading.origin
    for (x, y), *given in zip(places.tolist(), *streams, strict=True):
        asked = list(zip(reading.questions, given, strict=True))
        yield {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [_square(x, y, reading.side)]},
            "properties": {
                "objectType": "tile",
                "classification": {"name": given[0].label, "color": list(colours[given[0].label])},
                "measurements": {k: v for q, answer in asked for k, v in _measured(q, answer).items()},
                "metadata": {q.title: answer.label for q, answer in asked},
            },
        }


def _square(x: int, y: int, side: int) -> list[list[int]]:
    """A closed ring."""
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]


def _measured(question: Question, answer: Answer) -> dict[str, float]:
    """Numbers of one answer, under names that say the question."""
    numbers = {f"{question.title}: {label}": value for label, value in answer.similarities.items()}
    numbers[f"{question.title}: margin"] = answer.margin
    if answer.probability is not None:
        numbers[f"{question.title}: probability"] = answer.probability
    return numbers
