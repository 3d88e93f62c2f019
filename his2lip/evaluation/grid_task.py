"""The Ray task of a model in the grid: its grid cells, scored one after the other, with their outcomes."""

from __future__ import annotations

import functools
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from his2lip.data.shards import open_shards
from his2lip.errors import DatasetError, StorageError
from his2lip.evaluation.config import PREFIX, BenchmarkConfig, ModelEntry
from his2lip.evaluation.embeddings import Counts, EmbeddingCache, EncodeRows, ProgressCallback
from his2lip.evaluation.grid_cell import Plan
from his2lip.evaluation.grid_plans import failure
from his2lip.evaluation.grid_scorers import check_weights, load_entry, plan_of, plans_of, scorer_of
from his2lip.evaluation.helpers import Helpers
from his2lip.evaluation.once import Once
from his2lip.evaluation.results import CellFailure, CellResult
from his2lip.evaluation.scorers import ModelScorer
from his2lip.evaluation.stored_cell import PromptF1
from his2lip.evaluation.task_results import TaskCell
from his2lip.logs import log_to
from his2lip.resources import code_version
from his2lip.runtime import check_code

_log = logging.getLogger(__name__)

CellKey = tuple[str, str, str]  # model, dataset, protocol


@dataclass(frozen=True)
class Work:
    """What all tasks share.

    weights  name of a model -> what identifies its weights for the driver
    code     the version of the code that their processes have to be
    """

    plans: list[Plan]
    config: BenchmarkConfig
    weights: Mapping[str, str] = field(default_factory=dict)
    code: str = field(default_factory=code_version)


@dataclass(frozen=True)
class Outcome:
    """What a task reports of one grid cell.

    counts   what had to be computed for it
    reused   whether a finished result was read back
    damaged  the stored result that was damaged and has been made again, with the reason; else None
    prompt_f1  macro F1 of each prompt draw of each pool
    seconds  that its task took for it
    """

    cell: CellResult | TaskCell | CellFailure
    counts: Counts = field(default_factory=Counts)
    reused: bool = False
    damaged: str | None = None
    prompt_f1: PromptF1 = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def key(self) -> CellKey:
        return self.cell.model, self.cell.dataset, self.cell.protocol


@dataclass(frozen=True)
class ImageProgress:
    """How many of the images of one model and dataset that are not cached are embedded so far."""

    model: str
    dataset: str
    done: int
    total: int


def stream_outcomes(
    entries: list[ModelEntry], resources: dict[str, float], work: Work
) -> Iterator[Outcome | ImageProgress]:
    """The stream of a task: outcomes, and between them how many images are embedded.

    The work is done in a thread, since it cannot yield from inside of the embedding of a dataset.
    """
    log_to(work.config.folder)
    events: queue.SimpleQueue[Outcome | ImageProgress | BaseException | None] = queue.SimpleQueue()

    def score() -> None:
        first = entries[0]
        load = None if first.path.startswith(PREFIX) else functools.partial(load_entry, first, work.config)
        try:
            with Helpers(load, resources, work.config.helpers) as helpers:
                for outcome in score_models(entries, work, encode=helpers.encode, on_images=events.put):
                    _log_outcome(outcome)
                    events.put(outcome)
        except BaseException as error:
            events.put(error)
        else:
            events.put(None)

    threading.Thread(target=score, daemon=True).start()
    while (event := events.get()) is not None:
        if isinstance(event, BaseException):
            raise event
        yield event


def score_models(
    entries: Sequence[ModelEntry],
    work: Work,
    *,
    encode: EncodeRows | None = None,
    on_images: Callable[[ImageProgress], None] | None = None,
) -> Iterator[Outcome]:
    """The outcomes of each model in turn. Runs in a Ray task. `encode` as in `EmbeddingCache`."""
    config = work.config
    cache = EmbeddingCache(config.cache, encode=encode)
    loaded: dict[str, Once[ModelScorer]] = {}  # the last model, which its controls and probes use too
    for entry in entries:
        mine = plans_of(entry, work.plans)
        try:
            check_code(work.code)
            check_weights(entry, work.weights)
            scorer = scorer_of(entry, loaded, cache, config, work.weights)
        except StorageError:
            raise
        except Exception as error:
            yield from (Outcome(failed_cell(entry, plan, error)) for plan in mine)
            continue
        for plan in mine:
            cache.counts = Counts()
            if on_images is not None:
                cache.progress = _progress(entry.name, plan.dataset, on_images)
            begun = time.monotonic()
            try:
                _check_shards(plan)
                run = plan_of(plan, scorer).run(scorer, config.folder)
            except StorageError:  # no other grid cell could be stored either
                raise
            except Exception as error:
                yield Outcome(failed_cell(entry, plan, error), cache.counts)
            else:
                yield Outcome(
                    run.result,
                    cache.counts,
                    reused=run.reused,
                    damaged=run.damaged,
                    prompt_f1=run.prompt_f1,
                    seconds=time.monotonic() - begun,
                )


def _progress(model: str, dataset: str, tell: Callable[[ImageProgress], None]) -> ProgressCallback:
    """A callback for (images done, images in total) that tells them at most once a second."""
    told = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal told
        if (now := time.monotonic()) - told >= 1:
            told = now
            tell(ImageProgress(model, dataset, done, total))

    return progress


def _check_shards(plan: Plan) -> None:
    """Raises DatasetError where this process, on its machine, reads other shards than the driver planned."""
    if open_shards(plan.uri).digest != plan.data_digest:
        what = "this machine has other shards here than the one that started the benchmark"
        raise DatasetError(what, where=plan.uri, key=plan.dataset, fix="use a folder or URI that both see")


def _log_outcome(outcome: Outcome) -> None:
    cell = outcome.cell
    place = f"{cell.model} on {cell.dataset} ({cell.protocol})"
    if isinstance(cell, CellFailure):
        _log.info("failed: %s: %s\n%s", place, cell.reason, cell.trace)
    else:
        _log.info("scored: %s, %d images embedded", place, outcome.counts.images)


def failed_cell(entry: ModelEntry, plan: Plan, error: Exception) -> CellFailure:
    """The grid cell of a row and a plan that could not be scored, with the reason."""
    return failure(entry.name, plan.dataset, plan.protocol_name, error)
