"""Annotated cells from COCO JSON, a CSV of boxes, or a SlideRunner/EXACT SQLite database."""

from __future__ import annotations

import csv
import json
import sqlite3
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from his2lip.errors import DatasetError

ANNOTATIONS = (".json", ".csv", ".sqlite", ".db")

# Headers that a table of boxes may have; the first that is there counts.
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
class Cell:
    """A cell's centre in level-0 pixels, its class as the source spells it, a key unique in the slide."""

    x: float
    y: float
    label: str
    key: str


def read_cells(path: Path) -> dict[str, list[Cell]]:
    """Slide file name -> its cells. Raises DatasetError for a file that is none of the known formats."""
    read = {".json": _coco, ".csv": _boxes}.get(path.suffix.lower(), _sliderunner)
    try:
        return read(path)
    except (OSError, ValueError, KeyError, TypeError, csv.Error, sqlite3.Error) as error:
        said = f"these annotations cannot be read ({type(error).__name__}: {error})"
        raise DatasetError(
            said, where=path, fix="COCO JSON, a CSV of boxes or a SlideRunner database"
        ) from None


def _coco(path: Path) -> dict[str, list[Cell]]:
    tree = json.loads(path.read_text(encoding="utf-8"))
    slides = {image["id"]: _base(image["file_name"]) for image in tree["images"]}
    classes = {category["id"]: category["name"] for category in tree["categories"]}
    cells = defaultdict(list)
    for i, box in enumerate(tree["annotations"]):
        x, y, width, height = map(float, box["bbox"])
        cell = Cell(x + width / 2, y + height / 2, classes[box["category_id"]], f"cell-{box.get('id', i)}")
        cells[slides[box["image_id"]]].append(cell)
    return dict(cells)


def _boxes(path: Path) -> dict[str, list[Cell]]:
    cells = defaultdict(list)
    with path.open(encoding="utf-8-sig", newline="") as source:
        for i, row in enumerate(csv.DictReader(source)):
            known = {name.strip().lower(): value for name, value in row.items() if name}
            given = {what: known[name] for what in _COLUMNS if (name := _first(what, known))}
            x, y = float(given["x0"]), float(given["y0"])
            right = float(given["x1"]) if "x1" in given else x + float(given.get("w", 0))
            bottom = float(given["y1"]) if "y1" in given else y + float(given.get("h", 0))
            cell = Cell((x + right) / 2, (y + bottom) / 2, given["label"].strip(), f"cell-{i}")
            cells[_base(given["slide"])].append(cell)
    return dict(cells)


def _first(what: str, known: dict[str, str]) -> str | None:
    """The header in `known` that means `what`."""
    return next((name for name in _COLUMNS[what] if name in known), None)


def _sliderunner(path: Path) -> dict[str, list[Cell]]:
    cells = defaultdict(list)
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as base:
        for uid, slide, label, x, y in base.execute(_SQL):
            cells[_base(slide)].append(Cell(float(x), float(y), str(label), f"cell-{uid}"))
    return dict(cells)


def _base(name: str) -> str:
    """The file name alone, whichever system wrote the path."""
    return PurePosixPath(PureWindowsPath(name).as_posix()).name
