"""Maps of the tiles of a slide: classes or similarities as colours over the thumbnail, with a legend."""

from __future__ import annotations

import colorsys
import textwrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from his2lip.serving.classifier import DAB_UNIT
from his2lip.serving.questions import Question
from his2lip.serving.slides import SlideReading, tile_boxes

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

GREY: Colour = (150, 150, 150)  # of tiles that are not answered

_COVER = 0.5  # opacity of the colour of a tile over the thumbnail
_LINE = 24  # px, height of a line of the legend
_LETTER = 9  # px, width of a wide letter of the legend
_LEAST_WIDTH = 480  # px, width that the text of the legend needs
_BARS_UM = (50, 100, 200, 500, 1000, 2000, 5000, 10_000)  # possible lengths of the scale bar in microns


def draw_classes(reading: SlideReading, question: Question) -> Image.Image:
    """A map of the tiles in the colours of their classes; grey: not answered.

    The legend has the share of tiles of each class.
    """
    classes = question.prompts.classes
    colours = class_colours(len(classes))
    tile_colours = np.array(colours, dtype=np.uint8)[reading.tiles[question.name].predicted]
    shares = reading.shares(question)
    lines = [
        (colour, f"{label}  {100 * shares[label]:.1f} % of tiles")
        for label, colour in zip(classes, colours, strict=True)
        if shares[label]
    ]
    return _page(reading, question, tile_colours, f"{question.title}: share of tiles", lines)


def draw_similarity(
    reading: SlideReading, question: Question, label: str, *, bounds: tuple[float, float]
) -> Image.Image:
    """A map of the tiles by their similarity to the class `label`; grey: not answered.

    bounds  the similarities of the darkest and of the brightest colour, and of all beyond them. They do not
            depend on the slide, so that one colour means one similarity on every slide.
    """
    low, high = bounds
    values = reading.tiles[question.name].scores[:, question.prompts.classes.index(label)]
    steps = np.linspace(low, high, 5)
    ends = similarity_colours(np.linspace(0, 1, 5))
    marks = ["or less", "", "", "", "or more"]
    lines = [(_colour(c), f"{value:.3f} {mark}") for c, value, mark in zip(ends, steps, marks, strict=True)]
    colours = similarity_colours((values - low) / (high - low))
    return _page(reading, question, colours, f"similarity to {label}, fixed scale", lines)


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
    reading: SlideReading,
    question: Question,
    colours: np.ndarray,
    title: str,
    lines: list[tuple[Colour, str]],
) -> Image.Image:
    """The thumbnail with the colours of the tiles, uint8 (T, 3), and below it the legend.

    The legend has the title, `lines` of (colour, text), the scale bar, the slide's answer, and its basis.
    """
    answered = reading.answered(question)
    picture = _covered(reading, np.where(answered[:, None], colours, np.array(GREY, dtype=np.uint8)))
    if not answered.all():
        lines = [*lines, (GREY, f"not answered  {100 * (1 - answered.mean()):.1f} % of tiles")]
    height, width = picture.shape[:2]
    wide = max(width, _LEAST_WIDTH)
    texts = [line for text in stated(reading, question) for line in textwrap.wrap(text, wide // _LETTER)]
    rows = len(lines) + 3 + len(texts)
    page = Image.new("RGB", (wide, height + _LINE * rows), "white")
    page.paste(Image.fromarray(picture), (0, 0))
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=16)
    draw.text((8, height + 4), f"{title}, {len(answered):,} tiles", fill="black", font=font)
    for row, (colour, text) in enumerate(lines, start=1):
        top = height + 4 + row * _LINE
        seen = [round(255 + _COVER * (channel - 255)) for channel in colour]  # as over white
        draw.rectangle((8, top, 26, top + 16), fill=tuple(seen), outline="black")
        draw.text((34, top), text, fill="black", font=font)
    top = height + 12 + (len(lines) + 1) * _LINE
    _scale_bar(draw, font, reading, width, top)
    for row, text in enumerate(texts, start=1):
        plain = text.replace("µm", "microns")  # the font has no µ
        draw.text((8, top + row * _LINE), plain, fill="black", font=font)
    return page


def stated(reading: SlideReading, question: Question) -> list[str]:
    """The slide's answer to the question, and what it rests on, for the legend."""
    answer = reading.whole[question.name]
    forced = "forced; " if answer.forced else ""
    reason = "" if answer.refusal is None else f" ({forced}{answer.refusal.reason})"
    dab = [] if answer.dab is None else [f"DAB area: {100 * answer.dab:.1f} %, {DAB_UNIT}, in all tiles"]
    basis = [f"{title}: {text}" for title, text in answer.basis.by_title().items()]
    return [f"{question.title} of the slide: {answer.label}{reason}", *dab, *basis]


def _covered(reading: SlideReading, colours: np.ndarray) -> np.ndarray:
    """The thumbnail, uint8 (h, w, 3), with the colours of the tiles, uint8 (T, 3), over it."""
    picture = reading.thumbnail.astype(np.float32)
    boxes = tile_boxes(reading.places, reading.side, downsample=reading.downsample)
    for ((left, top), (right, bottom)), colour in zip(boxes, colours, strict=True):
        tile = picture[top:bottom, left:right]
        tile += _COVER * (colour.astype(np.float32) - tile)
    return picture.round().astype(np.uint8)


def _scale_bar(
    draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    reading: SlideReading, width: int, top: int,
) -> None:  # fmt: skip
    """Draws the longest of `_BARS_UM` that is at most a third of the picture's width."""
    um_per_pixel = reading.mpp * reading.downsample
    length = max((um for um in _BARS_UM if um / um_per_pixel <= width / 3), default=_BARS_UM[0])
    end = 8 + round(length / um_per_pixel)
    draw.line((8, top + 10, end, top + 10), fill="black", width=4)
    text = f"{length} microns" if length < 1000 else f"{length // 1000} mm"
    draw.text((end + 8, top), text, fill="black", font=font)


def _colour(values: np.ndarray) -> Colour:
    red, green, blue = values.tolist()
    return red, green, blue
