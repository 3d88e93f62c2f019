"""The record of a grid cell whose task is not zero-shot classification, and the tables derived from it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from his2lip.config import Config, recorded, sealed, unsealed
from his2lip.data.shards import origin_of, title_of
from his2lip.errors import ConfigError, first_line
from his2lip.evaluation.config import PREFIX, TASK_NAMES
from his2lip.files import answers, filesystem, read_file, remove_file, write_file

TASKS = "tasks.json"  # file of all records of a benchmark, beside leaderboard.csv
_FIX = "run his2lip benchmark again: it writes the tables again from the finished grid cells"


Unit = Literal["fraction", "coefficient", "rank"]


class Estimate(Config):
    """A figure with its 95 % interval; null where it is not known."""

    value: float | None
    lo: float | None = None
    hi: float | None = None
    unit: Unit = "fraction"

    def __str__(self) -> str:
        """The value, as percent where it is a fraction, with its limits in parentheses."""
        if self.value is None:
            return "–"
        shown = self.shown(self.value)
        if self.interval is None:
            return shown
        return "{} ({} to {})".format(shown, *map(self.shown, self.interval))

    @property
    def interval(self) -> tuple[float, float] | None:
        return None if self.lo is None or self.hi is None else (self.lo, self.hi)

    def columns(self, name: str) -> dict[str, float | None]:
        """The value and the limits by the names that tables give them: NAME, NAME_lo and NAME_hi."""
        return {name: self.value, f"{name}_lo": self.lo, f"{name}_hi": self.hi}

    def shown(self, value: float) -> str:
        """A value in the unit of this figure."""
        return {"fraction": f"{100 * value:.2f}", "coefficient": f"{value:.3f}", "rank": f"{value:g}"}[
            self.unit
        ]


class TaskRow(Config):
    """The figures of one setting of a task."""

    setting: dict[str, str]
    """Such as direction: image-to-text; the same keys in all rows of a task."""
    sizes: dict[str, int]
    """What the figures rest on, such as queries: 100; the same keys in all rows of a task."""
    clusters: int
    """Groups that intervals leave out one at a time."""
    cluster_kind: str
    no_interval: str | None
    """Why there are no intervals; null where there are."""
    figures: dict[str, Estimate]

    @property
    def name(self) -> str:
        """The values of the setting, such as `image-to-text, tissue`."""
        return ", ".join(self.setting.values())

    @property
    def size(self) -> str:
        """Such as `100 queries, 2,000 gallery, 12 cases`."""
        known = [*self.sizes.items(), (f"{self.cluster_kind}s", self.clusters)]
        return ", ".join(f"{n:,} {what}" for what, n in known)


class TaskCell(Config):
    """The figures of one grid cell, (model, task on a dataset), and what they were computed from."""

    task: str
    model: str
    dataset: str
    generated: bool
    in_domain: bool
    overlap_units: int | None
    overlap_images: int | None
    overlap_cases: int | None
    split: str
    role: str
    weights_sha256: str
    encoder: str
    """Digest of all that decides a feature of an image."""
    further_encoders: list[str] = []
    """The same of other encoders whose features it uses, such as those of perturbed images."""
    split_sha256: str
    images_sha256: str
    settings_sha256: str
    """Digest of what else decides the figures, such as the options of the task, and its captions."""
    caveat: str | None
    """What to know before the figures are compared."""
    cell: str
    """Identity: the digest of all that decides the figures."""
    rows: list[TaskRow]

    @property
    def protocol(self) -> str:
        """The name of its column in the grid, beside those of protocols."""
        return self.task

    @property
    def is_baseline(self) -> bool:
        return self.model.startswith(PREFIX)

    @property
    def column(self) -> str:
        """The dataset as boards name it, such as `mihic (generated)`."""
        return title_of(self.dataset, generated=self.generated)

    @property
    def scored_as(self) -> str:
        """Dataset and task in one name, such as `mihic-generated.retrieval`."""
        return f"{origin_of(self.dataset, generated=self.generated)}.{self.task}"

    def row(self, **setting: str) -> TaskRow | None:
        """The row of a setting; None where there is none."""
        return next((row for row in self.rows if row.setting == setting), None)

    def all_sizes(self) -> dict[str, int]:
        """What the figures rest on by TASK/SETTING/SIZE."""
        return {
            f"{'/'.join((self.task, *row.setting.values()))}/{name}": n
            for row in self.rows
            for name, n in {**row.sizes, "clusters": row.clusters}.items()
        }

    def metrics(self) -> dict[str, float]:
        """Every known figure by TASK/SETTING/FIGURE, with `_lo` and `_hi` for the limits of its interval."""
        found: dict[str, float] = {}
        for row in self.rows:
            place = "/".join((self.task, *row.setting.values()))
            for name, figure in row.figures.items():
                columns = figure.columns(f"{place}/{name}")
                found |= {column: value for column, value in columns.items() if value is not None}
        return found


def task_csv(cells: Sequence[TaskCell]) -> str:
    """One line per row of the cells of one task: what is in the record, the setting, sizes and figures."""
    lines = [line for cell in cells for line in _lines(cell)]
    text = io.StringIO()
    names = list(dict.fromkeys(name for line in lines for name in line))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _lines(cell: TaskCell) -> Iterator[dict[str, Any]]:
    about = cell.model_dump(mode="json", exclude={"rows", "task", "further_encoders"})
    first = {key: about.pop(key) for key in ("model", "dataset")}
    for row in cell.rows:
        figures: dict[str, float | None] = {}
        for name, figure in row.figures.items():
            figures |= figure.columns(name)
        kept = {"clusters": row.clusters, "cluster_kind": row.cluster_kind, "no_interval": row.no_interval}
        yield {**first, **row.setting, **row.sizes, **figures, **kept, **about}


def write_tasks(folder: str, cells: Sequence[TaskCell]) -> None:
    """Writes tasks.json into `folder`, and for reading one CSV per task, such as retrieval.csv.

    Without cells of a task, the table of an earlier call is removed.
    """
    system, path = filesystem(folder)
    data = json.dumps(sealed({"cells": [recorded(cell) for cell in cells]}), indent=1, ensure_ascii=False)
    with answers(folder):
        write_file(system, f"{path}/{TASKS}", (data + "\n").encode())
        for task in TASK_NAMES:
            own, place = [cell for cell in cells if cell.task == task], f"{path}/{task}.csv"
            if own:
                write_file(system, place, task_csv(own).encode())
            else:
                remove_file(system, place)


def read_tasks(folder: str | Path) -> list[TaskCell]:
    """The records of a benchmark's tasks.json; none where it has no such file.

    Raises ConfigError for a file that is not what was written, and StorageError, as `answers`.
    """
    system, place = filesystem(str(folder))
    path = f"{place}/{TASKS}"
    try:
        tree = unsealed(json.loads(read_file(system, path)))
        return [TaskCell.model_validate(one) for one in tree["cells"]]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        what = f"the figures of the tasks cannot be read: {first_line(error)}"
        raise ConfigError(what, where=path, key=TASKS, fix=_FIX) from None
