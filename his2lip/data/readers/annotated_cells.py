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

_FIX = "give COCO JSON, a CSV of boxes or a SlideRunner database"
# Possible headers of each column of a CSV of boxes; the first one that is present is used. `_edges` adds
# the headers whose meaning depends on the others: x, x0, x1, x2, and the same of y.
_COLUMNS = {
    "slide": ("slide", "filename", "file_name", "image", "file"),
    "label": ("label", "class", "category", "name"),
    "left": ("xmin", "x_min", "left"),
    "top": ("ymin", "y_min", "top"),
    "right": ("xmax", "x_max", "right"),
    "bottom": ("ymax", "y_max", "bottom"),
    "w": ("w", "width"),
    "h": ("h", "height"),
}
_AXES = {"x": ("left", "right", "w"), "y": ("top", "bottom", "h")}  # the two edges of a box, and its size
_SQL = """
SELECT a.uid, s.filename, c.name, AVG(p.coordinateX), AVG(p.coordinateY)
FROM Annotations a
LEFT JOIN Slides s ON s.uid = a.slide
LEFT JOIN Classes c ON c.uid = a.agreedClass
LEFT JOIN Annotations_coordinates p ON p.annoId = a.uid
{where}
GROUP BY a.uid ORDER BY a.uid
"""
# An annotation that an annotator removed stays in the database. Old databases have no such column.
_NOT_REMOVED = "WHERE COALESCE(a.deleted, 0) = 0"
_NO_PLACE = "an annotation of the whole slide, without coordinates"
_NO_CLASS = "it has no class"


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

    Cells of no named slide are under an empty name.
    Raises DatasetError for a file that is not in one of the formats.
    """
    read = {".json": _coco, ".csv": _boxes}.get(path.suffix.lower(), _sliderunner)
    try:
        return read(path)
    except DatasetError as error:
        what = f"the annotations cannot be read: {error.what}"
        raise DatasetError(what, where=path, key="annotations", fix=error.fix or _FIX) from None
    except (OSError, ValueError, KeyError, TypeError, sqlite3.Error) as error:
        what = f"the annotations cannot be read ({type(error).__name__}: {error})"
        raise DatasetError(what, where=path, key="annotations", fix=_FIX) from None


def find_slides(name: str, annotations: str, slides: list[str]) -> list[str]:
    """The path of the slide that an annotation file names; the paths of all that it may name.

    name         the slide as the annotation file names it
    annotations  path of the annotation file, relative to the root
    slides       paths of the slides, relative to the root

    The first match of these: `name` as a path from the root; `name` as a path from the annotation file's
    folder; the slides whose path ends with `name`, or is the end of `name`.
    """
    wanted = PurePosixPath(taxonomy.normalised(name)).parts
    known = {PurePosixPath(taxonomy.normalised(slide)).parts: slide for slide in slides}
    beside = PurePosixPath(taxonomy.normalised(annotations)).parts[:-1] + wanted
    for exact in (wanted, beside):
        if exact in known:
            return [known[exact]]
    return sorted(
        slide
        for parts, slide in known.items()
        if parts[-len(wanted) :] == wanted or wanted[-len(parts) :] == parts
    )


def _coco(path: Path) -> dict[str, list[AnnotatedCell]]:
    tree = json.loads(path.read_text(encoding="utf-8-sig"))
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
    header, *rows = table.rows or [[]]
    names = [name.lower() for name in header]
    place = {name: column for column, name in reversed(list(enumerate(names)))}
    chosen = {what: name for what in _COLUMNS if (name := _first(what, names))}
    chosen |= {what: name for axis in _AXES for what, name in _edges(axis, names).items()}
    columns = {what: place[name] for what, name in chosen.items()}
    missing = [what for what in ("slide", "left", "top") if what not in columns]
    if missing:
        what = f"it has no column of the {missing[0]}{'' if missing[0] == 'slide' else ' edge'}"
        raise DatasetError(
            what, key=missing[0], fix="name its columns filename, label, xmin, ymin, xmax, ymax"
        )
    for i, row in enumerate(rows):
        given = {what: row[column] for what, column in columns.items() if column < len(row)}
        slide, label, key = _posix(given.get("slide", "")), given.get("label", ""), f"cell-{i}"
        try:
            numbers = {what: table.number(given[what]) for what in columns if what not in ("slide", "label")}
        except (DatasetError, KeyError) as error:
            fault = error.what if isinstance(error, DatasetError) else "its row has too few values"
            cells[slide].append(AnnotatedCell(math.nan, math.nan, label, key, fault))
            continue
        x, y = numbers["left"], numbers["top"]
        right = numbers["right"] if "right" in numbers else x + numbers.get("w", 0)
        bottom = numbers["bottom"] if "bottom" in numbers else y + numbers.get("h", 0)
        centre = (x + right) / 2, (y + bottom) / 2
        cells[slide].append(AnnotatedCell(*centre, label, key, None if label else _NO_CLASS))
    return dict(cells)


def _edges(axis: str, names: list[str]) -> dict[str, str]:
    """Edge of a box on an axis (`left` and `right`, or `top` and `bottom`) -> its header, where it is given.

    names  the headers in lower case

    Beside `x2`, or as the only first edge, `x1` is the first edge; beside `x0` or `x` it is the second.
    Raises DatasetError for headers that fit more than one reading.
    """
    first, second, size = _AXES[axis]
    low, high = _first(first, names), _first(second, names)
    if low and high:
        return {first: low, second: high}
    zero, one, two = (f"{axis}{n}" for n in range(3))
    plain = axis if low is None else None  # beside xmin, x is no edge
    starts = {low, zero, plain}
    is_start = two in names or not starts & set(names)
    firsts = [name for name in names if name in starts or (name == one and is_start)]
    seconds = [name for name in names if name in (high, two) or (name == one and not is_start)]
    sizes = [name for name in names if name in _COLUMNS[size] and [*firsts, *seconds] == [plain, one]]
    if len(firsts) > 1 or len(seconds) > 1 or sizes:
        columns = ", ".join(name for name in names if name in {*firsts, *seconds, *sizes})
        what = f"the columns {columns} fit more than one reading of a box"
        raise DatasetError(what, key=axis, fix=f"name its edges {axis}min and {axis}max")
    return {edge: found[0] for edge, found in ((first, firsts), (second, seconds)) if found}


def _first(what: str, names: list[str]) -> str | None:
    """The header of the column `what` in `names`, or None."""
    return next((name for name in _COLUMNS[what] if name in names), None)


def _sliderunner(path: Path) -> dict[str, list[AnnotatedCell]]:
    cells = defaultdict(list)
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        columns = {name.lower() for _, name, *_ in database.execute("PRAGMA table_info(Annotations)")}
        query = _SQL.format(where=_NOT_REMOVED if "deleted" in columns else "")
        for uid, slide, label, x, y in database.execute(query):
            fault = _NO_PLACE if x is None or y is None else _NO_CLASS if label is None else None
            place = (math.nan, math.nan) if fault else (float(x), float(y))
            cells[_posix(slide or "")].append(AnnotatedCell(*place, str(label or ""), f"cell-{uid}", fault))
    return dict(cells)


def _posix(name: str) -> str:
    """A path with `/`, whichever operating system wrote it. An absolute path is reduced to its file name."""
    path = PureWindowsPath(name)
    if not path.name:
        return ""
    return path.name if path.anchor else PurePosixPath(path.as_posix()).as_posix()
