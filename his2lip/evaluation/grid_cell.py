"""One grid cell, (model, protocol of a dataset): planned, scored, stored with its predictions, read back."""

from __future__ import annotations

import hashlib
import io
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from his2lip.config import digest, resolved
from his2lip.data.cards import Protocol
from his2lip.errors import ConfigError, first_line
from his2lip.evaluation import results
from his2lip.evaluation.config import OWN_POOL
from his2lip.evaluation.metrics import (
    Predictions,
    accuracy,
    balanced_accuracy,
    confusion,
    macro_f1,
    measure,
    per_class,
    positive_class,
)
from his2lip.evaluation.overlap import Overlap
from his2lip.evaluation.prompt_bands import band
from his2lip.evaluation.prompts import PromptSet
from his2lip.evaluation.protocols import APART, Selection
from his2lip.evaluation.random_tables import RandomTables
from his2lip.evaluation.results import CellResult, PoolFigures
from his2lip.evaluation.sight import Sight
from his2lip.evaluation.statistics import Clusters
from his2lip.evaluation.zero_shot import Scores
from his2lip.files import filesystem, write_file

CELL_SCHEMA = 1  # raised whenever the same inputs would give another result
_REMARKS = ("note", "basis", "pool_reason", "changelog")  # fields of a protocol that decide no prediction
MOST_PARTS = 500  # a column of more values is left out of the breakdowns
# Counts that do not decide the predictions: they are computed for finished grid cells too.
_COUNTED = ("overlap_units", "overlap_images", "overlap_cases", "repeated", "cut_prompts")
_APART_NAME = "(apart)"  # label and prediction of units that are not scored
_BESIDE = ("schema", "predictions_sha256", "sha256", "prompt_f1")  # keys of cell.json beside the record's

PromptF1 = Mapping[str, list[float]]  # pool -> macro F1 of each of its prompt draws


@dataclass(frozen=True, kw_only=True)
class CellPlan:
    """A protocol applied to one dataset: all that a scorer needs. The driver reads it once for all models."""

    dataset: str
    protocol_name: str
    protocol: Protocol
    uri: str
    data_digest: str
    origin: str  # the dataset's name in the provenance of models
    generated: bool
    in_domain: bool  # the card says that fine-tuned models were trained on this distribution
    project_card: str | None  # the name of the card, where it is one of the project's
    roles: dict[str, str]
    prompts: PromptSet
    selection: Selection
    pools: Mapping[str, PromptSet] = field(
        default_factory=dict
    )  # further prompts of the same classes, by name


@dataclass(frozen=True)
class PoolScores:
    """What a model scores under one pool of prompts.

    scores   under the whole pool
    of_draws  macro F1 of each prompt draw; empty where the pool has too few sentences for them to differ
    """

    scores: Scores
    of_draws: list[float]


@dataclass(frozen=True)
class Scored:
    """What a scorer gives for a grid cell.

    pools   of a model: what it scores under each pool of prompts, the protocol's own and further ones
    caveat  what to know before its figures are compared; None where there is nothing
    tables  of predictions at random: drawn confusion matrices, whose expectation the figures are; `scores`
            are one of the draws
    """

    scores: Scores
    pools: Mapping[str, PoolScores] = field(default_factory=dict)
    caveat: str | None = None
    tables: RandomTables | None = None


class Scorer(typing.Protocol):
    """What scores a grid cell: a model, or a baseline that needs none."""

    name: str
    weights: str  # tensor digest, or the name of a baseline
    uses_prompts: bool

    def identity(self, plan: CellPlan) -> str:
        """Digest of everything about the scorer that decides the scores under this plan."""

    def trained_on(self, plan: CellPlan) -> bool:
        """Whether the dataset is the scorer's own training distribution."""

    def overlap(self, plan: CellPlan) -> Overlap | None:
        """How many of the plan's units it was trained on; None where that is not known."""

    def cut_prompts(self, plan: CellPlan) -> int | None:
        """How many of the plan's sentences are too long for it and are cut; None where it reads none."""

    def score(self, plan: CellPlan) -> Scored:
        """Scores of the plan's units."""

    def sight(self, plan: CellPlan) -> Sight:
        """What the scorer was shown of the plan's images."""


@dataclass(frozen=True)
class CellRun:
    """What one call did for a grid cell.

    reused   whether the finished result was read back and nothing was scored
    damaged  the stored result that was damaged and has been made again, with the reason; else None
    prompt_f1  what `with_prompt_order` compares models by
    """

    result: CellResult
    reused: bool = False
    damaged: str | None = None
    prompt_f1: PromptF1 = field(default_factory=dict)


class DamagedCellError(Exception):
    """A stored result whose content is not what was written."""


def run_cell(scorer: Scorer, plan: CellPlan, folder: str) -> CellRun:
    """Reads a finished result back from `folder`/cells; scores the grid cell and stores it otherwise.

    The identity of a grid cell is the digest of everything that decides its predictions, so a changed input
    is another grid cell.
    """
    identity = _identity(scorer, plan)
    place = cell_folder(folder, identity)
    found = scorer.overlap(plan)
    shown: dict[str, Any] = {
        "model": scorer.name,
        "dataset": plan.dataset,
        "protocol": plan.protocol_name,
        "in_domain": scorer.trained_on(plan) or (found is not None and found.units > 0),
        "overlap_units": found and found.units,
        "overlap_images": found and found.images,
        "overlap_cases": found and found.cases,
        "repeated": plan.selection.repeated,
        "cut_prompts": scorer.cut_prompts(plan),
        "generated": plan.generated,
        "basis": plan.protocol.basis,
    }
    damaged = None
    try:
        finished = _read(place, shown)
    except DamagedCellError as error:
        finished, damaged = None, f"{place}: {error}"
    if finished is not None and finished[0].groups_sha256 == plan.selection.groups_sha256:
        result, prompt_f1 = finished
        return CellRun(result, reused=True, prompt_f1=prompt_f1)
    scored = scorer.score(plan)
    scores = scored.scores
    prompt_f1 = {name: pool.of_draws for name, pool in scored.pools.items() if pool.of_draws}
    result = results.CellResult(
        **shown,
        **_figures(plan.selection, plan.protocol, scored),
        caveat=scored.caveat,
        **_prompt_figures(plan, scored),
        **scorer.sight(plan).record(),
        protocol_version=plan.protocol.version,
        weights_sha256=scorer.weights,
        prompts_sha256=plan.prompts.digest if scorer.uses_prompts else None,
        split_sha256=plan.selection.split_sha256,
        images_sha256=plan.selection.images_sha256,
        groups_sha256=plan.selection.groups_sha256,
        encoder=scorer.identity(plan),
        ties=scores.ties,
        without_mpp=plan.selection.without_mpp if plan.protocol.view == "tiles" else 0,
        split=plan.protocol.split,
        role=plan.roles[plan.protocol.split],
        cell=identity,
    )
    _write(place, result, _predictions(plan, scores, prompts=scorer.uses_prompts), prompt_f1)
    return CellRun(result, damaged=damaged, prompt_f1=prompt_f1)


def cell_folder(folder: str, identity: str) -> str:
    """Where the grid below `folder` stores the grid cell of this identity."""
    return f"{folder}/cells/{identity}"


def check_stored(folder: str, result: CellResult) -> None:
    """Raises DamagedCellError where the stored grid cell of a result is missing, damaged, or another one."""
    stored = _read(cell_folder(folder, result.cell), {name: getattr(result, name) for name in _COUNTED})
    if stored is None:
        raise DamagedCellError("its grid cell is missing or of an earlier version")
    if any(getattr(stored[0], name) != getattr(result, name) for name in results.metric_fields()):
        raise DamagedCellError("the leaderboard has other figures than its cell.json")


def read_predictions(folder: str, result: CellResult) -> pa.Table:
    """The predictions behind a result: patch_id, case_id, cluster, label, predicted, one score per class.

    `cluster` is what intervals group the units by. Results of models also have the
    column `prompt`: the closest sentence of the predicted class.
    """
    system, place = filesystem(cell_folder(folder, result.cell))
    return pq.read_table(f"{place}/predictions.parquet", filesystem=system, partitioning=None)


def stored_predictions(folder: str, result: CellResult) -> tuple[Predictions, np.ndarray]:
    """The scored units behind a result, and the number of each unit's cluster, int64 (N,)."""
    table = read_predictions(folder, result)
    number = {name: c for c, name in enumerate([*result.classes, _APART_NAME])}
    labels, predicted = (
        np.array([number[name] for name in table[column].to_pylist()]) for column in ("label", "predicted")
    )
    scored = labels < len(result.classes)
    scores = np.stack([table[f"score_{name}"].to_numpy() for name in result.classes], axis=1)[scored]
    ordered = result.quadratic_kappa is not None
    found = Predictions(labels[scored], predicted[scored], result.classes, ordered, scores)
    clusters = Clusters([str(name) for name in table["cluster"].to_pylist()], "case").where(scored)
    return found, clusters.numbers


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
        | (
            {"pools": {n: p.digest for n, p in plan.pools.items()}}
            if scorer.uses_prompts and plan.pools
            else {}
        )
    )


def _figures(selection: Selection, protocol: Protocol, found: Scored) -> dict[str, Any]:
    """The fields of the record that follow from the predictions, or from drawn confusion matrices."""
    scored = selection.scored
    whole = Predictions(
        selection.labels[scored],
        found.scores.predicted[scored],
        selection.classes,
        ordered=protocol.ordinal,
        scores=found.scores.scores[scored],
    )
    clusters = selection.clusters.where(scored)
    binary = len(whole.classes) == 2
    fields = {
        "n": len(whole.labels),
        "clusters": clusters.count,
        "cluster_kind": clusters.kind,
        "positive": whole.classes[positive_class(whole.classes)] if binary else None,
        "classes": list(selection.classes),
        "apart": int((~scored).sum()),
    }
    if found.tables is not None:
        return fields | _expected(whole, found.tables)
    reason = clusters.refusal(whole.labels, whole.classes)
    return fields | {
        "no_interval": reason,
        **measure(whole),
        **(results.intervals(whole, clusters) if reason is None else {}),
        "confusion": confusion(whole),
        "per_class": per_class(whole),
        "breakdown": {
            column: parts
            for column, values in selection.breakdown.items()
            if (parts := _parts(whole, clusters, np.array(values, dtype=object)[scored]))
        },
    }


def _expected(whole: Predictions, tables: RandomTables) -> dict[str, Any]:
    """The figures of predictions at random: their expectation, and limits that hold 95 % of the draws."""
    known = tables.figures(whole)
    return {
        "no_interval": None,
        **{name: value for name, value in known.items() if name in CellResult.model_fields},
        "confusion": tables.confusion(),
        "per_class": tables.per_class(tuple(whole.classes)),
        "breakdown": {},
    }


def _parts(whole: Predictions, clusters: Clusters, values: np.ndarray) -> dict[str, dict[str, int | float]]:
    """Value -> figures of the units that have it, where `values` (N,) has from 2 to `MOST_PARTS` of them."""
    names = sorted({value for value in values.tolist() if value is not None})
    if not 2 <= len(names) <= MOST_PARTS:
        return {}
    parts: dict[str, dict[str, int | float]] = {}
    for name in names:
        mask = values == name
        part = whole.where(mask)
        found: dict[str, int | float] = {
            "n": len(part.labels),
            "clusters": len(np.unique(clusters.numbers[mask])),
            "accuracy": float(accuracy(part.counts)),
        }
        if part.counts.present == len(whole.classes):  # else an absent class would count as 0 in macro F1
            found["macro_f1"] = float(macro_f1(part.counts))
        if part.counts.present > 1:
            found["balanced_accuracy"] = float(balanced_accuracy(part.counts))
        parts[name] = found
    return parts


def _prompt_figures(plan: CellPlan, scored: Scored) -> dict[str, Any]:
    """The fields of the record on how far macro F1 depends on the prompts; none for baselines."""
    own = scored.pools.get(OWN_POOL)
    if own is None:
        return {}
    median, low, high = band(own.of_draws) if own.of_draws else (None, None, None)
    return {
        "prompt_pool": min(len(lines) for _, lines in plan.prompts.sentences),
        "prompt_f1_median": median,
        "prompt_f1_lo": low,
        "prompt_f1_hi": high,
        "prompt_pools": {
            name: _pool_figures(plan, plan.pools[name], pool)
            for name, pool in scored.pools.items()
            if name != OWN_POOL
        },
    }


def _pool_figures(plan: CellPlan, prompts: PromptSet, pool: PoolScores) -> PoolFigures:
    scored = plan.selection.scored
    found = Predictions(plan.selection.labels[scored], pool.scores.predicted[scored], plan.selection.classes)
    median, low, high = band(pool.of_draws) if pool.of_draws else (None, None, None)
    return PoolFigures(
        macro_f1=float(macro_f1(found.counts)),
        median=median,
        lo=low,
        hi=high,
        sentences=min(len(lines) for _, lines in prompts.sentences),
        prompts_sha256=prompts.digest,
    )


def _predictions(plan: CellPlan, scores: Scores, *, prompts: bool) -> pa.Table:
    selection = plan.selection
    assert APART == -1, "the name of the units apart is the last"
    classes = np.array([*selection.classes, _APART_NAME])
    table = {
        "patch_id": selection.unit_ids,
        "case_id": pa.array(selection.case_ids, pa.string()),
        "cluster": list(selection.clusters.ids),
        "label": classes[selection.labels].tolist(),
        "predicted": classes[scores.predicted].tolist(),
    }
    table |= {f"score_{name}": scores.scores[:, c] for c, name in enumerate(selection.classes)}
    if prompts:
        chosen = zip(scores.predicted.tolist(), scores.prompt.tolist(), strict=True)
        table["prompt"] = [plan.prompts.sentences[c][1][p] for c, p in chosen]
    return pa.table(table)


def _write(place: str, result: CellResult, predictions: pa.Table, prompt_f1: PromptF1) -> None:
    """Writes the predictions first: a grid cell is finished when its cell.json exists."""
    system, path = filesystem(place)
    out = io.BytesIO()
    pq.write_table(predictions, out, compression="zstd")
    data = out.getvalue()
    write_file(system, f"{path}/predictions.parquet", data)
    tree = {"schema": CELL_SCHEMA, **resolved(result), "predictions_sha256": hashlib.sha256(data).hexdigest()}
    tree["prompt_f1"] = prompt_f1
    tree["sha256"] = digest(tree)
    write_file(system, f"{path}/cell.json", (json.dumps(tree, indent=1, ensure_ascii=False) + "\n").encode())


def _read(place: str, shown: Mapping[str, Any]) -> tuple[CellResult, PromptF1] | None:
    """A finished result with its macro F1 by prompt draw; None where there is none, or with fewer fields.

    The fields of `shown` do not follow from the predictions, and replace those that were stored. Raises
    DamagedCellError for content that is not what was written.
    """
    system, path = filesystem(place)
    try:
        with system.open_input_stream(f"{path}/cell.json") as source:
            text = source.read()
    except FileNotFoundError:
        return None
    try:
        tree = json.loads(text)
        if tree["schema"] != CELL_SCHEMA or "sha256" not in tree:
            return None
        record = {key: value for key, value in tree.items() if key not in _BESIDE}
        complete = set(results.fields()) <= {*record, *shown}
        result = results.parse({**record, **shown}, where=f"{place}/cell.json") if complete else None
        with system.open_input_stream(f"{path}/predictions.parquet") as source:
            data = source.read()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise DamagedCellError(first_line(error)) from None
    _check_digests(tree, data)
    return None if result is None else (result, tree["prompt_f1"])


def _check_digests(tree: dict[str, Any], data: bytes) -> None:
    if digest({key: value for key, value in tree.items() if key != "sha256"}) != tree["sha256"]:
        raise DamagedCellError("cell.json is not what was written")
    if hashlib.sha256(data).hexdigest() != tree["predictions_sha256"]:
        raise DamagedCellError("predictions.parquet is not what was written")
