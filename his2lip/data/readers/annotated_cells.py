"""Annotated cells of slides, from COCO JSON, a CSV of boxes, or a SlideRunner or EXACT database."""

from __future__ import annotations

import json
import math
import sqlite3
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from his2lip import taxonomy
from his2lip.data.readers.tables import read_table
from his2lip.errors import DatasetError

ANNOTATIONS = (".json", ".csv", ".sqlite", ".db")

# Possible headers of each column of a CSV of boxes; the first one that is present is used.
_COLUMNS = {
    "slide": ("slide", "filename", "file_name", "image", "file"),
    "label": ("label", "class", "category", "name"),
    "x0": ("xmin", "x_min", "x1", "x", "left"),
    "y0": ("ymin", "y_min", "y1", "y", "top"),
    "x1": ("xmax", "x_max", "x2", "right"),
    "y1": ("ymax", "y_max", "y2", "bottom"),
    "w": ("w", "width"),
    "h": ("h", "height"),
}
_SQL = """
SELECT a.uid, s.filename, c.name, AVG(p.coordinateX), AVG(p.coordinateY)
FROM Annotations a
JOIN Slides s ON s.uid = a.slide
JOIN Classes c ON c.uid = a.agreedClass
JOIN Annotations_coordinates p ON p.annoId = a.uid
GROUP BY a.uid ORDER BY a.uid
"""


@dataclass(frozen=True, slots=True)
class AnnotatedCell:
    """One annotated cell of a slide.

    x, y   centre in level-0 pixels; NaN where the file has no valid number
    label  class as the file spells it
    key    unique in the slide
    fault  why it cannot be used, or None
    """

    x: float
    y: float
    label: str
    key: str
    fault: str | None = None


def read_annotations(path: Path) -> dict[str, list[AnnotatedCell]]:
    """Slide -> its annotated cells. A slide is named as in the file, as a path with `/`.

    Raises DatasetError for a file that is not in one of the formats.
    """
    read = {".json": _coco, ".csv": _boxes}.get(path.suffix.lower(), _sliderunner)
    try:
        return read(path)
    except (OSError, ValueError, KeyError, TypeError, DatasetError, sqlite3.Error) as error:
        what = f"the annotations cannot be read ({type(error).__name__}: {error})"
        fix = "give COCO JSON, a CSV of boxes or a SlideRunner database"
        raise DatasetError(what, where=path, key="annotations", fix=fix) from None


def find_slide(name: str, annotations: str, slides: list[str]) -> str | None:
    """The path of the slide that an annotation file names, or None where there is none.

    name         the slide as the annotation file names it
    annotations  path of the annotation file, relative to the root
    slides       paths of the slides, relative to the root

    The first match of these: `name` as a path from the root; `name` as a path from the annotation file's
    folder; the only slide whose path ends with `name`, or is the end of `name`.

    Raises DatasetError where several slides match in the last way.
    """
    wanted = PurePosixPath(taxonomy.normalised(name)).parts
    known = {PurePosixPath(taxonomy.normalised(slide)).parts: slide for slide in slides}
    beside = PurePosixPath(taxonomy.normalised(annotations)).parts[:-1] + wanted
    for exact in (wanted, beside):
        if exact in known:
            return known[exact]
    ending = [
        slide
        for parts, slide in known.items()
        if parts[-len(wanted) :] == wanted or wanted[-len(parts) :] == parts
    ]
    if len(ending) > 1:
        what = f"'{name}' may be {' or '.join(sorted(ending))}"
        raise DatasetError(what, where=annotations, key="slide")
    return ending[0] if ending else None


def _coco(path: Path) -> dict[str, list[AnnotatedCell]]:
    tree = json.loads(path.read_text(encoding="utf-8"))
    slides = {image["id"]: _posix(image["file_name"]) for image in tree["images"]}
    classes = {category["id"]: category["name"] for category in tree["categories"]}
    cells = defaultdict(list)
    for i, box in enumerate(tree["annotations"]):
        x, y, width, height = map(float, box["bbox"])
        key = f"cell-{box.get('id', i)}"
        cell = AnnotatedCell(x + width / 2, y + height / 2, classes[box["category_id"]], key)
        cells[slides[box["image_id"]]].append(cell)
    return dict(cells)


def _boxes(path: Path) -> dict[str, list[AnnotatedCell]]:
    cells = defaultdict(list)
    table = read_table(path)
    header, *rows = table.rows
    place = {name.lower(): column for column, name in reversed(list(enumerate(header)))}
    columns = {what: place[name] for what in _COLUMNS if (name := _first(what, place))}
    for i, row in enumerate(rows):
        given = {what: row[column] for what, column in columns.items() if column < len(row)}
        slide, label, key = _posix(given["slide"]), given.get("label", ""), f"cell-{i}"
        try:
            numbers = {what: table.number(given[what]) for what in columns if what not in ("slide", "label")}
        except (DatasetError, KeyError) as error:
            fault = error.what if isinstance(error, DatasetError) else "its row has too few values"
            cells[slide].append(AnnotatedCell(math.nan, math.nan, label, key, fault))
            continue
        x, y = numbers["x0"], numbers["y0"]
        right = numbers["x1"] if "x1" in numbers else x + numbers.get("w", 0)
        bottom = numbers["y1"] if "y1" in numbers else y + numbers.get("h", 0)
        cells[slide].append(AnnotatedCell((x + right) / 2, (y + bottom) / 2, label, key))
    return dict(cells)


def _first(what: str, known: dict[str, int]) -> str | None:
    """The header in `known` of the column `what`, or None."""
    return next((name for name in _COLUMNS[what] if name in known), None)


def _sliderunner(path: Path) -> dict[str, list[AnnotatedCell]]:
    cells = defaultdict(list)
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        for uid, slide, label, x, y in database.execute(_SQL):
            cells[_posix(slide)].append(AnnotatedCell(float(x), float(y), str(label), f"cell-{uid}"))
    return dict(cells)


def _posix(name: str) -> str:
    """A path with `/`, whichever operating system wrote it. An absolute path is reduced to its file name."""
    path = PureWindowsPath(name)
    return path.name if path.anchor else PurePosixPath(path.as_posix()).as_posix()
