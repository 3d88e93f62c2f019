"""What reaches the driver while Ray Train works: progress, and notes on workers that failed."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train
import ray.train.torch
from ray.train.v2.api.exceptions import ControllerError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from his2lip.errors import ClusterError, His2lipError, RunError
from his2lip.logs import log_to
from his2lip.runtime import is_local, start_ray
from his2lip.training import run_inputs as assemble
from his2lip.training.config import TrainConfig
from his2lip.training.progress import Progress, State
from his2lip.training.rendezvous import LocalTorchConfig
from his2lip.training.run_directory import RunDir, begin, refuse_object_store

if TYPE_CHECKING:
    from his2lip.training.loop import Validate
    from his2lip.training.progress import Progress


@ray.remote(num_cpus=0)
class Mailbox:
    """Where workers leave progress and notes for the driver, and hear whether to go on.

    ray.train.report is a barrier with room for one report a poll: too narrow for every few steps.
    """

    def __init__(self) -> None:
        self._items: list[Progress | str] = []
        self._stops: dict[int, bool] = {}  # the driver's word on the epoch that ended with a step
        self._changed = asyncio.Condition()

    async def post(self, item: Progress | str) -> None:
        """Leaves progress, or a note."""
        async with self._changed:
            self._items.append(item)
            self._changed.notify_all()

    async def take(self, wait_s: float) -> list[Progress | str]:
        """All that was left since the last call; waits for something so long."""
        async with self._changed:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait_for(lambda: self._items), wait_s)
            items, self._items = self._items, []
            return items

    async def answer(self, step: int, stop: bool) -> None:
        """The driver has heard of the epoch that ended with `step`: whether the run ends there."""
        async with self._changed:
            self._stops[step] = stop
            self._changed.notify_all()

    async def stops(self, step: int) -> bool:
        """The driver's answer, as soon as it is there; the same for every worker that asks."""
        async with self._changed:
            await self._changed.wait_for(lambda: step in self._stops)
            return self._stops[step]


class Failures(ray.train.UserCallback):
    """In Ray's controller: a user's mistake ends the run at once; another failure is told, and retried."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for error in worker_exceptions.values():
            if isinstance(error, His2lipError):
                raise error
        ranks = ", ".join(map(str, sorted(worker_exceptions)))
        kind = type(next(iter(worker_exceptions.values()))).__name__
        self._mailbox.post.remote(f"worker {ranks} failed ({kind})")


_POLL_S = 0.2  # how often the driver fetches progress, and Ray's controller looks at its workers
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """A finished run. `metrics` are those of the best checkpoint; `history` has those of every epoch."""

    run_dir: Path
    best: Path
    last: Path
    steps: int
    metrics: dict[str, float]
    history: list[dict[str, float]] = field(repr=False)
    finished_before: bool = False
    notes: tuple[str, ...] = ()


def train(
    config: TrainConfig,
    *,
    validator: Validate | None = None,
    on_report: Callable[[Progress], bool | None] | None = None,
    on_note: Callable[[str], None] = _log.warning,
    fresh: bool = False,
) -> TrainResult:
    """Trains under storage/train/NAME with Ray Train, going on where an earlier command was stopped.

    validator  picklable; gives zero-shot metrics on the select split, in rank 0's process
    on_report  called here, in the driver's thread, with each report of progress in order; True at the end of
               an epoch ends the run there, unfinished
    on_note    called here with sentences that the user should see, such as a worker that died
    fresh      forgets an earlier run of this name
    Raises His2lipError for what the user can fix, ray.train's TrainingFailedError for what broke.
    """
    refuse_object_store(config.storage)
    config = assemble.with_absolute_paths(config)
    if config.checkpoint.select_by == "macro_f1" and validator is None:
        raise RunError("checkpoint.select_by=macro_f1 needs a zero-shot validator", where=config.name)
    config, shards, bank = assemble.open_data(config)
    made = assemble.identity(config, shards, bank)
    run = RunDir(Path(config.storage) / "train" / config.name)
    notes: list[str] = []

    def say(note: str) -> None:
        notes.append(note)
        on_note(note)

    terms = assemble.terms_of_run(config, shards).notes()
    for note in (*terms, *assemble.caption_notes(config, shards, bank)):
        say(note)
    with run.locked():
        state = begin(run, identity=made, fresh=fresh, say=say)
        log_to(run.path)
        _log.info("run %s (id %s): %s", config.name, made["id"][:12], state["status"])
        finished_before = state["status"] == "finished"
        if not finished_before:
            start_ray()
            if not _run_on_ray(config, run, validator, on_report or (lambda _: None), say):
                run.write({**state, "status": "finished"})
                _log.info("run %s is finished", config.name)
    return _result(run, finished_before=finished_before, notes=notes)


def _result(run: RunDir, *, finished_before: bool, notes: list[str]) -> TrainResult:
    from his2lip.models import load_resume, read_meta

    saved = load_resume(run.last)
    if saved is None:
        raise RunError(
            "the last checkpoint has lost its state", where=run.last, fix="start anew with --fresh"
        )
    return TrainResult(
        run_dir=run.path,
        best=run.best,
        last=run.last,
        steps=saved.step,
        metrics=read_meta(run.best)["metrics"],
        history=list(State.from_json(saved.extra["run"]).history),
        finished_before=finished_before,
        notes=tuple(notes),
    )


def _run_on_ray(
    config: TrainConfig,
    run: RunDir,
    validator: Validate | None,
    on_report: Callable[[Progress], bool | None],
    say: Callable[[str], None],
) -> bool:
    """Runs TorchTrainer in a thread, so that progress and notes are told in the caller's own.

    Returns whether `on_report` has ended the run.
    """
    # Read by Ray Train when it starts: how often it polls, and that workers stay in the driver's folder.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(_POLL_S))
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    mailbox = Mailbox.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    job = {"config": config, "run": run, "validator": validator, "mailbox": mailbox}
    trainer = ray.train.torch.TorchTrainer(
        _work,
        # As bytes: Ray's controller holds it too, and need not import what the validator is made of.
        train_loop_config={"job": ray.cloudpickle.dumps(job)},
        torch_config=LocalTorchConfig() if is_local() else ray.train.torch.TorchConfig(),
        scaling_config=_scaling(config, say),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]  # mypy sees the V1 class
            name="ray",  # Ray keeps no checkpoints of ours here, so that it cannot hand back old weights
            storage_path=str(run.path),
            failure_config=ray.train.FailureConfig(max_failures=config.workers.max_failures),
            callbacks=[Failures(mailbox)],  # type: ignore[list-item]
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )
    failure: list[BaseException] = []
    stopped = False
    thread = threading.Thread(target=_catch, args=(trainer.fit, failure), name="ray-train", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            stopped |= _deliver(mailbox, on_report, say, wait_s=_POLL_S)
        stopped |= _deliver(mailbox, on_report, say, wait_s=0)
    finally:
        ray.kill(mailbox)  # workers that are still at work then stop at their next epoch
    if failure:
        raise _in_our_words(failure[0])
    return stopped


def _catch(work: Callable[[], object], failure: list[BaseException]) -> None:
    try:
        work()
    except BaseException as error:
        failure.append(error)


def _deliver(
    mailbox: Any, on_report: Callable[[Progress], bool | None], say: Callable[[str], None], *, wait_s: float
) -> bool:
    """Tells what is in the mailbox, and the workers what comes of it: whether the run is to end."""
    ended = False
    for item in ray.get(mailbox.take.remote(wait_s)):
        if isinstance(item, str):
            say(item)
            continue
        stop = bool(on_report(item)) and item.kind == "epoch"
        if item.kind == "epoch":
            mailbox.answer.remote(item.step, stop)
        ended |= stop
    return ended


def _in_our_words(error: BaseException) -> BaseException:
    """The His2lipError that ended the run where there is one, else Ray's own error."""
    if isinstance(error, ControllerError) and isinstance(error.controller_failure, His2lipError):
        return error.controller_failure
    return error


def _scaling(config: TrainConfig, say: Callable[[str], None]) -> ray.train.ScalingConfig:
    """What each worker asks of Ray. Raises ClusterError where this machine will never have it."""
    workers, total = config.workers, ray.cluster_resources()
    use_gpu = total.get("GPU", 0) >= workers.num if workers.use_gpu == "auto" else workers.use_gpu
    # Several workers may share a CPU, as two do on a laptop of two where something else holds one.
    each = {"CPU": round(min(workers.threads, total.get("CPU", 1) / workers.num), 3)}
    each |= {"GPU": 1.0} if use_gpu else {}
    each |= workers.resources
    lacking = {k: v * workers.num for k, v in each.items() if v * workers.num > total.get(k, 0)}
    if lacking:
        what = ", ".join(f"{total.get(k, 0):g} of {v:g} {k}" for k, v in lacking.items())
        if is_local():
            raise ClusterError(f"this machine has {what} that the workers want", where="workers")
        say(f"the cluster has {what} that the workers want; waiting for it to grow")
    return ray.train.ScalingConfig(num_workers=workers.num, use_gpu=bool(use_gpu), resources_per_worker=each)


def _work(sent: Mapping[str, bytes]) -> None:
    """One worker: builds its own share of everything, and goes on from `last` where there is one."""
    from his2lip.loss import WISELoss
    from his2lip.models import load_resume
    from his2lip.training import build
    from his2lip.training.loop import fit
    from his2lip.training.source import StreamSource

    job = ray.cloudpickle.loads(sent["job"])
    config: TrainConfig = job["config"]
    run: RunDir = job["run"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    log_to(run.path)
    build.prepare_process(config, device)
    config, shards, bank = assemble.open_data(config)
    saved = load_resume(run.last)
    model = build.build_model(config, device, source=run.last if saved else None)

    _log.info("worker %d of %d on %s: from step %d", rank, world, device, saved.step if saved else 0)

    def report(progress: Progress) -> bool:
        _log.info("worker %d: step %d, epoch %d, %s", rank, progress.step, progress.epoch, progress.metrics)
        if rank == 0:
            job["mailbox"].post.remote(progress)
        if progress.kind == "step":
            return False
        stop = _answer(job["mailbox"].stops.remote(progress.step))
        # A barrier, Ray's own record, and what TuneReportCallback hears.
        ray.train.report(progress.metrics | {"step": progress.step, "epoch": progress.epoch})
        return stop

    fit(
        config,
        model,
        WISELoss.from_config(config.loss),
        StreamSource(config, bank, preprocess=model.preprocess, rank=rank, world=world),
        report=report,
        save=build.checkpoint_writer(run, config, shards, bank),
        validate=job["validator"],
        resume=saved,
        device=device,
        rank=rank,
        world=world,
    )


def _answer(stop: ray.ObjectRef) -> bool:
    try:
        return bool(ray.get(stop))
    except ray.exceptions.RayActorError:
        raise RunError("the command that began this run is gone", fix="give it again to go on") from None
