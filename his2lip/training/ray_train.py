"""The driver of a run on Ray Train: starts its workers, passes on their reports, and returns the result."""

from __future__ import annotations

import functools
import itertools
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import ray
import ray.train
import ray.train.torch
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from his2lip.errors import ClusterError, His2lipError, RunError
from his2lip.files import disk_full
from his2lip.logs import log_to
from his2lip.models import current_folder
from his2lip.runtime import check_nodes, is_local, start_ray
from his2lip.training import run_inputs
from his2lip.training.config import TrainConfig
from his2lip.training.estimate import SECONDS, steps_done
from his2lip.training.placement import THREADS, most_threads, number
from his2lip.training.progress import StepReport, TrainState
from his2lip.training.ray_worker import Job, ReportQueue, Saved, run_worker
from his2lip.training.rendezvous import LocalTorchConfig
from his2lip.training.run_directory import RunDir, StoredRun, open_run, start_or_resume

if TYPE_CHECKING:
    from his2lip.training.loop import Validate


_POLL_S = 0.2  # seconds between two polls: the driver for reports, Ray's controller for its workers
_DRAIN_S = 2.0  # seconds between two looks for machines that are about to be taken away
_LEAVE_S = 25.0  # seconds that a checkpoint may take after SIGTERM; Slurm and Kubernetes give 30
_AGAIN = "if memory ran out, lower data.batch_size or set optim.micro_batch; the same command resumes it"
_STATE = "the state that Ray Train keeps"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """A finished run. `metrics`: of the best checkpoint. `history`: of every epoch."""

    run_dir: Path
    address: str  # by which other commands load the best checkpoint
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
    on_report: Callable[[StepReport], bool | None] | None = None,
    on_note: Callable[[str], None] = _log.warning,
    fresh: bool = False,
) -> TrainResult:
    """Trains in STORAGE/train/NAME with Ray Train; resumes an earlier run of this name.

    validator  picklable; computes zero-shot metrics on the select split, in rank 0's process
    on_report  called in this thread with each progress report in order; returning True at the end of an epoch
               ends the run there, unfinished
    on_note    called in this thread with sentences for the user, such as that a worker died
    fresh      removes an earlier run of this name first
    Raises His2lipError for what the user can fix, and ray.train's TrainingFailedError for other failures.
    """
    config = run_inputs.with_absolute_paths(config)
    if config.checkpoint.select_by != "loss" and validator is None:
        raise RunError(
            f"checkpoint.select_by={config.checkpoint.select_by} needs a zero-shot validator",
            where=config.name,
            key="checkpoint.select_by",
        )
    config, shards, bank = run_inputs.open_data(config)
    made = run_inputs.identity(config, shards, bank, validator=validator)
    run = open_run(config.storage, config.name)
    notes: list[str] = []

    def say(note: str) -> None:
        notes.append(note)
        on_note(note)

    terms = run_inputs.terms_of_run(config, shards).notes()
    for note in (*terms, *run_inputs.caption_notes(config, shards, bank)):
        say(note)
    if isinstance(run, StoredRun):
        say("an object store has no locks: run this command once at a time")
    with run.locked():
        state = start_or_resume(run, identity=made, fresh=fresh, say=say)
        log_to(run.path)
        _log.info("run %s (id %s): %s", config.name, made["id"][:12], state["status"])
        if state["status"] != "finished":
            start_ray()
            check_nodes(read=run_inputs.places(config), write=[run.shared])
            found = run_inputs.contents(config, shards, bank)
            config, state, cpus = _with_threads(config, run, state)
            before, begun = steps_done(run), time.monotonic()
            if not _run_on_ray(Job(config, run, validator, found, cpus), on_report or (lambda _: None), say):
                run.fetch()
                result = _result(run, notes=notes)
                done: dict[str, Any] = {"steps": result.steps, "history": result.history}
                if result.steps > before:
                    done[SECONDS] = (time.monotonic() - begun) / (result.steps - before)
                run.remove_unfinished()  # of a worker that outlived an earlier command and was killed since
                run.write({**state, "status": "finished", "result": done})
                _log.info("run %s is finished", config.name)
                return result
            run.fetch()
            return _result(run, notes=notes)
    return _result(run, notes=notes, finished=state)


def _with_threads(
    config: TrainConfig, run: RunDir, state: dict[str, Any]
) -> tuple[TrainConfig, dict[str, Any], int]:
    """The run with a number of torch threads, which run.json then has.

    Returns the configuration, the state, and the CPUs that each worker asks for.

    A run that is resumed keeps its number where the configuration says `auto`, so that it ends with the same
    bits. On smaller machines than those that it was started on its workers then ask for fewer CPUs.
    """
    workers = config.workers
    # Runs from before `resolved` have the number that was configured.
    before = state.get("resolved", {}).get(THREADS) or state["config"]["workers"]["threads"]
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    kept = current_folder(run.last).exists() and before != "auto"
    most = most_threads(alive, workers.num, use_gpu=_use_gpu(config, ray.cluster_resources()))
    threads = number(workers.threads, before if kept else most)
    cpus = min(threads, most) if workers.threads == "auto" else threads
    state = {**state, "resolved": {THREADS: threads}}
    run.write(state)
    _log.info("run %s: %d torch threads in each of %d workers", config.name, threads, workers.num)
    config = config.model_copy(update={"workers": workers.model_copy(update={"threads": threads})})
    return config, state, cpus


class FailureCallback(ray.train.UserCallback):
    """Runs in Ray's controller: a user's mistake ends the run; for other failures it sends a note.

    Ray then restarts the workers.
    """

    def __init__(self, queue: Any) -> None:
        self._queue = queue

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for error in worker_exceptions.values():
            if isinstance(error, His2lipError):
                raise error
        ranks = ", ".join(map(str, sorted(worker_exceptions)))
        kind = type(next(iter(worker_exceptions.values()))).__name__
        self._queue.put.remote(f"worker {ranks} failed ({kind})")


def _result(run: RunDir, *, notes: list[str], finished: Mapping[str, Any] | None = None) -> TrainResult:
    """The result of a run; `finished` is its run.json where it was finished before.

    Such a run no longer needs its last checkpoint: `his2lip gc` may have removed it.
    """
    from his2lip.models import is_checkpoint, load_resume, read_meta

    if finished is not None and "result" in finished and is_checkpoint(run.best):
        return TrainResult(
            run_dir=run.path,
            address=run.address(run.best.name),
            best=run.best,
            last=run.last,
            steps=finished["result"]["steps"],
            metrics=read_meta(run.best)["metrics"],
            history=finished["result"]["history"],
            finished_before=True,
            notes=tuple(notes),
        )
    for path in (run.best, run.last):
        if not is_checkpoint(path):
            what = f"the checkpoint '{path.name}' of this run is missing"
            fix = "put it back, or start again with --fresh"
            raise RunError(what, where=path, key=path.name, fix=fix)
    saved = load_resume(run.last)
    if saved is None:
        what = "the last checkpoint lacks the state that resuming needs"
        raise RunError(what, where=run.last, key="last", fix="start again with --fresh")
    return TrainResult(
        run_dir=run.path,
        address=run.address(run.best.name),
        best=run.best,
        last=run.last,
        steps=saved.step,
        metrics=read_meta(run.best)["metrics"],
        history=list(TrainState.from_json(saved.extra["run"]).history),
        finished_before=finished is not None,
        notes=tuple(notes),
    )


def _run_on_ray(
    job: Job,
    on_report: Callable[[StepReport], bool | None],
    say: Callable[[str], None],
) -> bool:
    """Runs TorchTrainer in another thread, so that this one can call `on_report` and `say`.

    Returns whether `on_report` ended the run before its last step.
    """
    # Ray Train reads these when it starts: its interval of polls, and that workers keep the driver's folder.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(_POLL_S))
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    if is_local():  # this machine is not taken away, so the run needs no process that watches for it
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue = ReportQueue.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    trainer = ray.train.torch.TorchTrainer(
        run_worker,
        # As bytes, so that Ray's controller need not import the modules of the validator.
        train_loop_config={"job": ray.cloudpickle.dumps((job, queue))},
        torch_config=LocalTorchConfig() if is_local() else ray.train.torch.TorchConfig(),
        scaling_config=_scaling(job, say),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]  # mypy sees the V1 class
            name="ray",  # without checkpoints, so that Ray cannot return old weights
            storage_path=job.run.shared,
            failure_config=ray.train.FailureConfig(
                max_failures=job.config.workers.max_failures,
                max_preemption_failures=job.config.workers.max_preemption_failures,  # type: ignore[call-arg]
            ),
            callbacks=[FailureCallback(queue)],  # type: ignore[list-item]
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )
    failure: list[BaseException] = []
    mailbox = _Mailbox(queue, on_report, say)
    work = functools.partial(_fit, trainer, job, queue)
    thread = threading.Thread(target=_catch, args=(work, failure), name="ray-train", daemon=True)
    thread.start()
    drains = _Drains()
    try:
        with _termination() as ended:
            while thread.is_alive():
                mailbox.deliver(wait_s=_POLL_S)
                if drains.new():
                    say("a machine of the cluster will be taken away soon; a checkpoint is saved now")
                    queue.ask_to_save.remote()
                if ended.is_set():
                    mailbox.save_and_leave(thread)
        mailbox.deliver(wait_s=0)
    finally:
        ray.kill(queue)  # workers that are still running then stop at the end of their epoch
    if failure:
        raise _user_error(failure[0], job) or failure[0]
    return mailbox.stopped


def _fit(trainer: ray.train.torch.TorchTrainer, job: Job, queue: Any) -> None:
    """Runs the trainer, and runs it again where the process of Ray's controller dies, as workers are."""
    most = job.config.workers.max_failures
    for died in itertools.count(1):
        try:
            trainer.fit()
        except ray.exceptions.RayActorError:
            if died > most >= 0:
                what = f"the process that controls the workers of this run died {died} times"
                raise RunError(what, where=job.run.path, key="workers.max_failures", fix=_AGAIN) from None
            queue.put.remote("the process that controls the workers died; another one is started")
        else:
            return


def _catch(work: Callable[[], object], failure: list[BaseException]) -> None:
    try:
        work()
    except BaseException as error:
        failure.append(error)


class _Mailbox:
    """The driver's end of the queue. `stopped`: whether `on_report` ended the run before its last step."""

    def __init__(
        self, queue: Any, on_report: Callable[[StepReport], bool | None], say: Callable[[str], None]
    ) -> None:
        self._queue, self._on_report, self._say = queue, on_report, say
        self._saved = 0  # checkpoints that were asked for and written
        self._epochs: set[int] = set()  # last steps of the epochs that were passed on
        self.stopped = False

    def deliver(self, *, wait_s: float) -> None:
        """Passes on the items of the queue and answers the workers."""
        for item in ray.get(self._queue.take.remote(wait_s)):
            if isinstance(item, str):
                self._say(item)
            elif isinstance(item, Saved):
                self._saved += 1
                self._say(f"a checkpoint of step {item.step} is saved")
            elif item.kind == "step":
                self._on_report(item)
            elif item.step not in self._epochs:  # else workers that were started again repeat it
                self._epochs.add(item.step)
                stop = bool(self._on_report(item))
                self._queue.answer.remote(item.step, stop)
                self.stopped |= stop and item.step < item.steps  # after the last step it is finished

    def save_and_leave(self, thread: threading.Thread) -> NoReturn:
        """Has a checkpoint saved if that is possible in time, and raises KeyboardInterrupt."""
        self._say("this command is asked to end (SIGTERM); a checkpoint is saved first")
        before, until = self._saved, time.monotonic() + _LEAVE_S
        self._queue.ask_to_save.remote()
        while thread.is_alive() and self._saved == before and time.monotonic() < until:
            self.deliver(wait_s=_POLL_S)
        raise KeyboardInterrupt


class _Drains:
    """Machines of the cluster that Ray was told will be taken away."""

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._looked = -math.inf

    def new(self) -> bool:
        """Whether there are any that an earlier call did not see."""
        if is_local() or time.monotonic() - self._looked < _DRAIN_S:
            return False
        self._looked = time.monotonic()
        # Where Ray Train's own watcher looks; `ray.train.get_preemption_info` is a barrier of all workers.
        found = set(ray._private.state.state.get_draining_nodes())
        added = found - self._known
        self._known |= found
        return bool(added)


@contextmanager
def _termination() -> Iterator[threading.Event]:
    """An event that SIGTERM sets; in the main thread only, since no other thread receives signals."""
    ended = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield ended
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: ended.set())
    try:
        yield ended
    finally:
        signal.signal(signal.SIGTERM, before)


def _user_error(error: BaseException, job: Job) -> His2lipError | None:
    """The user's mistake that a worker met, or that workers died too often; None for another failure."""
    if isinstance(error, His2lipError):
        return error
    if isinstance(error, ControllerError):
        cause = error.controller_failure
        return cause if isinstance(cause, His2lipError) else disk_full(cause, what=_STATE, where=job.run.path)
    if isinstance(error, WorkerGroupError) and all(map(_is_death, error.worker_failures.values())):
        ranks = ", ".join(map(str, sorted(error.worker_failures)))
        what = f"worker {ranks} died, more often than workers.max_failures allows"
        return RunError(what, where=job.run.path, key="workers.max_failures", fix=_AGAIN)
    return None


def _is_death(error: Exception) -> bool:
    """Whether a worker's process or machine is gone, and not an exception of the code that it ran."""
    return isinstance(error, WorkerHealthCheckFailedError | ray.exceptions.RayActorError)


def _scaling(job: Job, say: Callable[[str], None]) -> ray.train.ScalingConfig:
    """The resources of each worker. Raises ClusterError where this machine does not have them."""
    workers, total = job.config.workers, ray.cluster_resources()
    use_gpu = _use_gpu(job.config, total)
    # Several workers may share a CPU, such as two on a laptop of two where another process has one.
    each = {"CPU": round(min(job.cpus, total.get("CPU", 1) / workers.num), 3)}
    each |= {"GPU": 1.0} if use_gpu else {}
    each |= workers.resources
    lacking = {k: v * workers.num for k, v in each.items() if v * workers.num > total.get(k, 0)}
    if lacking:
        what = ", ".join(f"{total.get(k, 0):g} of {v:g} {k}" for k, v in lacking.items())
        if is_local():
            raise ClusterError(
                f"this machine has only {what} for the workers", where="workers", key="workers"
            )
        say(f"the cluster has only {what} for the workers; waiting for it to grow")
    return ray.train.ScalingConfig(num_workers=workers.num, use_gpu=use_gpu, resources_per_worker=each)


def gpus_of_run(config: TrainConfig, resources: Mapping[str, float]) -> int:
    """GPUs that the workers of a run ask for on a Ray with these `resources` (`ray.cluster_resources`)."""
    return config.workers.num if _use_gpu(config, resources) else 0


def _use_gpu(config: TrainConfig, resources: Mapping[str, float]) -> bool:
    workers = config.workers
    return resources.get("GPU", 0) >= workers.num if workers.use_gpu == "auto" else workers.use_gpu
