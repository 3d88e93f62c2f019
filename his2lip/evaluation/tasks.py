"""Tasks of the grid beside zero-shot classification: one grid cell planned, scored, stored and read back."""

from __future__ import annotations

import abc
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pydantic

from his2lip.config import digest, recorded
from his2lip.data.cards import Card, Protocol
from his2lip.data.shards import ShardSet
from his2lip.errors import ConfigError, did_you_mean, first_line
from his2lip.evaluation.cell_files import (
    DamagedCellError,
    cell_folder,
    check_seal,
    read_table,
    read_tree,
    read_unchecked,
    write_cell,
)
from his2lip.evaluation.config import PREFIX, ModelEntry
from his2lip.evaluation.grid_cell import CellRun, Plan, Scorer
from his2lip.evaluation.protocols import of_role
from his2lip.evaluation.task_results import TaskCell, TaskRow

_SCHEMA = 1  # raised whenever the same inputs would give another result
_EVIDENCE, _SUM = "evidence.parquet", "evidence"  # the file, and the key of its sha256
# Fields that cell.json alone decides.
_MEASURED = ("cell", "caveat", "rows", "weights_sha256", "encoder", "further_encoders")


@dataclass(frozen=True)
class TaskScored:
    """What a task gives for one scorer.

    rows      the figures by setting
    evidence  what they follow from, one row per unit and setting
    caveat    what to know before they are compared; None where there is nothing
    """

    rows: list[TaskRow]
    evidence: pa.Table
    caveat: str | None = None


@dataclass(frozen=True, kw_only=True)
class TaskPlan(Plan):
    """A task on one dataset. `protocol` names its split, view and preprocessing; `selection` its rows.

    A subclass is one task. It names itself, the baselines that can score it, and its settings.
    """

    task: ClassVar[str]
    version: ClassVar[int] = 1  # raised with every change that can change a figure
    baselines: ClassVar[frozenset[str]] = frozenset()

    @abc.abstractmethod
    def settings(self) -> dict[str, Any]:
        """What decides the figures besides model, rows and protocol: JSON values."""

    @abc.abstractmethod
    def score(self, scorer: Scorer) -> TaskScored:
        """The figures of a scorer."""

    def further_encoders(self, scorer: Scorer) -> list[str]:
        """Keys of encoders besides `scorer.identity` whose features it uses."""
        return []

    def takes(self, entry: ModelEntry) -> bool:
        baseline = entry.path.removeprefix(PREFIX)
        of_model = entry.control is None and entry.probe is None
        return of_model and (baseline == entry.path or baseline in self.baselines)

    def identity(self, scorer: Scorer) -> str:
        return digest(
            {
                "schema": _SCHEMA,
                "task": self.task,
                "groups": self.selection.groups_sha256,
                "scoring": self.protocol.scoring,
                "unit": self.protocol.unit,
                **self._known(scorer),
            }
        )

    def _known(self, scorer: Scorer) -> dict[str, Any]:
        """The digests of the record."""
        return {
            "weights_sha256": scorer.weights,
            "encoder": scorer.identity(self),
            "split_sha256": self.selection.split_sha256,
            "images_sha256": self.selection.images_sha256,
            "settings_sha256": digest({"version": self.version, **self.settings()}),
        }

    def run(self, scorer: Scorer, folder: str) -> CellRun:
        known, identity = self._known(scorer), self.identity(scorer)
        shown = self.shown(scorer) | {"task": self.task, "split": self.protocol.split}
        place, damaged = cell_folder(folder, identity), None
        try:
            finished = _read(place, shown)
        except DamagedCellError as error:
            finished, damaged = None, f"{place}: {error}"
        if finished is not None:
            return CellRun(finished, reused=True)
        scored = self.score(scorer)
        further = self.further_encoders(scorer)
        cell = TaskCell(
            **shown, **known, further_encoders=further, cell=identity, caveat=scored.caveat, rows=scored.rows
        )
        tree = {"schema": _SCHEMA, "record": recorded(cell)}
        write_cell(place, tree, scored.evidence, name=_EVIDENCE, key=_SUM)
        return CellRun(cell, damaged=damaged)


def protocol_of(
    task: str, name: str, dataset: str, card: Card, shards: ShardSet, role: str | None
) -> Protocol:
    """The protocol of this name, on the split of the benchmark's role. Raises ConfigError for none."""
    if name not in card.protocols:
        what, fix = f"the dataset has no protocol '{name}'", did_you_mean(name, card.protocols)
        raise ConfigError(what, where=dataset, key=f"{task}.protocol", fix=fix)
    return of_role(card.protocols[name], shards, role)


def read_evidence(folder: str, cell: TaskCell) -> pa.Table:
    """What the figures of a task follow from: one row per unit and setting; the columns are the task's.

    Raises as `read_unchecked`.
    """
    return read_unchecked(cell_folder(folder, cell.cell), _EVIDENCE)


def rows_under(evidence: pa.Table, setting: Mapping[str, str]) -> pa.Table:
    """The rows of the evidence of a setting."""
    kept = [pc.equal(evidence[name], value) for name, value in setting.items()]
    return evidence.filter(functools.reduce(pc.and_, kept))


def check_task(folder: str, cell: TaskCell) -> None:
    """Raises DamagedCellError where the stored grid cell of a record is missing, damaged, or another one."""
    shown = {name: value for name, value in cell.model_dump().items() if name not in _MEASURED}
    stored = _read(cell_folder(folder, cell.cell), shown)
    if stored is None:
        raise DamagedCellError("its grid cell is missing or of an earlier version")
    if stored != cell:
        raise DamagedCellError("tasks.json has other figures than its cell.json")


def _read(place: str, shown: dict[str, Any]) -> TaskCell | None:
    """A finished result; None where there is none, or of an earlier version.

    The fields of `shown` do not follow from the figures, and replace those that were stored. Raises
    DamagedCellError for content that is not what was written.
    """
    tree = read_tree(place)
    if tree is None:
        return None
    check_seal(tree)
    try:
        if tree["schema"] != _SCHEMA or {*tree["record"]} != {*TaskCell.model_fields}:
            return None
        read_table(place, _EVIDENCE, tree[_SUM])
        return TaskCell.model_validate({**tree["record"], **shown})
    except (KeyError, TypeError, pydantic.ValidationError) as error:
        raise DamagedCellError(first_line(error)) from None
