"""One cell of the grid, (checkpoint, protocol): planned, scored, written with its evidence, read back."""

from __future__ import annotations

import dataclasses
import io
import json
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from his2lip.config import digest, resolved
from his2lip.data.cards import Protocol
from his2lip.evaluation.metrics import summarise
from his2lip.evaluation.prompts import PromptSet
from his2lip.evaluation.protocols import Selection
from his2lip.evaluation.zero_shot import Scores
from his2lip.files import filesystem, write_file

CELL_SCHEMA = 1  # raised whenever the same inputs would give another cell
_REMARKS = ("note", "basis")  # of a protocol, which decide no prediction

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class CellPlan:
    """A protocol applied to one dataset: all that a scorer needs, read once by the driver for all models."""

    dataset: str
    protocol_name: str
    protocol: Protocol
    uri: str
    data_digest: str
    generated: bool
    in_domain: bool  # the card's: the training distribution of fine-tuned models
    roles: dict[str, str]
    prompts: PromptSet
    selection: Selection


class Scorer(typing.Protocol):
    """A model, or a baseline that needs none, as a cell sees it."""

    name: str
    weights: str  # tensor digest, or the name of a baseline
    uses_prompts: bool

    def identity(self, plan: CellPlan) -> str:
        """What of the scorer decides the scores under this plan (an encoder's key)."""

    def trained_on(self, plan: CellPlan) -> bool:
        """Whether the dataset is the scorer's own training distribution."""

    def score(self, plan: CellPlan) -> Scores:
        """Scores of the plan's units."""


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """The figures of one cell, fractions in [0, 1], and what they came from."""

    model: str
    dataset: str
    protocol: str
    n: int
    accuracy: float
    macro_f1: float
    balanced_accuracy: float
    weights_sha256: str
    prompts_sha256: str | None
    split_sha256: str
    images_sha256: str
    encoder: str
    classes: list[str]
    confusion: list[list[int]]
    per_class: dict[str, dict[str, float]]
    quadratic_kappa: float | None  # where the protocol's classes are ordered
    breakdown: dict[str, dict[str, float]]
    ties: int
    apart: int  # units that are predicted and reported, but not scored
    without_mpp: int
    in_domain: bool
    generated: bool
    split: str
    role: str
    basis: str
    cell: str
    folder: str
    reused: bool = False
    accuracy_lo: float | None = None
    accuracy_hi: float | None = None
    macro_f1_lo: float | None = None
    macro_f1_hi: float | None = None
    published_accuracy: float | None = None
    published_f1: float | None = None
    blend: str | None = None  # the sweep of alpha that the model is a point of
    alpha: float | None = None


@dataclass(frozen=True, kw_only=True)
class CellFailure:
    """A cell that could not be scored, and why; `trace` helps whoever mends it."""

    model: str
    dataset: str
    protocol: str
    reason: str
    trace: str = ""


def run_cell(scorer: Scorer, plan: CellPlan, folder: str) -> CellResult:
    """Reads the cell back where it is finished under `folder`/cells, else scores and writes it.

    A cell's identity is all that decides its predictions, so a changed input is another cell.
    """
    identity = _identity(scorer, plan)
    place = f"{folder}/cells/{identity}"
    shown: dict[str, Any] = {
        "model": scorer.name,
        "dataset": plan.dataset,
        "protocol": plan.protocol_name,
        "in_domain": scorer.trained_on(plan),
        "generated": plan.generated,
        "basis": plan.protocol.basis,
        "folder": place,
    }
    finished = _read(place)
    if finished is not None:
        return dataclasses.replace(finished, **shown, reused=True)
    scores = scorer.score(plan)
    result = CellResult(
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
    return result


def read_predictions(result: CellResult) -> pa.Table:
    """The predictions behind one cell: patch_id, case_id, label, predicted, one score column a class, …"""
    system, place = filesystem(result.folder)
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
    scored, classes = selection.scored, selection.classes
    labels, predicted = selection.labels[scored], scores.predicted[scored]
    whole = summarise(labels, predicted, classes)
    parts: dict[str, dict[str, float]] = {}
    if selection.breakdown is not None:
        values = np.array([str(v) for v in selection.breakdown])[scored]
        for value in sorted(set(values.tolist())):
            part = summarise(labels[values == value], predicted[values == value], classes)
            parts[value] = {"n": part.n, "accuracy": part.accuracy, "macro_f1": part.macro_f1}
    return {
        "n": whole.n,
        "accuracy": whole.accuracy,
        "macro_f1": whole.macro_f1,
        "balanced_accuracy": whole.balanced_accuracy,
        "classes": list(classes),
        "confusion": whole.confusion,
        "per_class": {name: dataclasses.asdict(f) for name, f in whole.per_class.items()},
        "quadratic_kappa": whole.quadratic_kappa if protocol.ordinal else None,
        "breakdown": parts,
        "apart": int((~scored).sum()),
    }


def _predictions(plan: CellPlan, scores: Scores, *, prompts: bool) -> pa.Table:
    selection = plan.selection
    classes = np.array([*selection.classes, "(apart)"])  # APART is -1: the last
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
    """The predictions first: a cell is finished when its cell.json stands."""
    system, path = filesystem(place)
    out = io.BytesIO()
    pq.write_table(predictions, out, compression="zstd")
    write_file(system, f"{path}/predictions.parquet", out.getvalue())
    tree = {"schema": CELL_SCHEMA, **dataclasses.asdict(result)}
    write_file(system, f"{path}/cell.json", (json.dumps(tree, indent=1, ensure_ascii=False) + "\n").encode())


def _read(place: str) -> CellResult | None:
    """A finished cell, or None where there is none or it is broken (it is then scored again)."""
    system, path = filesystem(place)
    try:
        with system.open_input_stream(f"{path}/cell.json") as source:
            tree = json.loads(source.read())
        if tree.pop("schema") != CELL_SCHEMA:
            return None
        result = CellResult(**tree)
        rows = pq.read_metadata(f"{path}/predictions.parquet", filesystem=system).num_rows
        return result if rows == result.n + result.apart else None
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
