"""A stored grid cell: its record, its predictions and what else its figures follow from."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from his2lip.config import resolved
from his2lip.data.cards import LabelsOf
from his2lip.errors import ConfigError, first_line
from his2lip.evaluation import results
from his2lip.evaluation.cell_figures import Units, calibration, figures
from his2lip.evaluation.cell_files import (
    DamagedCellError,
    cell_folder,
    check_seal,
    read_table,
    read_tree,
    read_unchecked,
    write_cell,
)
from his2lip.evaluation.config import OWN_POOL
from his2lip.evaluation.metrics import Predictions, macro_f1
from his2lip.evaluation.prompt_bands import band
from his2lip.evaluation.protocols import APART, groups_digest, split_digest
from his2lip.evaluation.random_tables import Drawn, RandomTables, seed_of
from his2lip.evaluation.reliability import Fitted
from his2lip.evaluation.results import CellResult
from his2lip.evaluation.statistics import ClusterKind, Clusters
from his2lip.files import answers, filesystem

CELL_SCHEMA = 1  # raised whenever the same inputs would give another result
APART_NAME = "(apart)"  # label and prediction of units that are not scored
BY, UNDER = "by_", "predicted_"  # columns of predictions: values of a breakdown, predictions under a pool
# Counts that do not decide the predictions: they are computed for finished grid cells too.
COUNTED = ("overlap_units", "overlap_images", "overlap_cases", "repeated", "cut_prompts")
_TABLE, _SUM = "predictions.parquet", "predictions_sha256"  # the file, and the key of its sha256
# Keys of cell.json beside the record's.
_BESIDE = ("schema", _SUM, "sha256", "prompt_f1", "evidence")

PromptF1 = Mapping[str, list[float]]  # pool -> macro F1 of each of its prompt draws


@dataclass(frozen=True)
class Evidence:
    """What the figures of a grid cell follow from, together with its predictions.

    ordered       whether the classes are given in their order
    labels_of     what the authors gave a label to (field of the card)
    drawn         how the confusion matrices were drawn whose expectation the figures are; None elsewhere
    device        where the scorer computed: cpu or cuda; None without a model
    code_version  the code that scored the grid cell
    fit           digest of the units that a temperature was fitted to, or why there are none
    """

    ordered: bool
    labels_of: LabelsOf
    drawn: Drawn | None
    device: str | None
    code_version: str
    fit: str | None


@dataclass(frozen=True)
class StoredCell:
    """A grid cell as it was stored: its record, macro F1 by prompt draw, evidence and predictions."""

    result: CellResult
    prompt_f1: PromptF1
    evidence: Evidence
    predictions: pa.Table


def write_finished(place: str, cell: StoredCell) -> None:
    """Stores a grid cell in its folder."""
    tree = {
        "schema": CELL_SCHEMA,
        **resolved(cell.result),
        _SUM: "",  # keeps its place
        "prompt_f1": cell.prompt_f1,
        "evidence": dataclasses.asdict(cell.evidence),
    }
    write_cell(place, tree, cell.predictions, name=_TABLE, key=_SUM)


def read_finished(place: str, shown: Mapping[str, Any]) -> StoredCell | None:
    """A finished grid cell; None where there is none, or one of an earlier version with fewer fields.

    The fields of `shown` do not follow from the predictions, and replace those that were stored. Raises
    DamagedCellError for content that is not what was written.
    """
    tree = read_tree(place)
    try:
        if tree is None or tree["schema"] != CELL_SCHEMA or "sha256" not in tree:
            return None
        record = {key: value for key, value in tree.items() if key not in _BESIDE}
        complete = {*results.fields(), *_BESIDE} <= {*tree, *shown}
        complete = complete and {*tree["evidence"]} == {f.name for f in dataclasses.fields(Evidence)}
        result = results.parse({**record, **shown}, where=f"{place}/cell.json") if complete else None
    except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise DamagedCellError(first_line(error)) from None
    check_seal(tree)
    if result is None:
        return None
    predictions = read_table(place, _TABLE, tree[_SUM])
    return StoredCell(result, tree["prompt_f1"], Evidence(**tree["evidence"]), predictions)


def check_stored(folder: str, result: CellResult) -> None:
    """Raises DamagedCellError where the stored grid cell of a result is missing, damaged, or another one."""
    stored = read_cell(folder, result.cell, {name: getattr(result, name) for name in COUNTED}).result
    if any(getattr(stored, name) != getattr(result, name) for name in results.metric_fields()):
        raise DamagedCellError("the leaderboard has other figures than its cell.json")


def read_cell(folder: str, identity: str, shown: Mapping[str, Any]) -> StoredCell:
    """The stored grid cell of an identity, with the fields `shown` in place of those that were stored.

    Raises DamagedCellError where it is missing, damaged, or of an earlier version.
    """
    stored = read_finished(cell_folder(folder, identity), shown)
    if stored is None:
        raise DamagedCellError("its grid cell is missing or of an earlier version")
    return stored


def figures_from(stored: StoredCell) -> dict[str, Any]:
    """The fields of the record that follow from what is stored, computed again, by name.

    All others describe the model, the images and the prompts, and have their digests on the record.
    """
    result, evidence = stored.result, stored.evidence
    units = _units_in(stored)
    tables = None
    if evidence.drawn is not None:
        seed = seed_of(result.split_sha256)
        tables = RandomTables.draw(evidence.drawn, units.whole, seed=seed)
    found = figures(units, tables)
    if (known := result.calibration) is not None:
        found |= calibration(units, Fitted(known.temperature, known.fitted_on, known.fitted_n))
    best = units.scores.max(axis=1, keepdims=True)
    found["ties"] = int(((units.scores == best).sum(axis=1) > 1).sum())
    found["split_sha256"] = split_digest(units.ids, units.labels)
    found["groups_sha256"] = groups_digest(units.ids, units.clusters, units.breakdown)
    own = stored.prompt_f1.get(OWN_POOL)
    if own:
        bounds = dict(zip(("median", "lo", "hi"), band(own), strict=True))
        found |= {f"prompt_f1_{name}": value for name, value in bounds.items()}
    pools = {}
    for name, pool in result.prompt_pools.items():
        draws = stored.prompt_f1.get(name)
        median, low, high = band(draws) if draws else (None, None, None)
        under = _numbers(stored.predictions, f"{UNDER}{name}", result.classes)[units.scored]
        whole = Predictions(units.whole.labels, under, units.classes)
        changed = {"macro_f1": float(macro_f1(whole.counts)), "median": median, "lo": low, "hi": high}
        pools[name] = pool.model_copy(update=changed)
    return found | {"prompt_pools": pools}


def read_predictions(folder: str, result: CellResult) -> pa.Table:
    """The predictions behind a result, one row per unit.

    patch_id, case_id, label, predicted  of the unit; `(apart)` for units that are not scored
    cluster       what intervals group the units by
    rows          numbers of the unit's rows in the split as it was scored, counted through its shards in
                  their order, which another preparation may change
    score_CLASS   float32, a higher score is more similar
    by_COLUMN     the values that figures are broken down by
    prompt        of models: the closest sentence of the predicted class
    predicted_POOL  of models: the predicted class under a further pool of prompts

    Raises as `read_unchecked`.
    """
    return read_unchecked(cell_folder(folder, result.cell), _TABLE)


def predictions_schema(folder: str, result: CellResult) -> pa.Schema:
    """The columns of `read_predictions`, without reading them."""
    system, place = filesystem(cell_folder(folder, result.cell))
    with answers(place):
        return pq.read_schema(f"{place}/{_TABLE}", filesystem=system)


def stored_predictions(folder: str, result: CellResult) -> tuple[Predictions, np.ndarray]:
    """The scored units behind a result, and the number of each unit's cluster, int64 (N,).

    Results on the same units may have them in another order; the numbers of clusters are the same.
    """
    columns = ["label", "predicted", "cluster", *(f"score_{name}" for name in result.classes)]
    table = read_unchecked(cell_folder(folder, result.cell), _TABLE, columns=columns)
    labels, predicted = (_numbers(table, column, result.classes) for column in ("label", "predicted"))
    scored = labels != APART
    scores = _scores_in(table, result.classes)[scored]
    ordered = result.quadratic_kappa is not None
    found = Predictions(labels[scored], predicted[scored], result.classes, ordered, scores)
    clusters = table["cluster"].filter(pa.array(scored)).combine_chunks().dictionary_encode()
    numbers = Clusters(clusters.dictionary.to_pylist(), "case").numbers
    return found, numbers[clusters.indices.to_numpy()]


def _units_in(stored: StoredCell) -> Units:
    """The units of a stored grid cell."""
    table, classes = stored.predictions, stored.result.classes
    kind = typing.cast("ClusterKind", stored.result.cluster_kind)
    return Units(
        classes=tuple(classes),
        ids=table["patch_id"].to_pylist(),
        labels=_numbers(table, "label", classes),
        predicted=_numbers(table, "predicted", classes),
        scores=_scores_in(table, classes),
        clusters=Clusters(table["cluster"].to_pylist(), kind, stored.evidence.labels_of),
        breakdown={
            name.removeprefix(BY): table[name].to_pylist()
            for name in table.column_names
            if name.startswith(BY)
        },
        ordered=stored.evidence.ordered,
    )


def _numbers(table: pa.Table, column: str, classes: Sequence[str]) -> np.ndarray:
    """int64 (U,): the class numbers of a column of names."""
    names = table[column].combine_chunks().dictionary_encode()
    number = {name: c for c, name in enumerate(classes)} | {APART_NAME: APART}
    numbers = np.array([number[name] for name in names.dictionary.to_pylist()], dtype=np.int64)
    return numbers[names.indices.to_numpy()]


def _scores_in(table: pa.Table, classes: Sequence[str]) -> np.ndarray:
    """float32 (U, C)."""
    return np.stack([table[f"score_{name}"].to_numpy() for name in classes], axis=1)
