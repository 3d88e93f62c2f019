"""Ray Train around the loop: the same command starts a run, goes on with it, or says that it is finished."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import ray
import ray.train
import ray.train.torch
from ray.train.v2.api.exceptions import ControllerError

from his2lip.errors import ClusterError, His2lipError, RunError
from his2lip.runtime import start_ray
from his2lip.training import assemble
from his2lip.training.config import TrainConfig
from his2lip.training.mailbox import Failures, Mailbox
from his2lip.training.progress import Progress, State
from his2lip.training.runs import RunDir, begin

# What only the workers use is imported by them: open_clip alone costs the driver seconds.
if TYPE_CHECKING:
    from his2lip.training.loop import Validate

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
    on_report: Callable[[Progress], None] | None = None,
    on_note: Callable[[str], None] = _log.warning,
    fresh: bool = False,
) -> TrainResult:
    """Trains under storage/train/NAME with Ray Train, going on where an earlier command was stopped.

    validator  picklable; gives zero-shot metrics on the select split, in rank 0's process
    on_report  called here, in the driver's thread, with each report of progress in order
    on_note    called here with sentences that the user should see, such as a worker that died
    fresh      forgets an earlier run of this name
    Raises His2lipError for what the user can mend, ray.train's TrainingFailedError for what broke.
    """
    config = assemble.with_absolute_paths(config)
    if "://" in config.storage:
        raise RunError(
            "runs are kept in a folder so far", where=config.storage, mend="give a path that all nodes share"
        )
    if config.checkpoint.select_by == "macro_f1" and validator is None:
        raise RunError("checkpoint.select_by=macro_f1 needs a zero-shot validator", where=config.name)
    config, shards, bank = assemble.open_data(config)
    made = assemble.identity(config, shards, bank)
    run = RunDir(Path(config.storage) / "train" / config.name)
    notes: list[str] = []

    def say(note: str) -> None:
        notes.append(note)
        on_note(note)

    with run.locked():
        state = begin(run, identity=made, fresh=fresh, say=say)
        finished_before = state["status"] == "finished"
        if not finished_before:
            start_ray()
            _run_on_ray(config, run, validator, on_report or (lambda _: None), say)
            run.write({**state, "status": "finished"})
    return _result(run, finished_before=finished_before, notes=notes)


def _result(run: RunDir, *, finished_before: bool, notes: list[str]) -> TrainResult:
    from his2lip.models.checkpoint import load_resume, read_meta

    saved = load_resume(run.last)
    if saved is None:
        raise RunError(
            "the last checkpoint has lost its state", where=run.last, mend="start anew with --fresh"
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
    on_report: Callable[[Progress], None],
    say: Callable[[str], None],
) -> None:
    """Runs TorchTrainer in a thread, so that progress and notes are told in the caller's own."""
    # Read by Ray Train when it starts: how often it polls, and that workers stay in the driver's folder.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(_POLL_S))
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    mailbox = Mailbox.remote()  # type: ignore[attr-defined]
    job = {"config": config, "run": run, "validator": validator, "mailbox": mailbox}
    trainer = ray.train.torch.TorchTrainer(
        _work,
        # As bytes: Ray's controller holds it too, and need not import what the validator is made of.
        train_loop_config={"job": ray.cloudpickle.dumps(job)},
        scaling_config=_scaling(config),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]  # mypy sees the V1 class
            name="ray",  # Ray keeps no checkpoints of ours here, so that it cannot hand back old weights
            storage_path=str(run.path),
            failure_config=ray.train.FailureConfig(max_failures=config.workers.max_failures),
            callbacks=[Failures(mailbox)],  # type: ignore[list-item]
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )
    failure: list[BaseException] = []

    def target() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=target, name="ray-train", daemon=True)
    thread.start()
    while True:
        thread.join(timeout=_POLL_S)
        over = not thread.is_alive()
        for item in ray.get(mailbox.take.remote()):
            say(item) if isinstance(item, str) else on_report(item)
        if over:
            break
    ray.kill(mailbox)
    if failure:
        raise _in_our_words(failure[0])


def _in_our_words(error: BaseException) -> BaseException:
    """The His2lipError that ended the run where there is one, else Ray's own error."""
    if isinstance(error, ControllerError) and isinstance(error.controller_failure, His2lipError):
        return error.controller_failure
    return error


def _scaling(config: TrainConfig) -> ray.train.ScalingConfig:
    """Workers that leave a CPU for Ray Data's reads: two of one CPU each would starve it on two CPUs."""
    total = ray.cluster_resources()
    use_gpu = config.workers.use_gpu
    if use_gpu == "auto":
        use_gpu = total.get("GPU", 0) >= config.workers.num
    elif use_gpu and not total.get("GPU", 0):
        _log.warning("no GPU in the cluster yet; waiting for it to grow")
    spare = max(total.get("CPU", 1) - 1, 0.1) / config.workers.num
    cpus = round(min(float(config.workers.threads), spare), 3)
    resources: dict[str, float] = {"CPU": cpus} | ({"GPU": 1} if use_gpu else {}) | config.workers.resources
    if any(resources[k] > total.get(k, 0) for k in config.workers.resources):
        raise ClusterError(
            f"no machine of this cluster has {config.workers.resources}", where="workers.resources"
        )
    return ray.train.ScalingConfig(
        num_workers=config.workers.num, use_gpu=bool(use_gpu), resources_per_worker=resources
    )


def _work(sent: Mapping[str, bytes]) -> None:
    """One worker: builds its own share of everything, and goes on from `last` where there is one."""
    from his2lip.models.checkpoint import load_resume
    from his2lip.training import build
    from his2lip.training.loop import fit
    from his2lip.training.source import StreamSource

    job = ray.cloudpickle.loads(sent["job"])
    config: TrainConfig = job["config"]
    run: RunDir = job["run"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    build.prepare_process(config, device)
    config, shards, bank = assemble.open_data(config)
    saved = load_resume(run.last) if run.last.exists() else None
    model = build.build_model(config, device, source=run.last if saved else None)

    def report(progress: Progress) -> None:
        posted = job["mailbox"].post.remote(progress) if rank == 0 else None
        if progress.kind == "epoch":
            ray.get([posted] if posted else [])  # the last report must be there before the run is over
            # A barrier, Ray's own record, and what TuneReportCallback hears.
            ray.train.report(progress.metrics | {"step": progress.step, "epoch": progress.epoch})

    fit(
        config,
        model,
        build.build_loss(config.loss),
        StreamSource(config, bank, image_size=model.preprocess.size[0], rank=rank, world=world),
        report=report,
        save=build.checkpoint_writer(run, config, shards, bank),
        validate=job["validator"],
        resume=saved,
        device=device,
        rank=rank,
        world=world,
    )
