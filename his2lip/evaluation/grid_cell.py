"""One grid cell, (model, protocol of a dataset): planned, scored, stored with its predictions, read back."""

from __future__ import annotations

import hashlib
import io
import json
import typing
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from his2lip.config import digest, resolved
from his2lip.data.cards import Protocol
from his2lip.errors import ConfigError, first_line
from his2lip.evaluation import results
from his2lip.evaluation.metrics import Predictions, confusion, measure, per_class
from his2lip.evaluation.prompts import PromptSet
from his2lip.evaluation.protocols import APART, Selection
from his2lip.evaluation.results import CellResult
from his2lip.evaluation.zero_shot import Scores
from his2lip.files import filesystem, write_file

CELL_SCHEMA = 1  # raised whenever the same inputs would give another result
_REMARKS = ("note", "basis")  # fields of a protocol that decide no prediction
_APART_NAME = "(apart)"  # label and prediction of units that are not scored
# Keys of cell.json beside the record's. The last two were written by earlier versions, and are not read.
_BESIDE = ("schema", "predictions_sha256", "sha256", "folder", "reused")


@dataclass(frozen=True, kw_only=True)
class CellPlan:
    """A protocol applied to one dataset: all that a scorer needs. The driver reads it once for all models."""

    dataset: str
    protocol_name: str
    protocol: Protocol
    uri: str
    data_digest: str
    generated: bool
    in_domain: bool  # the card says that fine-tuned models were trained on this distribution
    roles: dict[str, str]
    prompts: PromptSet
    selection: Selection


class Scorer(typing.Protocol):
    """What scores a grid cell: a model, or a baseline that needs none."""

    name: str
    weights: str  # tensor digest, or the name of a baseline
    uses_prompts: bool

    def identity(self, plan: CellPlan) -> str:
        """Digest of everything about the scorer that decides the scores under this plan."""

    def trained_on(self, plan: CellPlan) -> bool:
        """Whether the dataset is the scorer's own training distribution."""

    def score(self, plan: CellPlan) -> Scores:
        """Scores of the plan's units."""


@dataclass(frozen=True)
class CellRun:
    """What one call did for a grid cell.

    reused   whether the finished result was read back and nothing was scored
    damaged  the stored result that was damaged and has been made again, with the reason; else None
    """

    result: CellResult
    reused: bool = False
    damaged: str | None = None


class DamagedCellError(Exception):
    """A stored result whose content is not what was written."""


def run_cell(scorer: Scorer, plan: CellPlan, folder: str) -> CellRun:
    """Reads a finished result back from `folder`/cells; scores the grid cell and stores it otherwise.

    The identity of a grid cell is the digest of everything that decides its predictions, so a changed input
    is another grid cell.
    """
    identity = _identity(scorer, plan)
    place = cell_folder(folder, identity)
    shown: dict[str, Any] = {
        "model": scorer.name,
        "dataset": plan.dataset,
        "protocol": plan.protocol_name,
        "in_domain": scorer.trained_on(plan),
        "generated": plan.generated,
        "basis": plan.protocol.basis,
    }
    damaged = None
    try:
        finished = _read(place)
    except DamagedCellError as error:
        finished, damaged = None, f"{place}: {error}"
    if finished is not None:
        return CellRun(finished.model_copy(update=shown), reused=True)
    scores = scorer.score(plan)
    result = results.CellResult(
        **shown,
        **_figures(plan.selection, plan.protocol, scores),
        weights_sha256=scorer.weights,
        prompts_sha256=plan.prompts.digest if scorer.uses_prompts else None,
        split_sha256=plan.selection.split_sha256,
        images_sha256=plan.selection.images_sha256,
        encoder=scorer.identity(plan),
        ties=scores.ties,
        without_mpp=plan.selection.without_mpp if plan.protocol.view == "tiles" else 0,
        split=plan.protocol.split,
        role=plan.roles[plan.protocol.split],
        cell=identity,
    )
    _write(place, result, _predictions(plan, scores, prompts=scorer.uses_prompts))
    return CellRun(result, damaged=damaged)


def cell_folder(folder: str, identity: str) -> str:
    """Where the grid below `folder` stores the grid cell of this identity."""
    return f"{folder}/cells/{identity}"


def read_predictions(folder: str, result: CellResult) -> pa.Table:
    """The predictions behind a result: patch_id, case_id, label, predicted, one score column per class.

    Results of models also have the column `prompt`: the closest sentence of the predicted class.
    """
    system, place = filesystem(cell_folder(folder, result.cell))
    return pq.read_table(f"{place}/predictions.parquet", filesystem=system, partitioning=None)


def _identity(scorer: Scorer, plan: CellPlan) -> str:
    return digest(
        {
            "schema": CELL_SCHEMA,
            "scorer": scorer.identity(plan),
            "weights": scorer.weights,
            "protocol": {k: v for k, v in resolved(plan.protocol).items() if k not in _REMARKS},
            "prompts": plan.prompts.digest if scorer.uses_prompts else None,
            "split": plan.selection.split_sha256,
            "images": plan.selection.images_sha256,
        }
    )


def _figures(selection: Selection, protocol: Protocol, scores: Scores) -> dict[str, Any]:
    """The fields of the record that follow from the predictions."""
    scored = selection.scored
    whole = Predictions(
        selection.labels[scored], scores.predicted[scored], selection.classes, ordered=protocol.ordinal
    )
    parts: dict[str, dict[str, int | float]] = {}
    if selection.breakdown is not None:
        values = np.array([str(v) for v in selection.breakdown])[scored]
        for value in sorted(set(values.tolist())):
            measured = measure(whole.where(values == value))
            known = {name: figure for name, figure in measured.items() if figure is not None}
            parts[value] = {"n": int((values == value).sum())} | known
    return {
        "n": len(whole.labels),
        **measure(whole),
        "classes": list(selection.classes),
        "confusion": confusion(whole),
        "per_class": per_class(whole),
        "breakdown": parts,
        "apart": int((~scored).sum()),
    }


def _predictions(plan: CellPlan, scores: Scores, *, prompts: bool) -> pa.Table:
    selection = plan.selection
    assert APART == -1, "the name of the units apart is the last"
    classes = np.array([*selection.classes, _APART_NAME])
    table = {
        "patch_id": selection.unit_ids,
        "case_id": pa.array(selection.case_ids, pa.string()),
        "label": classes[selection.labels].tolist(),
        "predicted": classes[scores.predicted].tolist(),
    }
    table |= {f"score_{name}": scores.scores[:, c] for c, name in enumerate(selection.classes)}
    if prompts:
        chosen = zip(scores.predicted.tolist(), scores.prompt.tolist(), strict=True)
        table["prompt"] = [plan.prompts.sentences[c][1][p] for c, p in chosen]
    return pa.table(table)


def _write(place: str, result: CellResult, predictions: pa.Table) -> None:
    """Writes the predictions first: a grid cell is finished when its cell.json exists."""
    system, path = filesystem(place)
    out = io.BytesIO()
    pq.write_table(predictions, out, compression="zstd")
    data = out.getvalue()
    write_file(system, f"{path}/predictions.parquet", data)
    tree = {"schema": CELL_SCHEMA, **resolved(result), "predictions_sha256": hashlib.sha256(data).hexdigest()}
    tree["sha256"] = digest(tree)
    write_file(system, f"{path}/cell.json", (json.dumps(tree, indent=1, ensure_ascii=False) + "\n").encode())


def _read(place: str) -> CellResult | None:
    """A finished result; None where there is none, or where it lacks a field that was added since.

    Raises DamagedCellError for content that is not what was written.
    """
    system, path = filesystem(place)
    try:
        with system.open_input_stream(f"{path}/cell.json") as source:
            text = source.read()
    except FileNotFoundError:
        return None
    try:
        tree = json.loads(text)
        if tree["schema"] != CELL_SCHEMA:
            return None
        record = {key: value for key, value in tree.items() if key not in _BESIDE}
        complete = set(results.fields()) <= set(record)
        result = results.parse(record, where=f"{place}/cell.json") if complete else None
        with system.open_input_stream(f"{path}/predictions.parquet") as source:
            data = source.read()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise DamagedCellError(first_line(error)) from None
    if "sha256" in tree:
        _check_digests(tree, data)
    elif result is not None:
        _check_figures(result, data)
    return result


def _check_digests(tree: dict[str, Any], data: bytes) -> None:
    if digest({key: value for key, value in tree.items() if key != "sha256"}) != tree["sha256"]:
        raise DamagedCellError("cell.json is not what was written")
    if hashlib.sha256(data).hexdigest() != tree["predictions_sha256"]:
        raise DamagedCellError("predictions.parquet is not what was written")


def _check_figures(result: CellResult, data: bytes) -> None:
    """Earlier versions stored no digests: the figures must follow from the predictions."""
    number = {name: c for c, name in enumerate([*result.classes, _APART_NAME])}
    try:
        table = pq.read_table(io.BytesIO(data), columns=["label", "predicted"])
        labels, predicted = (np.array([number[v] for v in column.to_pylist()]) for column in table.columns)
        scored = labels < len(result.classes)
        ordered = result.quadratic_kappa is not None
        found = Predictions(labels[scored], predicted[scored], result.classes, ordered=ordered)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise DamagedCellError(f"predictions.parquet: {first_line(error)}") from None
    known = {name: getattr(result, name) for name in results.metric_fields()}
    same = [
        (len(found.labels), int((~scored).sum())) == (result.n, result.apart),
        confusion(found) == result.confusion,
        all(_close(value, known[name]) for name, value in measure(found).items()),
    ]
    if not all(same):
        raise DamagedCellError("the figures do not follow from the predictions")


def _close(found: float | None, known: float | None) -> bool:
    return found == known or (None not in (found, known) and abs(found - known) < 1e-9)  # type: ignore[operator]
