"""The plans of the grid: what is scored of each dataset, by protocol and by task, and what cannot be."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from his2lip.data.cards import Card
from his2lip.data.shards import ShardSet, open_shards, splits_with_role
from his2lip.errors import ConfigError, DatasetError, His2lipError, did_you_mean, first_line, redact
from his2lip.evaluation.baselines import scoring
from his2lip.evaluation.config import BenchmarkConfig
from his2lip.evaluation.grid_cell import CellPlan, FitPlan, Plan, described
from his2lip.evaluation.probes import labelled
from his2lip.evaluation.prompts import PromptSet, dataset_and_protocol, of_protocol
from his2lip.evaluation.protocols import of_role, select, shared_units
from his2lip.evaluation.results import CellFailure
from his2lip.evaluation.retrieval_task import plan_retrieval
from his2lip.evaluation.robustness import plan_robustness

_log = logging.getLogger(__name__)

LEAST_FITTED = 20  # units that a temperature is fitted to

# (dataset, protocol or task, card, shards, benchmark) -> the plan of its grid cells
Planner = Callable[[str, str, Card, ShardSet, BenchmarkConfig], Plan]

# Name of a section of the benchmark's config -> what plans the task on a dataset.
PLANNERS: dict[str, Planner] = {"retrieval": plan_retrieval, "robustness": plan_robustness}


def check_inputs(config: BenchmarkConfig, *, datasets: Sequence[str] | None = None) -> None:
    """Raises ModelError for a model that does not exist, and DatasetError where no dataset is prepared.

    Nothing is loaded. Single datasets that are not prepared are left to `plan_cells`.

    datasets  those of the benchmark's that are scored; null: all
    """
    from his2lip.models import check_model_name

    for name in (name for entry in config.models for name in entry.loads):
        check_model_name(name)
    uris = {name: uri for name, uri in config.uris().items() if datasets is None or name in datasets}
    missing = []
    for uri in uris.values():
        try:
            open_shards(uri)
        except DatasetError as error:
            missing.append(error)
    if uris and len(missing) == len(uris):
        first, several = missing[0], len(missing) > 1
        what = f"none of the {len(missing)} datasets can be read; of the first: " if several else ""
        raise DatasetError(f"{what}{first.what}", where=first.where, key="datasets", fix=first.fix)


def plan_cells(config: BenchmarkConfig) -> tuple[list[Plan], list[CellFailure]]:
    """Every (dataset, protocol or task) that can be scored, and for every model those that cannot: why.

    Raises ConfigError for a protocol, or a role of splits, that none of the datasets has, and for prompts of
    a protocol that their dataset does not have.
    """
    plans: list[Plan] = []
    failed: list[CellFailure] = []
    offered: dict[str, Collection[str]] = {}  # dataset -> the protocols of its card
    broken = False
    for dataset, uri in config.uris().items():
        try:
            shards = open_shards(uri)
            card = shards.card()
        except Exception as error:  # here and below: recorded as a failure, which stops no other grid cell
            broken = True
            names = [*config.protocols, *_tasks_of(config, dataset)]
            failed += [failure(m.name, dataset, name, error) for m in config.models for name in names]
            continue
        offered[dataset] = card.protocols
        if config.role is not None and not splits_with_role(shards.info.roles, config.role):
            _log.warning("%s has no split with the role '%s' and is left out", dataset, config.role)
            continue
        planners: dict[str, Planner] = dict.fromkeys(filter(card.protocols.get, config.protocols), _plan)
        for name, planner in {**planners, **_tasks_of(config, dataset)}.items():
            try:
                plans.append(planner(dataset, name, card, shards, config))
            except Exception as error:
                failed += [failure(m.name, dataset, name, error) for m in config.models]
    _check_prompt_keys(config, offered)
    every = {name for protocols in offered.values() for name in protocols}
    unknown = [p for p in config.protocols if p not in every]
    if unknown and not broken:
        fix = did_you_mean(unknown[0], every)
        what = f"none of the datasets has a protocol '{unknown[0]}'"
        raise ConfigError(what, key="protocols", fix=fix)
    if config.role is not None and not plans and not failed:
        what = f"none of the datasets has a split with the role '{config.role}'"
        raise ConfigError(what, key="role", fix="prepare one with such a split (carve of its card)")
    return plans, failed


def _check_prompt_keys(config: BenchmarkConfig, offered: Mapping[str, Collection[str]]) -> None:
    """Raises ConfigError for prompts of a protocol that is not among those that their dataset offers."""
    for section, key in config.prompt_keys():
        dataset, protocol = dataset_and_protocol(key, list(config.uris()))
        if protocol is not None and dataset in offered and protocol not in offered[dataset]:
            what = f"{section} names the protocol '{protocol}', which the dataset '{dataset}' does not have"
            fix = did_you_mean(protocol, offered[dataset])
            raise ConfigError(what, key=f"{section}.{key}", fix=fix)


def _tasks_of(config: BenchmarkConfig, dataset: str) -> dict[str, Planner]:
    """The tasks that the benchmark has on a dataset, with what plans them."""
    sections = config.tasks().items()
    return {name: PLANNERS[name] for name, s in sections if s.datasets is None or dataset in s.datasets}


def _plan(
    dataset: str, protocol_name: str, card: Card, shards: ShardSet, config: BenchmarkConfig
) -> CellPlan:
    protocol = of_role(card.protocols[protocol_name], shards, config.role)
    own = of_protocol(config.prompts, dataset, protocol_name) or protocol.prompts
    further = {
        name: found
        for name, pool in config.pools.items()
        if (found := of_protocol(pool, dataset, protocol_name)) is not None
    }
    selection = select(shards, protocol, card=card)
    train = next(iter(splits_with_role(shards.info.roles, "train", besides=protocol.split)), None)
    plan = CellPlan(
        **described(dataset, protocol_name, protocol, card, shards),
        prompts=PromptSet.load(own).narrow(protocol.classes),
        selection=selection,
        pools={name: PromptSet.load(found).narrow(protocol.classes) for name, found in further.items()},
        labelled=None if config.probes is None else labelled(shards, protocol, selection, train),
    )
    fit = fit_plan(plan, card, shards) if config.calibration else None
    return replace(plan, baselines=scoring(plan), fit=fit)


def fit_plan(plan: CellPlan, card: Card, shards: ShardSet) -> FitPlan | str:
    """The units of a `select` split that share no image and no case (else slide, else file) with the plan's.

    A sentence where these are too few.
    """
    splits = splits_with_role(plan.roles, "select", besides=plan.protocol.split)
    if not splits:
        return "the dataset has no other split with the role select"
    split = splits[0]
    try:
        fit = select(shards, plan.protocol, split=split, card=card)
    except DatasetError as error:
        return f"{split}: {error.what}"
    used = fit.scored & ~shared_units(fit, plan.selection)
    if used.sum() < LEAST_FITTED or len(np.unique(fit.labels[used])) < 2:
        what = f"{split} has {int(used.sum())} labelled units of other cases, and {LEAST_FITTED} are needed"
        return f"{what}, of two classes"
    return FitPlan(split, fit, used)


def failure(model: str, dataset: str, protocol: str, error: Exception) -> CellFailure:
    known = isinstance(error, His2lipError)
    reason = str(error) if known else f"{type(error).__name__}: {first_line(error)}"
    trace = "" if known else redact("".join(traceback.format_exception(error)))
    return CellFailure(model=model, dataset=dataset, protocol=protocol, reason=reason, trace=trace)
