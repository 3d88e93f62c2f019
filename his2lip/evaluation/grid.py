"""The benchmark grid: every checkpoint on every protocol of every dataset, as Ray tasks."""

from __future__ import annotations

import functools
import itertools
import logging
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from his2lip.config import digest
from his2lip.data.shards import open_shards
from his2lip.errors import (
    ConfigError,
    DatasetError,
    His2lipError,
    ModelError,
    RunError,
    StorageError,
    did_you_mean,
)
from his2lip.evaluation.baselines import BaselineScorer
from his2lip.evaluation.cell_files import DamagedCellError
from his2lip.evaluation.config import PREFIX, BenchmarkConfig, ModelEntry
from his2lip.evaluation.controls import ControlScorer
from his2lip.evaluation.embeddings import Counts, EmbeddingCache, EncodeRows, ProgressCallback
from his2lip.evaluation.grid_cell import CellPlan, Plan, PromptF1, Scorer, check_stored
from his2lip.evaluation.grid_estimate import (
    BASELINES,
    GridEstimate,
    Job,
    Rate,
    Rates,
    estimate_grid,
    units,
)
from his2lip.evaluation.grid_plans import failure, plan_cells
from his2lip.evaluation.grid_resources import numbers, task_resources, with_numbers
from his2lip.evaluation.helpers import Helpers
from his2lip.evaluation.known_model import KnownModel, ModelFacts, facts_key, read_facts, write_facts
from his2lip.evaluation.leaderboard import (
    Frame,
    with_blends,
    with_differences,
    with_prompt_order,
    with_published,
    with_seeds,
    write_leaderboard,
)
from his2lip.evaluation.probe_scorer import ProbeScorer
from his2lip.evaluation.results import DIGESTS, CellFailure, CellResult, read_results
from his2lip.evaluation.scorers import ModelScorer
from his2lip.evaluation.task_results import TaskCell, read_tasks, write_tasks
from his2lip.evaluation.views import TrainingField
from his2lip.files import absolute, filesystem
from his2lip.logs import log_to
from his2lip.resources import code_version
from his2lip.runtime import check_code, check_nodes

if TYPE_CHECKING:
    from his2lip.models import DualEncoder, TrainingRecord

_log = logging.getLogger(__name__)

_BOARD = "leaderboard.csv"
CellKey = tuple[str, str, str]  # model, dataset, protocol

_MORE_MEMORY = "if memory ran out, raise memory_gb, so that fewer run side by side, or lower batch_size"


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


@dataclass(frozen=True)
class GridResult:
    """All grid cells of one call, by model, dataset and protocol.

    tasks        the grid cells of the tasks beside the protocols
    leaderboard  path of leaderboard.csv
    counts       what had to be computed
    reused       identities of the grid cells that were finished before
    damaged      stored results and cached features that were damaged and have been made again, with reasons
    """

    cells: list[CellResult]
    failed: list[CellFailure]
    leaderboard: str
    tasks: list[TaskCell] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    reused: frozenset[str] = frozenset()
    damaged: tuple[str, ...] = ()

    @property
    def ran(self) -> int:
        """Number of grid cells scored in this call."""
        identities = [c.cell for c in self.cells] + [c.cell for c in self.tasks]
        return sum(identity not in self.reused for identity in identities)


def run_grid(
    config: BenchmarkConfig,
    *,
    datasets: Sequence[str] | None = None,
    on_cell: Callable[[CellResult | TaskCell | CellFailure, int, int], None] | None = None,
    on_images: Callable[[ImageProgress], None] | None = None,
    on_estimate: Callable[[GridEstimate], None] | None = None,
) -> GridResult:
    """Scores the grid cells that are not finished. Ray must have been started.

    One task per model loads it once and scores all its grid cells. A failure is reported with its reason and
    stops no other grid cell. `on_cell` is called in this process for each outcome as it arrives, with the
    number of outcomes so far and in total; `on_images` at most once a second for each model that embeds;
    `on_estimate` once, before the first of them. An estimate that cannot be made or shown stops nothing.

    With `datasets`, only these are scored, and the leaderboard keeps its rows of the benchmark's other
    datasets. Raises ConfigError where `datasets` has an unknown name, where the rows cannot be kept, or where
    the benchmark's name is in use for splits of another role; RunError where nothing can be scored;
    StorageError where the disk is full.
    """
    config = whole = _with_absolute_paths(config)
    _check_role(config)
    kept, kept_tasks = ([], []) if datasets is None else _other_rows(config, datasets)
    if datasets is not None:
        config = config.model_copy(update={"datasets": {name: config.uris()[name] for name in datasets}})
    names = [name for entry in config.models for name in entry.loads]
    folders = [name.removeprefix("local-dir:") for name in names]
    check_nodes(read=[*config.uris().values(), *folders], write=[config.folder])
    log_to(config.folder)
    plans, failed = plan_cells(config)
    if failed and not plans:
        what = f"no grid cell can be scored; on {failed[0].dataset}: {failed[0].reason}"
        raise RunError(what.removesuffix("."), where=config.folder, key=failed[0].dataset)
    _log.info(
        "benchmark %s: %d models, %d protocols and tasks of datasets",
        config.name,
        len(config.models),
        len(plans),
    )
    config = with_numbers(config)
    baselines = _baselines(config)
    groups = [config.rows_of(model) for model in config.models]
    entries = [*(row for rows in groups for row in rows), *baselines]
    _log_refusals(entries, plans)
    total = len(failed) + sum(len(_plans_of(entry, plans)) for entry in entries)
    outcomes: list[Outcome] = []

    def receive(outcome: Outcome) -> None:
        outcomes.append(outcome)
        if on_cell is not None:
            on_cell(outcome.cell, len(outcomes), total)

    for refused in failed:
        receive(Outcome(refused))
    counts = Counts()
    # Baselines share one task: the colours that one of them reads, the next finds in the cache.
    work = Work(plans, config, _identities(names))
    together, each = units(config, len(groups))
    rates = Rates(config.cache)
    kinds = {row.name: _kind(rows[0], config) for rows in [*groups, baselines] for row in rows}
    if on_estimate is not None:
        try:
            on_estimate(estimate_grid(_jobs([*groups, baselines], work), config, rates, together=together))
        except Exception:  # what is wrong with a grid cell is told by its task
            _log.warning("the benchmark has no estimate", exc_info=True)
    try:
        for outcome in _on_ray([*groups, baselines], work):
            if isinstance(outcome, ImageProgress):
                if on_images is not None:
                    on_images(outcome)
                continue
            counts.add(outcome.counts)
            cell = outcome.cell
            _log.info("received %s on %s (%s)", cell.model, cell.dataset, cell.protocol)
            kind = kinds[cell.model]
            rates.measured(kind, cell.dataset, _rate(outcome, 1.0 if kind == BASELINES else each))
            receive(outcome)
    finally:
        rates.write()
    order = {e.name: i for i, e in enumerate(entries)}
    place = {(p.dataset, p.protocol_name): i for i, p in enumerate(plans)}
    outcomes.sort(key=lambda o: (order[o.cell.model], place.get(o.key[1:], -1)))
    cells = [o.cell for o in outcomes if isinstance(o.cell, CellResult)]
    tasks = [o.cell for o in outcomes if isinstance(o.cell, TaskCell)]
    of_draws = {o.key: o.prompt_f1 for o in outcomes}
    cards = {plan.dataset: plan.project_card for plan in plans if plan.project_card is not None}
    cells = with_seeds(config.folder, with_blends(cells, config.models), entries)
    cells = with_prompt_order(with_published(cells, cards), of_draws)
    board = with_differences(config.folder, [*cells, *kept], reference=config.reference, margin=config.margin)
    cells = board[: len(cells)]
    failures = [o.cell for o in outcomes if isinstance(o.cell, CellFailure)]
    write_tasks(config.folder, [*tasks, *kept_tasks])
    return GridResult(
        cells=cells,
        failed=failures,
        leaderboard=write_leaderboard(config.folder, board, failures, whole, resolved=numbers(config)),
        tasks=tasks,
        counts=counts,
        reused=frozenset(o.cell.cell for o in outcomes if not isinstance(o.cell, CellFailure) and o.reused),
        damaged=(*(o.damaged for o in outcomes if o.damaged is not None), *counts.damaged),
    )


def _jobs(groups: Sequence[Sequence[ModelEntry]], work: Work) -> list[Job]:
    """What each task will do, without loading a model."""
    config, cache = work.config, EmbeddingCache(work.config.cache)
    jobs: list[Job] = []
    for group in filter(None, groups):
        first = group[0]
        loaded: dict[str, ModelScorer] = {}
        key = None if first.path.startswith(PREFIX) else _facts_key(first, config, work.weights)
        known = key is not None and read_facts(cache.root, key) is not None
        cells: list[tuple[ModelEntry, Plan, Scorer | None]] = []
        for entry in group:
            scorer: Scorer | None = None
            if known or entry.path.startswith(PREFIX):
                with suppress(Exception):  # its task tells
                    scorer = _scorer(entry, loaded, cache, config, work.weights)
            for plan in _plans_of(entry, work.plans):
                if isinstance(scorer, ControlScorer) and isinstance(plan, CellPlan):
                    plan = scorer.plan(plan)
                cells.append((entry, plan, scorer))
        jobs.append(Job(first.name, _kind(first, config), next(iter(loaded.values()), None), cells))
    return jobs


def _kind(entry: ModelEntry, config: BenchmarkConfig) -> str:
    """What the rate of an entry's model is known by: its backbone, the precision and the device."""
    if entry.path.startswith(PREFIX):
        return BASELINES
    backbone = entry.path
    with suppress(Exception):  # its task tells
        backbone = _meta(entry).get("config", {}).get("model", {}).get("backbone", backbone)
    return digest([backbone, config.precision, "gpu" if config.gpus else "cpu"])


def _rate(outcome: Outcome, units_of_task: float) -> Rate:
    """What an outcome tells of the speed of its kind of model."""
    counts = outcome.counts
    rate = Rate(counts.images, counts.seconds * units_of_task, counts.bytes)
    if not outcome.reused and not isinstance(outcome.cell, CellFailure):
        rate.cells, rate.cell_seconds = 1, max(outcome.seconds - counts.seconds, 0.0) * units_of_task
    return rate


def _log_refusals(entries: Sequence[ModelEntry], plans: Sequence[Plan]) -> None:
    """Logs the probes that cannot be fitted."""
    of_labels = [plan for plan in plans if isinstance(plan, CellPlan) and plan.labelled is not None]
    for entry, plan in itertools.product((entry for entry in entries if entry.probe), of_labels):
        if plan.labelled and entry.probe and (reason := plan.labelled.refuses(entry.probe)):
            _log.info("not scored: %s on %s (%s): %s", entry.name, plan.dataset, plan.protocol_name, reason)


def _identities(names: Iterable[str]) -> dict[str, str]:
    """Name of a model -> what identifies its weights here; one that cannot be read is left to its task."""
    from his2lip.models import weights_identity

    found = {}
    for name in names:
        with suppress(His2lipError, OSError):
            found[name] = weights_identity(name)
    return found


def _with_absolute_paths(config: BenchmarkConfig) -> BenchmarkConfig:
    """The same benchmark for the cluster's processes, which may run in another folder than this one."""
    places = {"cache": absolute(config.cache), "storage": absolute(config.storage)}
    uris = {name: absolute(uri) for name, uri in config.uris().items()}
    return config.model_copy(
        update=places | {"datasets": uris, "models": [_with_absolute_path(entry) for entry in config.models]}
    )


def _with_absolute_path(entry: ModelEntry) -> ModelEntry:
    from his2lip.models import absolute_name

    blend = entry.blend
    if blend is not None:
        blend = blend.model_copy(update={"base": absolute_name(blend.base)})
    return entry.model_copy(update={"path": absolute_name(entry.path), "blend": blend})


def _other_rows(config: BenchmarkConfig, datasets: Sequence[str]) -> tuple[list[CellResult], list[TaskCell]]:
    """What the present leaderboard has of the benchmark's other datasets: its rows, and its tasks."""
    known = config.uris()
    for name in datasets:
        if name not in known:
            what, fix = f"the benchmark has no dataset '{name}'", did_you_mean(name, known)
            raise ConfigError(what, key="--datasets", fix=fix)
    rows = _board_rows(config.folder)
    kept = [row for row in rows if row.dataset in known and row.dataset not in datasets]
    for row in kept:
        try:
            check_stored(config.folder, row)
        except DamagedCellError as error:
            what = f"the row of {row.model} on {row.dataset} cannot be kept: {error}"
            fix = "run the whole benchmark again"
            raise ConfigError(what, where=config.folder, key=row.cell, fix=fix) from None
    tasks = read_tasks(config.folder)
    return kept, [cell for cell in tasks if cell.dataset in known and cell.dataset not in datasets]


def _board_rows(folder: str) -> list[CellResult]:
    """The rows of the present leaderboard; none without one."""
    if "://" not in folder:
        board = Path(folder, _BOARD)
        return read_results(board) if board.is_file() else []
    system, root = filesystem(folder)
    with tempfile.TemporaryDirectory(prefix="his2lip-") as made:
        for name in (_BOARD, DIGESTS):
            with suppress(FileNotFoundError), system.open_input_stream(f"{root}/{name}") as source:
                Path(made, name).write_bytes(source.read())
        return read_results(Path(made, _BOARD)) if Path(made, _BOARD).is_file() else []


def _check_role(config: BenchmarkConfig) -> None:
    """Raises ConfigError where a board of this name was scored on other splits, which it would replace."""
    try:
        before = (Frame.read(config.folder).config or {}).get("role")
    except ConfigError:  # there is no board, or one that cannot be read
        return
    if before != config.role:
        what = f"the name '{config.name}' is in use by a benchmark with role={before or 'null'}"
        raise ConfigError(what, where=config.folder, key="role", fix="give this one another name (name=…)")


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
    loaded: dict[str, ModelScorer] = {}  # the last model, which its controls and probes use too
    for entry in entries:
        mine = _plans_of(entry, work.plans)
        try:
            check_code(work.code)
            _check_weights(entry, work.weights)
            scorer = _scorer(entry, loaded, cache, config, work.weights)
        except StorageError:
            raise
        except Exception as error:
            yield from (Outcome(_failed(entry, plan, error)) for plan in mine)
            continue
        for plan in mine:
            cache.counts = Counts()
            if on_images is not None:
                cache.progress = _progress(entry.name, plan.dataset, on_images)
            begun = time.monotonic()
            try:
                _check_shards(plan)
                if isinstance(scorer, ControlScorer) and isinstance(plan, CellPlan):
                    run = scorer.plan(plan).run(scorer, config.folder)
                else:
                    run = plan.run(scorer, config.folder)
            except StorageError:  # no other grid cell could be stored either
                raise
            except Exception as error:
                yield Outcome(_failed(entry, plan, error), cache.counts)
            else:
                yield Outcome(
                    run.result,
                    cache.counts,
                    reused=run.reused,
                    damaged=run.damaged,
                    prompt_f1=run.prompt_f1,
                    seconds=time.monotonic() - begun,
                )


def scorers(
    config: BenchmarkConfig, plans: Sequence[Plan], cache: EmbeddingCache
) -> Iterator[tuple[ModelEntry, Plan, Scorer | Exception]]:
    """Each row of the grid with its plan and what scores it in this process, or why nothing can."""
    loaded: dict[str, ModelScorer] = {}
    groups = [config.rows_of(model) for model in config.models]
    for entry in (entry for group in [*groups, _baselines(config)] for entry in group):
        for plan in _plans_of(entry, plans):
            try:
                scorer = _scorer(entry, loaded, cache, config, {})
            except Exception as error:
                yield entry, plan, error
            else:
                if isinstance(scorer, ControlScorer) and isinstance(plan, CellPlan):
                    plan = scorer.plan(plan)
                yield entry, plan, scorer


def _baselines(config: BenchmarkConfig) -> list[ModelEntry]:
    return [ModelEntry(name=f"{PREFIX}{b}", path=f"{PREFIX}{b}") for b in config.baselines]


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


def _check_weights(entry: ModelEntry, expected: Mapping[str, str]) -> None:
    """Raises ModelError where this process, on its machine, finds another model than the driver did."""
    from his2lip.models import weights_identity

    for name in entry.loads:
        if name in expected and weights_identity(name) != expected[name]:
            what = "this machine has another model here than the one that started the benchmark"
            raise ModelError(what, where=name, key=entry.name, fix="use a folder that both see")


def _plans_of(entry: ModelEntry, plans: Sequence[Plan]) -> list[Plan]:
    """The plans that a row of the leaderboard is scored by."""
    return [plan for plan in plans if plan.takes(entry)]


def _scorer(
    entry: ModelEntry,
    loaded: dict[str, ModelScorer],
    cache: EmbeddingCache,
    config: BenchmarkConfig,
    weights: Mapping[str, str],
) -> Scorer:
    """The scorer of a row. `loaded` holds the model that was used last, by its entry without name.

    weights  name of a model -> what identifies its weights; a model of which the cache knows the rest is
             loaded only where something is to be encoded
    """
    if entry.path.startswith(PREFIX):
        return BaselineScorer(entry.name, cache)
    own = {"name": "", "seeds_of": None, "control": None, "probe": None}
    same = entry.model_copy(update=own).model_dump_json()
    if same not in loaded or (entry.control is None and entry.probe is None):
        loaded.clear()
        loaded[same] = _model_scorer(entry, cache, config, weights)
    if entry.probe is not None:
        return ProbeScorer(entry.name, loaded[same], entry.probe)
    return loaded[same] if entry.control is None else ControlScorer(entry.name, loaded[same], entry.control)


def _model_scorer(
    entry: ModelEntry, cache: EmbeddingCache, config: BenchmarkConfig, weights: Mapping[str, str]
) -> ModelScorer:
    load = functools.partial(_load, entry, config)
    key = _facts_key(entry, config, weights)
    facts = None if key is None else read_facts(cache.root, key)
    model = load() if facts is None else KnownModel(facts, _device(config), load)
    scorer = ModelScorer(
        entry.name,
        model,
        cache,
        record=_training_record(entry),
        declared=entry.trained_on,
        field=TrainingField.of(_meta(entry)),
        captions=_meta(entry).get("captions_digest"),
        batch_size=config.task_batch,
        threads=config.task_threads,
    )
    if key is not None and not isinstance(model, KnownModel):
        with suppress(OSError):  # a cache that can only be read
            write_facts(cache.root, key, ModelFacts.of(model, tensors=scorer.weights))
    return scorer


def _facts_key(entry: ModelEntry, config: BenchmarkConfig, weights: Mapping[str, str]) -> str | None:
    """The name of what is known of an entry's model; None where its name does not identify its weights."""
    from his2lip.models import BACKBONES, is_registered

    def identified(name: str) -> bool:
        if name not in weights or is_registered(name):
            return False
        by_contents = weights[name] != name
        return by_contents or name == "tiny" or (":" not in name and name not in BACKBONES)  # by the seed

    names = entry.loads
    if not all(map(identified, names)):
        return None
    alpha = None if entry.blend is None else entry.blend.alpha
    return facts_key([[weights[name] for name in names], alpha, config.seed, config.precision])


def _device(config: BenchmarkConfig) -> str:
    import torch

    return "cuda" if torch.cuda.is_available() and config.gpus else "cpu"


def _meta(entry: ModelEntry) -> dict[str, Any]:
    """The provenance of the entry's model; at alpha 0 the weights are those of the base model."""
    from his2lip.models import meta_of

    return meta_of(entry.blend.base if entry.blend and entry.blend.alpha == 0 else entry.path)


def _training_record(entry: ModelEntry) -> TrainingRecord | None:
    """What the entry's model was trained on; the weights of a blend at alpha 0 are those of its base only."""
    from his2lip.models import TrainingRecord, training_record

    blended = entry.blend
    names = [entry.path] if blended is None or blended.alpha > 0 else []
    names += [blended.base] if blended is not None and blended.alpha < 1 else []
    return TrainingRecord.union(map(training_record, names))


def _load(entry: ModelEntry, config: BenchmarkConfig) -> DualEncoder:
    """The entry's model, or the blend of two."""
    import torch

    from his2lip.models import blend, load_model

    torch.set_num_threads(config.task_threads)
    device = _device(config)
    model = load_model(entry.path, device=device, precision=config.precision, seed=config.seed)
    if entry.blend is None:
        return model
    base = load_model(entry.blend.base, device=device, precision=config.precision, seed=config.seed)
    return blend(base, model, alpha=entry.blend.alpha)


def _on_ray(groups: Sequence[Sequence[ModelEntry]], work: Work) -> Iterator[Outcome | ImageProgress]:
    """One streaming task per group of models; what they yield in the order in which it arrives."""
    import ray

    plans, config = work.plans, work.config
    shared = ray.put(work)
    task = ray.remote(_score_shared)
    waiting: dict[Any, dict[CellKey, tuple[ModelEntry, Plan]]] = {}  # stream -> outcomes to come
    for group in filter(None, groups):
        resources = task_resources(group, config)
        stream = task.options(**resources, max_retries=1).remote(list(group), resources, shared)
        waiting[stream] = {
            (e.name, p.dataset, p.protocol_name): (e, p) for e in group for p in _plans_of(e, plans)
        }
    while waiting:
        ready: list[Any] = ray.wait(list(waiting), num_returns=1)[0]
        stream = ready[0]
        try:
            event: Outcome | ImageProgress = ray.get(next(stream))
        except StopIteration:
            del waiting[stream]
        except ray.exceptions.RayError as error:  # the process of the task died twice
            if isinstance(cause := getattr(error, "cause", None), StorageError):
                for other in waiting:
                    ray.cancel(other)
                raise cause from None
            dead = RunError(
                f"the process of this model died twice ({type(error).__name__})", fix=_MORE_MEMORY
            )
            yield from (Outcome(_failed(e, p, dead)) for e, p in waiting.pop(stream).values())
        else:
            if isinstance(event, Outcome):
                del waiting[stream][event.key]
            yield event


def _score_shared(
    entries: list[ModelEntry], resources: dict[str, float], work: Work
) -> Iterator[Outcome | ImageProgress]:
    """The stream of a task: outcomes, and between them how many images are embedded.

    The work is done in a thread, since it cannot yield from inside of the embedding of a dataset.
    """
    log_to(work.config.folder)
    events: queue.SimpleQueue[Outcome | ImageProgress | BaseException | None] = queue.SimpleQueue()

    def score() -> None:
        first = entries[0]
        load = None if first.path.startswith(PREFIX) else functools.partial(_load, first, work.config)
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


def _log_outcome(outcome: Outcome) -> None:
    cell = outcome.cell
    place = f"{cell.model} on {cell.dataset} ({cell.protocol})"
    if isinstance(cell, CellFailure):
        _log.info("failed: %s: %s\n%s", place, cell.reason, cell.trace)
    else:
        _log.info("scored: %s, %d images embedded", place, outcome.counts.images)


def _failed(entry: ModelEntry, plan: Plan, error: Exception) -> CellFailure:
    return failure(entry.name, plan.dataset, plan.protocol_name, error)
