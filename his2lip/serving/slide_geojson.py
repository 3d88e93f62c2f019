"""The tiles of a slide and their answers as GeoJSON for QuPath."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from his2lip.serving.classifier import Answer, answers
from his2lip.serving.questions import Question
from his2lip.serving.slide_maps import class_colours
from his2lip.serving.slides import SlideReading


def write_geojson(path: Path, reading: SlideReading) -> None:
    """Writes a FeatureCollection with one square per tile, one per line.

    Coordinates are level-0 pixels relative to the slide's `origin`, as in QuPath. The properties are those
    that QuPath 0.4 and later read (`QuPathTypeAdapters`): `objectType` is tile; `classification` has the
    class of the first question and its colour; `measurements` has similarities, margins and probabilities;
    `metadata` has the class of each question.
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
        pairs = list(zip(reading.questions, given, strict=True))
        yield {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [_square(x, y, reading.side)]},
            "properties": {
                "objectType": "tile",
                "classification": {"name": given[0].label, "color": list(colours[given[0].label])},
                "measurements": {k: v for q, answer in pairs for k, v in _measured(q, answer).items()},
                "metadata": {q.title: answer.label for q, answer in pairs},
            },
        }


def _square(x: int, y: int, side: int) -> list[list[int]]:
    """The corners of a tile as a closed ring: the last point is the first."""
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]


def _measured(question: Question, answer: Answer) -> dict[str, float]:
    """The numbers of one answer by names that start with the title of the question."""
    numbers = {f"{question.title}: {label}": value for label, value in answer.similarities.items()}
    numbers[f"{question.title}: margin"] = answer.margin
    if answer.probability is not None:
        numbers[f"{question.title}: probability"] = answer.probability
    return numbers
