"""One grid cell, (model, protocol of a dataset): its plan, what scores it, and how it is scored."""

from __future__ import annotations

import abc
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from his2lip.config import digest, resolved
from his2lip.data.cards import PROTOCOL_REMARKS, Card, Protocol
from his2lip.data.shards import ShardSet
from his2lip.evaluation import results
from his2lip.evaluation.cell_figures import Units, calibration, figures
from his2lip.evaluation.cell_files import DamagedCellError, cell_folder
from his2lip.evaluation.config import OWN_POOL, PREFIX, ModelEntry
from his2lip.evaluation.metrics import Predictions, macro_f1
from his2lip.evaluation.overlap import Overlap
from his2lip.evaluation.probes import Labelled
from his2lip.evaluation.prompt_bands import band
from his2lip.evaluation.prompts import PromptSet
from his2lip.evaluation.protocols import APART, Selection
from his2lip.evaluation.random_tables import RandomTables
from his2lip.evaluation.reliability import Fitted
from his2lip.evaluation.results import CellResult, PoolFigures
from his2lip.evaluation.sight import Sight
from his2lip.evaluation.stored_cell import (
    APART_NAME,
    BY,
    CELL_SCHEMA,
    UNDER,
    Evidence,
    PromptF1,
    StoredCell,
    read_finished,
    write_finished,
)
from his2lip.evaluation.task_results import TaskCell
from his2lip.evaluation.zero_shot import Scores
from his2lip.resources import code_version


@dataclass(frozen=True, kw_only=True)
class Plan(abc.ABC):
    """What one grid cell scores of a dataset, for any scorer. The driver reads it once for all of them."""

    dataset: str
    protocol_name: str  # with the dataset the column of the grid; the name of a task, where it is one
    protocol: Protocol
    uri: str
    data_digest: str
    origin: str  # the dataset's name in the provenance of models
    generated: bool
    in_domain: bool  # the card says that fine-tuned models were trained on this distribution
    project_card: str | None  # the name of the card, where it is one of the project's
    roles: dict[str, str]
    selection: Selection

    @abc.abstractmethod
    def takes(self, entry: ModelEntry) -> bool:
        """Whether a row of the leaderboard, a model, a control or a baseline, can be scored."""

    @abc.abstractmethod
    def identity(self, scorer: Scorer) -> str:
        """The name of the scorer's grid cell: the digest of everything that decides what is stored of it."""

    @abc.abstractmethod
    def run(self, scorer: Scorer, folder: str) -> CellRun:
        """Reads the finished result back from `folder`/cells; otherwise scores and stores it."""

    def shown(self, scorer: Scorer) -> dict[str, Any]:
        """Fields of the record that decide no figure; a result that is read back gets the current ones."""
        found = scorer.overlap(self)
        return {
            "model": scorer.name,
            "dataset": self.dataset,
            "generated": self.generated,
            "in_domain": scorer.trained_on(self) or (found is not None and found.units > 0),
            "overlap_units": found and found.units,
            "overlap_images": found and found.images,
            "overlap_cases": found and found.cases,
            "role": self.roles[self.protocol.split],
        }


@dataclass(frozen=True)
class FitPlan:
    """The units that a temperature is fitted to: a split, its units, and which of them, bool (U,)."""

    split: str
    selection: Selection
    used: np.ndarray

    @property
    def digest(self) -> str:
        known = (self.split, self.selection.split_sha256, self.selection.images_sha256)
        used = [self.selection.unit_ids[u] for u in np.flatnonzero(self.used).tolist()]
        return digest([*known, sorted(used)])


@dataclass(frozen=True, kw_only=True)
class CellPlan(Plan):
    """A protocol applied to one dataset: zero-shot classification."""

    prompts: PromptSet
    pools: Mapping[str, PromptSet] = field(
        default_factory=dict
    )  # further prompts of the same classes, by name
    fit: FitPlan | str | None = None  # what temperatures are fitted to, or why none; None: not asked for
    baselines: frozenset[str] = frozenset()  # those that can score it
    labelled: Labelled | None = None  # what probes may be fitted on; None: the benchmark has no probes

    def takes(self, entry: ModelEntry) -> bool:
        if entry.probe is not None:
            return self.labelled is not None and self.labelled.refuses(entry.probe) is None
        return not entry.path.startswith(PREFIX) or entry.path.removeprefix(PREFIX) in self.baselines

    def identity(self, scorer: Scorer) -> str:
        return _identity(scorer, self)

    def run(self, scorer: Scorer, folder: str) -> CellRun:
        return run_cell(scorer, self, folder)


def described(dataset: str, name: str, protocol: Protocol, card: Card, shards: ShardSet) -> dict[str, Any]:
    """The fields of a plan that follow from its dataset and protocol: all of `Plan` but the selection."""
    return {
        "dataset": dataset,
        "protocol_name": name,
        "protocol": protocol,
        "uri": shards.uri,
        "data_digest": shards.digest,
        "origin": shards.info.origin,
        "generated": shards.info.generated,
        "in_domain": card.in_domain,
        "project_card": card.name if shards.project_card() is not None else None,
        "roles": dict(shards.info.roles),
    }


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
    device  where the model computed, cpu or cuda; None without a model
    fitted  the temperature of a model, or why it has none; None where there is none to fit
    """

    scores: Scores
    pools: Mapping[str, PoolScores] = field(default_factory=dict)
    caveat: str | None = None
    tables: RandomTables | None = None
    device: str | None = None
    fitted: Fitted | str | None = None


class Scorer(typing.Protocol):
    """What scores a grid cell: a model, or a baseline that needs none."""

    name: str
    weights: str  # tensor digest, or the name of a baseline
    uses_prompts: bool

    def identity(self, plan: Plan) -> str:
        """Digest of everything about the scorer that decides the scores under this plan."""

    def trained_on(self, plan: Plan) -> bool:
        """Whether the dataset is the scorer's own training distribution."""

    def overlap(self, plan: Plan) -> Overlap | None:
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

    result: CellResult | TaskCell
    reused: bool = False
    damaged: str | None = None
    prompt_f1: PromptF1 = field(default_factory=dict)


def run_cell(scorer: Scorer, plan: CellPlan, folder: str) -> CellRun:
    """Reads a finished result back from `folder`/cells; scores the grid cell and stores it otherwise.

    The identity of a grid cell is the digest of everything that decides its predictions and figures, so a
    changed input is another grid cell.
    """
    identity = _identity(scorer, plan)
    place = cell_folder(folder, identity)
    shown = plan.shown(scorer) | {
        "protocol": plan.protocol_name,
        "repeated": plan.selection.repeated,
        "cut_prompts": scorer.cut_prompts(plan),
        "basis": plan.protocol.basis,
    }
    damaged = None
    try:
        finished = read_finished(place, shown)
    except DamagedCellError as error:
        finished, damaged = None, f"{place}: {error}"
    if finished is not None:
        return CellRun(finished.result, reused=True, prompt_f1=finished.prompt_f1)
    scored = scorer.score(plan)
    scores = scored.scores
    prompt_f1 = {name: pool.of_draws for name, pool in scored.pools.items() if pool.of_draws}
    evidence = Evidence(
        ordered=plan.protocol.ordinal,
        labels_of=plan.selection.clusters.labels_of,
        drawn=None if scored.tables is None else scored.tables.drawn,
        device=scored.device,
        code_version=code_version(),
        fit=_fit_of(plan),
    )
    result = results.CellResult(
        **shown,
        **figures(_units_of(plan, scores), scored.tables),
        **calibration(_units_of(plan, scores), scored.fitted),
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
        cell=identity,
    )
    predictions = _predictions(plan, scored, prompts=scorer.uses_prompts)
    write_finished(place, StoredCell(result, prompt_f1, evidence, predictions))
    return CellRun(result, damaged=damaged, prompt_f1=prompt_f1)


def _identity(scorer: Scorer, plan: CellPlan) -> str:
    return digest(
        {
            "schema": CELL_SCHEMA,
            "scorer": scorer.identity(plan),
            "weights": scorer.weights,
            "protocol": {k: v for k, v in resolved(plan.protocol).items() if k not in PROTOCOL_REMARKS},
            "prompts": plan.prompts.digest if scorer.uses_prompts else None,
            "split": plan.selection.split_sha256,
            "images": plan.selection.images_sha256,
            "groups": plan.selection.groups_sha256,
            "fit": _fit_of(plan),
        }
        | (
            {"pools": {n: p.digest for n, p in plan.pools.items()}}
            if scorer.uses_prompts and plan.pools
            else {}
        )
    )


def _fit_of(plan: CellPlan) -> str | None:
    """What a temperature is fitted to, by its digest, or why to nothing; None where it is not asked for."""
    return plan.fit.digest if isinstance(plan.fit, FitPlan) else plan.fit


def _units_of(plan: CellPlan, scores: Scores) -> Units:
    selection = plan.selection
    return Units(
        classes=selection.classes,
        ids=selection.unit_ids,
        labels=selection.labels,
        predicted=scores.predicted,
        scores=scores.scores,
        clusters=selection.clusters,
        breakdown=selection.breakdown,
        ordered=plan.protocol.ordinal,
    )


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


def _predictions(plan: CellPlan, scored: Scored, *, prompts: bool) -> pa.Table:
    """The table of `read_predictions`."""
    selection, scores = plan.selection, scored.scores
    assert APART == -1, "the name of the units apart is the last"
    classes = np.array([*selection.classes, APART_NAME])
    ends = np.cumsum(np.bincount(selection.unit, minlength=len(selection.unit_ids)))
    in_units = selection.rows[np.argsort(selection.unit, kind="stable")]
    table = {
        "patch_id": selection.unit_ids,
        "case_id": pa.array(selection.case_ids, pa.string()),
        "cluster": list(selection.clusters.ids),
        "label": classes[selection.labels].tolist(),
        "predicted": classes[scores.predicted].tolist(),
        "rows": pa.ListArray.from_arrays(pa.array([0, *ends.tolist()], pa.int32()), pa.array(in_units)),
    }
    table |= {f"score_{name}": scores.scores[:, c] for c, name in enumerate(selection.classes)}
    table |= {f"{BY}{name}": pa.array(values, pa.string()) for name, values in selection.breakdown.items()}
    if prompts:
        chosen = zip(scores.predicted.tolist(), scores.prompt.tolist(), strict=True)
        table["prompt"] = [plan.prompts.sentences[c][1][p] for c, p in chosen]
    for name, pool in scored.pools.items():
        if name != OWN_POOL:
            table[f"{UNDER}{name}"] = classes[pool.scores.predicted].tolist()
    return pa.table(table)
