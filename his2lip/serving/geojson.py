"""A slide's tiles as GeoJSON that QuPath reads: tile objects with class, colour and measurements."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from his2lip.serving.classify import Answer, answers
from his2lip.serving.palette import class_colours
from his2lip.serving.questions import Question
from his2lip.serving.slides import SlideReading


def write_geojson(path: Path, reading: SlideReading) -> None:
    """A FeatureCollection of squares in level-0 pixels, one line a tile, in the slide's own orientation.

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
    for (x, y), *given in zip(reading.places.tolist(), *streams, strict=True):
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
