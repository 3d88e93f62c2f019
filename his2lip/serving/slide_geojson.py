"""The tiles of a slide and their answers as GeoJSON for QuPath."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from his2lip.serving.classifier import DAB_UNIT, Answer
from his2lip.serving.questions import Question
from his2lip.serving.slide_maps import GREY, class_colours
from his2lip.serving.slides import SlideReading


def write_geojson(path: Path, reading: SlideReading) -> None:
    """Writes a FeatureCollection, one feature per line: the slide, then one square per tile.

    Coordinates are level-0 pixels relative to the slide's `origin`, as in QuPath. The properties are those
    that QuPath 0.4 and later read (`QuPathTypeAdapters`). The slide is an annotation around all tiles, whose
    `metadata` has its answers and what they rest on, which holds for the tiles too. For a tile, `objectType`
    is tile; `classification` has the class of the first question and its colour; `measurements` has
    similarities, margins, probabilities and DAB areas; `metadata` has the class of each question, and the
    reason where it is not answered.
    """
    with path.open("w", encoding="utf-8") as out:
        out.write('{"type": "FeatureCollection", "features": [')
        out.write("\n" + json.dumps(_slide(reading), allow_nan=False))
        for feature in _tiles(reading):
            out.write(",\n" + json.dumps(feature, allow_nan=False))
        out.write("\n]}\n")


def _slide(reading: SlideReading) -> dict[str, Any]:
    """The slide as an annotation around its tiles."""
    places = reading.places - reading.origin
    (left, top), (right, bottom) = places.min(axis=0).tolist(), (places.max(axis=0) + reading.side).tolist()
    metadata: dict[str, str] = {}
    measurements: dict[str, float] = {}
    for question in reading.questions:
        answer = reading.whole[question.name]
        metadata |= _stated(question, answer)
        metadata |= {f"{question.title}: {k}": text for k, text in answer.basis.by_title().items()}
        measurements |= _measured(question, answer)
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [_ring(left, top, right, bottom)]},
        "properties": {
            "objectType": "annotation",
            "name": "his2lip: the slide's answers, and what they and those of its tiles rest on",
            "measurements": measurements,
            "metadata": metadata,
        },
    }


def _tiles(reading: SlideReading) -> Iterator[dict[str, Any]]:
    classes = reading.questions[0].prompts.classes
    colours = dict(zip(classes, class_colours(len(classes)), strict=True))
    streams = [reading.answers(question) for question in reading.questions]
    places = reading.places - reading.origin
    for (x, y), *given in zip(places.tolist(), *streams, strict=True):
        pairs = list(zip(reading.questions, given, strict=True))
        label = given[0].label
        yield {
            "type": "Feature",
            "geometry": {
                "type": "Polygon",
                "coordinates": [_ring(x, y, x + reading.side, y + reading.side)],
            },
            "properties": {
                "objectType": "tile",
                "classification": {"name": label, "color": list(colours.get(label, GREY))},
                "measurements": {k: v for q, answer in pairs for k, v in _measured(q, answer).items()},
                "metadata": {k: v for q, answer in pairs for k, v in _stated(q, answer).items()},
            },
        }


def _ring(left: int, top: int, right: int, bottom: int) -> list[list[int]]:
    """The corners of a rectangle as a closed ring: the last point is the first."""
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


def _stated(question: Question, answer: Answer) -> dict[str, str]:
    """The class of one answer, and the reason where a gate holds it back."""
    stated = {question.title: answer.label}
    if answer.refusal is not None:
        forced = "forced: " if answer.forced else ""
        stated[f"{question.title}: reason"] = f"{forced}{answer.refusal.reason}"
    return stated


def _measured(question: Question, answer: Answer) -> dict[str, float]:
    """The numbers of one answer by names that start with the title of the question."""
    numbers = {f"{question.title}: {label}": value for label, value in answer.similarities.items()}
    for name, value in (
        ("margin", answer.margin),
        ("probability", answer.probability),
        (f"DAB area, {DAB_UNIT}", answer.dab),
    ):
        if value is not None:
            numbers[f"{question.title}: {name}"] = value
    return numbers
