"""One worker of a run on Ray Train, and the queue by which it and the driver talk to each other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray
import ray.train
import ray.train.torch

from his2lip.errors import RunError
from his2lip.logs import log_to
from his2lip.resources import code_version
from his2lip.runtime import check_code, usable_cpus
from his2lip.training import run_inputs
from his2lip.training.config import TrainConfig
from his2lip.training.placement import with_numbers
from his2lip.training.progress import SaveClock, StepReport
from his2lip.training.run_directory import RunDir

if TYPE_CHECKING:
    from his2lip.models import DualEncoder, ResumeState
    from his2lip.training.loop import Save, Validate

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What the workers of a run are sent.

    contents  what they have to find, as `run_inputs.contents`
    cpus      that each of them asks Ray for
    code      the version of the code that they have to be
    """

    config: TrainConfig
    run: RunDir
    validator: Validate | None
    contents: Mapping[tuple[str, str], str]
    cpus: int
    code: str = field(default_factory=code_version)


@dataclass(frozen=True)
class Saved:
    """A checkpoint of this step was written because the driver had asked for it."""

    step: int


Item = StepReport | Saved | str


@ray.remote(num_cpus=0)
class ReportQueue:
    """Carries reports and notes from the workers to the driver, and the driver's answer back.

    `ray.train.report` is a barrier for one report per poll, which is too slow for a report every few steps.
    """

    def __init__(self) -> None:
        self._items: list[Item] = []
        self._taken = 0  # items that the driver has taken
        self._recorded = 0  # of these, items that it has passed on
        self._stops: dict[int, bool] = {}  # the driver's answer for the epoch that ended with a step
        self._saves = 0  # checkpoints that the driver has asked for
        self._changed = asyncio.Condition()

    async def put(self, item: Item) -> None:
        """Adds a report, a note, or that a checkpoint was saved because the driver asked for it."""
        async with self._changed:
            self._items.append(item)
            self._changed.notify_all()

    async def take(self, wait_s: float) -> list[Item]:
        """All items since the last call; waits up to `wait_s` seconds for the first one.

        The call also tells that the driver has recorded the items of the call before.
        """
        async with self._changed:
            self._recorded = self._taken
            self._changed.notify_all()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait_for(lambda: self._items), wait_s)
            items, self._items = self._items, []
            self._taken += len(items)
            return items

    async def recorded(self, *_: None) -> None:
        """Returns once the driver has recorded all items that are in the queue now.

        Give it the references of the `put`s that it has to come after: Ray may run calls of an actor with
        coroutines in another order than they were sent.
        """
        async with self._changed:
            until = self._taken + len(self._items)
            await self._changed.wait_for(lambda: self._recorded >= until)

    async def ask_to_save(self) -> None:
        """Asks for a checkpoint of the next step."""
        async with self._changed:
            self._saves += 1
            self._changed.notify_all()

    async def saves(self, known: int) -> int:
        """How many checkpoints were asked for, once these are more than `known`."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._saves > known)
            return self._saves

    async def answer(self, step: int, stop: bool) -> None:
        """Sets whether the run ends at the end of the epoch that `step` was the last step of."""
        async with self._changed:
            self._stops[step] = stop
            self._changed.notify_all()

    async def stops(self, step: int) -> bool:
        """The driver's answer for `step`; waits for it. It is the same for all workers."""
        async with self._changed:
            await self._changed.wait_for(lambda: step in self._stops)
            return self._stops[step]


def run_worker(sent: Mapping[str, bytes]) -> None:
    """One worker of a run."""
    job: Job
    job, queue = ray.cloudpickle.loads(sent["job"])
    with job.run.in_worker(ray.train.get_context().get_world_rank()) as run:
        _train_share(job, queue, run)


def _train_share(job: Job, queue: Any, run: RunDir) -> None:
    """Trains this worker's share of each batch, from `last` on where there is that checkpoint."""
    from his2lip.loss import WISELoss
    from his2lip.training import build
    from his2lip.training.loop import fit, resumed_otherwise
    from his2lip.training.source import StreamSource

    check_code(job.code)
    config = job.config
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    log_to(run.path)
    logging.getLogger("his2lip.files").addHandler(_ToDriver(queue))  # Ray may not show a worker's own lines
    here = max(1, usable_cpus() // context.get_local_world_size())
    config = with_numbers(config, threads=here, decode_threads=here)
    _log.info("worker %d decodes on %s threads", rank, config.data.decode_threads)
    build.prepare_process(config, device)
    config, shards, bank = run_inputs.open_data(config)
    run_inputs.check_contents(job.contents, config, shards, bank)
    model, saved = build.build_resumed(config, run, device)
    if rank == 0:
        drawn = run_inputs.drawn_captions(config, shards, bank)
        if (note := model.tokenizer.cut_note(drawn)) is not None:
            queue.put.remote(note)
    if rank == 0 and saved and (note := resumed_otherwise(saved, model, device)) is not None:
        queue.put.remote(note)
    source = StreamSource(config, bank, preprocess=model.preprocess, rank=rank, world=world)
    if rank == 0 and (note := source.select_note) is not None:
        queue.put.remote(note)
    _log.info("worker %d of %d on %s: from step %d", rank, world, device, saved.step if saved else 0)
    reported: list[ray.ObjectRef] = []  # since the last checkpoint
    save, due = _saving(queue, config, build.checkpoint_writer(run, config, shards, bank), reported)

    def report(progress: StepReport) -> bool:
        _log.info("worker %d: step %d, epoch %d, %s", rank, progress.step, progress.epoch, progress.metrics)
        if rank == 0:
            reported.append(queue.put.remote(progress))
        if progress.kind == "step":
            return False
        stop = bool(_ask(queue.stops.remote(progress.step)))
        # A barrier, and what Ray itself records.
        ray.train.report(progress.metrics | {"step": progress.step, "epoch": progress.epoch})
        return stop

    fit(
        config,
        model,
        WISELoss.from_config(config.loss),
        source,
        report=report,
        save=save,
        due=due if rank == 0 else None,
        validate=job.validator,
        resume=saved,
        device=device,
        rank=rank,
        world=world,
    )


def _saving(
    queue: Any, config: TrainConfig, write: Save, reported: list[ray.ObjectRef]
) -> tuple[Save, Callable[[], bool]]:
    """(`write` with what a checkpoint means for the clock and the driver, whether one is due)."""
    clock, wanted = SaveClock(config.checkpoint.every_minutes), _Wanted(queue)
    asked = False

    def due() -> bool:
        nonlocal asked
        asked |= wanted()
        return asked or clock.due()

    def save(model: DualEncoder, state: ResumeState, metrics: dict[str, float], best: bool) -> None:
        nonlocal asked
        _ask(queue.recorded.remote(*reported))  # a run that is resumed here does not report these steps again
        reported.clear()
        write(model, state, metrics, best)
        clock.reset()
        if asked:
            queue.put.remote(Saved(state.step))
            asked = False

    return save, due


def _ask(answer: ray.ObjectRef) -> Any:
    """What the queue answers. Raises RunError where the driver, and the queue with it, is gone."""
    try:
        return ray.get(answer)
    except ray.exceptions.RayActorError:
        raise RunError(
            "the command that started this run is gone", fix="the same command resumes it"
        ) from None


class _Wanted:
    """Whether the driver asks for a checkpoint; cheap enough to be called in every step."""

    def __init__(self, queue: Any) -> None:
        self._queue = queue
        self._answer: ray.ObjectRef | None = queue.saves.remote(0)

    def __call__(self) -> bool:
        if self._answer is None or not ray.wait([self._answer], timeout=0)[0]:
            return False
        try:
            known = ray.get(self._answer)
        except ray.exceptions.RayActorError:  # the driver is gone, which the end of the epoch finds out
            self._answer = None
            return False
        self._answer = self._queue.saves.remote(known)
        return True


class _ToDriver(logging.Handler):
    """Sends warnings of the file layer, such as that a store is away, to the driver, which reports them."""

    def __init__(self, queue: Any) -> None:
        super().__init__(logging.WARNING)
        self._queue = queue

    def emit(self, record: logging.LogRecord) -> None:
        self._queue.put.remote(self.format(record))
