"""The benchmark grid: every checkpoint on every protocol of every dataset, as Ray tasks."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from his2lip.data.cards import Card, load_card
from his2lip.data.shards import ShardSet, open_shards
from his2lip.errors import ConfigError, His2lipError, RunError, did_you_mean
from his2lip.evaluation.baselines import BaselineScorer, applies
from his2lip.evaluation.cells import CellFailure, CellPlan, CellResult, Scorer, run_cell
from his2lip.evaluation.config import PREFIX, BenchmarkConfig, ModelEntry
from his2lip.evaluation.embeddings import Counts, EmbeddingCache
from his2lip.evaluation.leaderboard import with_published, write_leaderboard
from his2lip.evaluation.prompts import PromptSet
from his2lip.evaluation.protocols import select
from his2lip.evaluation.scorers import ModelScorer

Outcome = CellResult | CellFailure

_MORE_MEMORY = "if memory ran out, raise memory_gb, so that fewer run side by side, or lower batch_size"


@dataclass(frozen=True)
class GridResult:
    """All cells of one call, by model, dataset and protocol; `counts` says what had to be computed."""

    cells: list[CellResult]
    failed: list[CellFailure]
    leaderboard: str
    counts: Counts = field(default_factory=Counts)

    @property
    def ran(self) -> int:
        """Cells scored now; the others were finished before."""
        return sum(not c.reused for c in self.cells)


def run_grid(config: BenchmarkConfig, *, on_cell: Callable[[Outcome], None] | None = None) -> GridResult:
    """Runs the cells that are not finished; Ray must have been started.

    One task a model loads it once and goes through all its cells; what fails is reported with its reason and
    stops nothing else. `on_cell` is called in this process as each outcome comes in.
    """
    plans, failed = plan_cells(config)
    tell = on_cell or (lambda _: None)
    for failure in failed:
        tell(failure)
    entries = [
        *config.models,
        *(ModelEntry(name=f"{PREFIX}{b}", path=f"{PREFIX}{b}") for b in config.baselines),
    ]
    outcomes: list[Outcome] = [*failed]
    counts = Counts()
    for outcome, used in _on_ray(entries, plans, config):
        outcomes.append(outcome)
        counts.images += used.images
        counts.crops += used.crops
        counts.sentences += used.sentences
        tell(outcome)
    order = {e.name: i for i, e in enumerate(entries)}
    place = {(p.dataset, p.protocol_name): i for i, p in enumerate(plans)}
    cells = [o for o in outcomes if isinstance(o, CellResult)]
    cells.sort(key=lambda c: (order[c.model], place[c.dataset, c.protocol]))
    cells = with_published(cells)
    failures = [o for o in outcomes if isinstance(o, CellFailure)]
    path = write_leaderboard(config.folder, cells, failures)
    return GridResult(cells, failures, path, counts)


def plan_cells(config: BenchmarkConfig) -> tuple[list[CellPlan], list[CellFailure]]:
    """Every (dataset, protocol) that can be scored, and for every model those that cannot, with the reason.

    Raises ConfigError for a protocol that none of the datasets has.
    """
    plans: list[CellPlan] = []
    failed: list[CellFailure] = []
    offered: set[str] = set()
    broken = False
    for dataset, uri in config.uris().items():
        try:
            shards = open_shards(uri)
            card = _card(shards)
        except Exception as error:
            broken = True
            failed += [_failure(m.name, dataset, p, error) for m in config.models for p in config.protocols]
            continue
        offered |= set(card.protocols)
        for name in (p for p in config.protocols if p in card.protocols):
            try:
                plans.append(_plan(dataset, name, card, shards, _prompts(config, dataset, name)))
            except Exception as error:
                failed += [_failure(m.name, dataset, name, error) for m in config.models]
    unknown = [p for p in config.protocols if p not in offered]
    if unknown and not broken:
        mend = did_you_mean(unknown[0], offered)
        raise ConfigError(f"none of the datasets has a protocol '{unknown[0]}'", mend=mend)
    return plans, failed


def score_model(
    entry: ModelEntry, plans: Sequence[CellPlan], config: BenchmarkConfig
) -> Iterator[tuple[Outcome, Counts]]:
    """One model's outcomes, plan by plan, each with what had to be computed for it. Runs in a Ray task."""
    cache = EmbeddingCache(config.cache)
    if entry.path.startswith(PREFIX):
        plans = [p for p in plans if applies(entry.path, p) is None]
    try:
        scorer = _scorer(entry, cache, config)
    except Exception as error:
        for plan in plans:
            yield _failure(entry.name, plan.dataset, plan.protocol_name, error), Counts()
        return
    for plan in plans:
        cache.counts = Counts()
        try:
            outcome: Outcome = run_cell(scorer, plan, config.folder)
        except Exception as error:
            outcome = _failure(entry.name, plan.dataset, plan.protocol_name, error)
        yield outcome, cache.counts


def _scorer(entry: ModelEntry, cache: EmbeddingCache, config: BenchmarkConfig) -> Scorer:
    if entry.path.startswith(PREFIX):
        return BaselineScorer(entry.name, cache)
    import torch

    from his2lip.models import load_model, read_meta
    from his2lip.models.checkpoint import is_checkpoint

    torch.set_num_threads(config.threads)
    device = "cuda" if torch.cuda.is_available() and config.gpus else "cpu"
    model = load_model(entry.path, device=device, precision=config.precision, seed=config.seed)
    folder = entry.path.removeprefix("local-dir:")
    meta = read_meta(folder) if is_checkpoint(folder) else {}
    digests = {meta["data_digest"]} if "data_digest" in meta else set()
    return ModelScorer(
        entry.name,
        model,
        cache,
        trained_on=frozenset(digests if entry.trained_on is None else entry.trained_on),
        fine_tuned=bool(digests) and entry.trained_on is None,
        batch_size=config.batch_size,
        threads=config.threads,
    )


def _on_ray(
    entries: Sequence[ModelEntry], plans: Sequence[CellPlan], config: BenchmarkConfig
) -> Iterator[tuple[Outcome, Counts]]:
    """One streaming task an entry; outcomes in the order in which they come."""
    import ray

    shared = ray.put((list(plans), config))
    task = ray.remote(_score_shared)
    waiting: dict[Any, tuple[ModelEntry, set[tuple[str, str]]]] = {}  # by stream of outcomes
    for entry in entries:
        stream = task.options(**_resources(entry, config), max_retries=1).remote(entry, shared)
        waiting[stream] = (entry, set())
    while waiting:
        ready: list[Any] = ray.wait(list(waiting), num_returns=1)[0]
        entry, seen = waiting[ready[0]]
        try:
            outcome, counts = ray.get(next(ready[0]))
        except StopIteration:
            del waiting[ready[0]]
        except ray.exceptions.RayError as error:  # the task's process died, twice
            del waiting[ready[0]]
            lost = [p for p in plans if (p.dataset, p.protocol_name) not in seen]
            dead = RunError(f"the model's process died twice ({type(error).__name__})", mend=_MORE_MEMORY)
            yield from ((_failure(entry.name, p.dataset, p.protocol_name, dead), Counts()) for p in lost)
        else:
            seen.add((outcome.dataset, outcome.protocol))
            yield outcome, counts


def _score_shared(
    entry: ModelEntry, shared: tuple[list[CellPlan], BenchmarkConfig]
) -> Iterator[tuple[Outcome, Counts]]:
    yield from score_model(entry, *shared)


def _resources(entry: ModelEntry, config: BenchmarkConfig) -> dict[str, float]:
    """What a task asks of Ray, never more than a node that is there can give: it would wait for ever.

    Raises RunError for GPUs that neither are there nor can come (a local Ray does not grow).
    """
    import ray

    if entry.path.startswith(PREFIX):
        return {"num_cpus": min(1.0, config.cpus)}
    have = ray.cluster_resources()
    gpus = config.gpus
    if gpus == "auto":
        gpus = 1.0 if have.get("GPU", 0) >= 1 else 0.0
    elif gpus > have.get("GPU", 0) and _is_local():
        raise RunError(f"gpus is {gpus}, and this machine has {have.get('GPU', 0):g}", mend="set gpus=auto")
    largest = max((n["Resources"].get("memory", 0) for n in ray.nodes() if n["Alive"]), default=0)
    return {
        "num_cpus": min(config.cpus, have.get("CPU", config.cpus)),
        "num_gpus": gpus,
        "memory": min(_memory(entry, config), largest),
    }


def _memory(entry: ModelEntry, config: BenchmarkConfig) -> float:
    """Bytes that a model's task may need: weights twice while they load, images, and what Python takes."""
    if config.memory_gb is not None:
        return config.memory_gb * 2**30
    folder = Path(entry.path.removeprefix("local-dir:"))
    weights = sum(f.stat().st_size for f in folder.glob("*.safetensors")) if folder.is_dir() else 0
    return float(2 * weights + 2**30)


def _is_local() -> bool:
    import os

    return not os.environ.get("RAY_ADDRESS")


def _plan(dataset: str, protocol_name: str, card: Card, shards: ShardSet, prompts: str | None) -> CellPlan:
    protocol = card.protocols[protocol_name]
    return CellPlan(
        dataset=dataset,
        protocol_name=protocol_name,
        protocol=protocol,
        uri=shards.uri,
        data_digest=shards.digest,
        generated=shards.info.generated,
        in_domain=card.in_domain,
        roles=dict(shards.info.roles),
        prompts=PromptSet.load(prompts or protocol.prompts).narrow(protocol.classes),
        selection=select(shards, protocol),
    )


def _prompts(config: BenchmarkConfig, dataset: str, protocol: str) -> str | None:
    return config.prompts.get(f"{dataset}/{protocol}") or config.prompts.get(dataset)


def _card(shards: ShardSet) -> Card:
    """The card of today under the dataset's name, with its protocols; a user's own comes with the shards."""
    try:
        return load_card(shards.info.name)
    except ConfigError:
        return Card.model_validate(shards.info.card)


def _failure(model: str, dataset: str, protocol: str, error: Exception) -> CellFailure:
    known = isinstance(error, His2lipError)
    first, *_ = str(error).strip().splitlines() or [""]
    reason = str(error) if known else f"{type(error).__name__}: {first}"
    trace = "" if known else "".join(traceback.format_exception(error))
    return CellFailure(model=model, dataset=dataset, protocol=protocol, reason=reason, trace=trace)
