"""The benchmark grid: every checkpoint on every protocol of every dataset, as Ray tasks."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from his2lip.errors import ConfigError, RunError, StorageError, did_you_mean, first_line
from his2lip.evaluation.cell_files import DamagedCellError
from his2lip.evaluation.config import BenchmarkConfig, ModelEntry
from his2lip.evaluation.embeddings import Counts
from his2lip.evaluation.grid_cell import CellPlan, Plan
from his2lip.evaluation.grid_estimate import (
    BASELINES,
    UNREADABLE,
    GridEstimate,
    Rates,
    estimate_grid,
    jobs_of,
    kind_of,
    rate_of,
    units,
)
from his2lip.evaluation.grid_plans import plan_cells
from his2lip.evaluation.grid_resources import numbers, task_resources, with_numbers
from his2lip.evaluation.grid_scorers import baseline_rows, identities, plans_of
from his2lip.evaluation.grid_task import (
    CellKey,
    ImageProgress,
    Outcome,
    Work,
    failed_cell,
    stream_outcomes,
)
from his2lip.evaluation.leaderboard import (
    FRAME,
    Frame,
    with_blends,
    with_differences,
    with_prompt_order,
    with_published,
    with_seeds,
    write_leaderboard,
)
from his2lip.evaluation.results import DIGESTS, CellFailure, CellResult, read_results
from his2lip.evaluation.stored_cell import check_stored
from his2lip.evaluation.task_results import TaskCell, read_tasks, write_tasks
from his2lip.files import absolute, answers, fetch_file, filesystem
from his2lip.logs import log_to
from his2lip.models import folder_of
from his2lip.runtime import check_nodes, refuse_job_copy

_log = logging.getLogger(__name__)

_BOARD = "leaderboard.csv"
_MORE_MEMORY = "if memory ran out, raise memory_gb, so that fewer run side by side, or lower batch_size"


@dataclass(frozen=True)
class GridResult:
    """All grid cells of one call, by model, dataset and protocol.

    tasks        the grid cells of the tasks beside the protocols
    kept, kept_tasks   what the board keeps of the benchmark's other datasets, which this call did not score
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
    kept: list[CellResult] = field(default_factory=list)
    kept_tasks: list[TaskCell] = field(default_factory=list)

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
    `on_estimate` once, before the first of them, where the files that an estimate needs can be read. What a
    callback raises ends the call.

    With `datasets`, only these are scored, and the leaderboard keeps its rows and failures of the benchmark's
    other datasets. Raises ConfigError where `datasets` has an unknown name, where the rows cannot be kept, or
    where the benchmark's name is in use for splits of another role; RunError where nothing can be scored;
    StorageError where the disk is full.
    """
    config = whole = _with_absolute_paths(config)
    _check_role(config)
    others = _Others() if datasets is None else _other_rows(config, datasets)
    if datasets is not None:
        config = config.model_copy(update={"datasets": {name: config.uris()[name] for name in datasets}})
    names = [name for entry in config.models for name in entry.loads]
    folders = [folder_of(name) for name in names]
    check_nodes(read=[*config.uris().values(), *folders], write=[config.folder])
    refuse_job_copy(config.cache, key="cache", fix="set cache to a folder that all nodes share, or a bucket")
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
    baselines = baseline_rows(config)
    groups = [config.rows_of(model) for model in config.models]
    entries = [*(row for rows in groups for row in rows), *baselines]
    _log_refusals(entries, plans)
    total = len(failed) + sum(len(plans_of(entry, plans)) for entry in entries)
    outcomes: list[Outcome] = []

    def receive(outcome: Outcome) -> None:
        outcomes.append(outcome)
        if on_cell is not None:
            on_cell(outcome.cell, len(outcomes), total)

    for refused in failed:
        receive(Outcome(refused))
    counts = Counts()
    # Baselines share one task: the colours that one of them reads, the next finds in the cache.
    work = Work(plans, config, identities(names))
    together, each = units(config, len(groups))
    rates = Rates(config.cache)
    tasks_of = [*groups, baselines]
    kinds = {row.name: kind_of(rows[0], config) for rows in tasks_of for row in rows}
    if on_estimate is not None and (found := _estimate(tasks_of, work, rates, together=together)) is not None:
        on_estimate(found)
    try:
        for outcome in _on_ray(tasks_of, work):
            if isinstance(outcome, ImageProgress):
                if on_images is not None:
                    on_images(outcome)
                continue
            counts.add(outcome.counts)
            cell = outcome.cell
            _log.info("received %s on %s (%s)", cell.model, cell.dataset, cell.protocol)
            kind = kinds[cell.model]
            rates.measured(kind, cell.dataset, rate_of(outcome, 1.0 if kind == BASELINES else each))
            receive(outcome)
    finally:
        rates.write()
    order = {e.name: i for i, e in enumerate(entries)}
    place = {(p.dataset, p.protocol_name): i for i, p in enumerate(plans)}
    outcomes.sort(key=lambda o: (order[o.cell.model], place.get(o.key[1:], -1)))
    failures = [o.cell for o in outcomes if isinstance(o.cell, CellFailure)]
    tasks = [o.cell for o in outcomes if isinstance(o.cell, TaskCell)]
    cells, kept = _rows(config, entries, plans, outcomes, others.rows)
    write_tasks(config.folder, [*tasks, *others.tasks])
    return GridResult(
        cells=cells,
        failed=failures,
        leaderboard=write_leaderboard(
            config.folder, [*cells, *kept], [*failures, *others.failed], whole, resolved=numbers(config)
        ),
        tasks=tasks,
        counts=counts,
        reused=frozenset(o.cell.cell for o in outcomes if not isinstance(o.cell, CellFailure) and o.reused),
        damaged=(*(o.damaged for o in outcomes if o.damaged is not None), *counts.damaged),
        kept=kept,
        kept_tasks=others.tasks,
    )


def _rows(
    config: BenchmarkConfig,
    entries: Sequence[ModelEntry],
    plans: Sequence[Plan],
    outcomes: Sequence[Outcome],
    kept: Sequence[CellResult],
) -> tuple[list[CellResult], list[CellResult]]:
    """The scored and the kept rows of the board, with what follows from other rows and from the paper."""
    cells = [o.cell for o in outcomes if isinstance(o.cell, CellResult)]
    cards = {plan.dataset: plan.project_card for plan in plans if plan.project_card is not None}
    cells = with_seeds(config.folder, with_blends(cells, config.models), entries)
    cells = with_prompt_order(with_published(cells, cards), {o.key: o.prompt_f1 for o in outcomes})
    board = with_differences(config.folder, [*cells, *kept], reference=config.reference, margin=config.margin)
    return board[: len(cells)], board[len(cells) :]


def _estimate(
    groups: Sequence[Sequence[ModelEntry]], work: Work, rates: Rates, *, together: float
) -> GridEstimate | None:
    """What the grid will take; None, with a line in the log, where a file that this needs cannot be read."""
    try:
        return estimate_grid(jobs_of(groups, work), work.config, rates, together=together)
    except UNREADABLE as error:  # a task that needs the same file reports it
        _log.warning("the benchmark has no estimate: %s", first_line(error))
        return None


def _log_refusals(entries: Sequence[ModelEntry], plans: Sequence[Plan]) -> None:
    """Logs the probes that cannot be fitted."""
    of_labels = [plan for plan in plans if isinstance(plan, CellPlan) and plan.labelled is not None]
    for entry, plan in itertools.product((entry for entry in entries if entry.probe), of_labels):
        if plan.labelled and entry.probe and (reason := plan.labelled.refuses(entry.probe)):
            _log.info("not scored: %s on %s (%s): %s", entry.name, plan.dataset, plan.protocol_name, reason)


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


@dataclass(frozen=True)
class _Others:
    """Rows, tasks and failures of a leaderboard that a call keeps."""

    rows: list[CellResult] = field(default_factory=list)
    tasks: list[TaskCell] = field(default_factory=list)
    failed: list[CellFailure] = field(default_factory=list)


def _other_rows(config: BenchmarkConfig, datasets: Sequence[str]) -> _Others:
    """What the present leaderboard has of the benchmark's datasets that are not among `datasets`.

    Raises ConfigError for a name that the benchmark does not have, and for a row that cannot be kept.
    """
    known = config.uris()
    for name in datasets:
        if name not in known:
            what, fix = f"the benchmark has no dataset '{name}'", did_you_mean(name, known)
            raise ConfigError(what, key="--datasets", fix=fix)
    others = known.keys() - set(datasets)
    kept = [row for row in _board_rows(config.folder) if row.dataset in others]
    for row in kept:
        try:
            check_stored(config.folder, row)
        except DamagedCellError as error:
            what = f"the row of {row.model} on {row.dataset} cannot be kept: {error}"
            fix = "run the whole benchmark again"
            raise ConfigError(what, where=config.folder, key=row.cell, fix=fix) from None
    tasks = [cell for cell in read_tasks(config.folder) if cell.dataset in others]
    failed = [failure for failure in _board_failures(config.folder) if failure.dataset in others]
    return _Others(kept, tasks, failed)


def _board_failures(folder: str) -> list[CellFailure]:
    """The grid cells that the present board could not score; none without one."""
    system, path = filesystem(folder)
    with answers(folder):
        known = system.get_file_info(f"{path}/{FRAME}").is_file
    return list(Frame.read(folder).failed) if known else []


def _board_rows(folder: str) -> list[CellResult]:
    """The rows of the present leaderboard; none without one."""
    if "://" not in folder:
        board = Path(folder, _BOARD)
        return read_results(board) if board.is_file() else []
    system, root = filesystem(folder)
    with tempfile.TemporaryDirectory(prefix="his2lip-") as made:
        for name in (_BOARD, DIGESTS):
            with suppress(FileNotFoundError):
                fetch_file(system, f"{root}/{name}", Path(made, name))
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


@dataclass
class _Stream:
    """A group of models whose outcomes arrive; `left` are those to come."""

    group: list[ModelEntry]
    left: dict[CellKey, tuple[ModelEntry, Plan]]
    repeated: bool = False


def _on_ray(groups: Sequence[Sequence[ModelEntry]], work: Work) -> Iterator[Outcome | ImageProgress]:
    """One streaming task per group of models; what they yield in the order in which it arrives.

    A task whose process or node dies is sent once more from here, and what it has yielded before is passed
    over. Ray's own retries would pass over as many items as have arrived. A repetition yields fewer, since
    the images that are cached by then are not embedded, so outcomes would be passed over unread.
    """
    import ray

    shared = ray.put(work)
    task = ray.remote(max_retries=0)(stream_outcomes)
    waiting: dict[Any, _Stream] = {}

    def send(stream: _Stream) -> None:
        resources = task_resources(stream.group, work.config)
        waiting[task.options(**resources).remote(stream.group, resources, shared)] = stream

    for group in map(list, filter(None, groups)):
        pairs = [(entry, plan) for entry in group for plan in plans_of(entry, work.plans)]
        send(_Stream(group, {(e.name, p.dataset, p.protocol_name): (e, p) for e, p in pairs}))
    while waiting:
        ready: list[Any] = ray.wait(list(waiting), num_returns=1)[0]
        stream = waiting[ready[0]]
        try:
            event: Outcome | ImageProgress = ray.get(next(ready[0]))
        except StopIteration:
            del waiting[ready[0]]
            assert not stream.left, f"no outcome of {[*stream.left]}"
        except ray.exceptions.RayError as error:
            if isinstance(cause := getattr(error, "cause", None), StorageError):
                for other in waiting:
                    ray.cancel(other)
                raise cause from None
            del waiting[ready[0]]
            what = type(error).__name__
            if not stream.repeated:
                _log.warning(
                    "the process of this model died (%s) and is repeated: %s", what, stream.group[0].name
                )
                send(dataclasses.replace(stream, repeated=True))
                continue
            dead = RunError(f"the process of this model died twice ({what})", fix=_MORE_MEMORY)
            yield from (Outcome(failed_cell(entry, plan, dead)) for entry, plan in stream.left.values())
        else:
            if isinstance(event, ImageProgress) or stream.left.pop(event.key, None) is not None:
                yield event
