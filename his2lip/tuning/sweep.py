"""A sweep: Ray Tune runs the trials, Optuna chooses and records them; the same call resumes it."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from his2lip.config import dump_yaml, recorded
from his2lip.errors import RunError
from his2lip.logs import log_to
from his2lip.runtime import check_nodes
from his2lip.tuning.config import SweepConfig
from his2lip.tuning.driver_lock import only_driver
from his2lip.tuning.library_settings import silence_optuna, tune_settings
from his2lip.tuning.study import (
    DONE,
    OPEN,
    TrialRow,
    best_rows,
    earlier_results,
    open_storage,
    open_study,
    pareto_front,
    prepare_resume,
    rows,
    warm_points,
)
from his2lip.tuning.sweep_directory import CONFIG, STUDY, SweepDir, open_sweep, study_at
from his2lip.tuning.trial import Objective

if TYPE_CHECKING:
    from optuna import Study
    from ray.tune import Tuner

    from his2lip.training import TrainConfig
    from his2lip.tuning.search import StudySearch

_log = logging.getLogger(__name__)

# A sweep ends where its first trials all raise errors, this many of them.
MAX_FIRST_ERRORS = 3
# Restarts of a trial whose process dies.
MAX_DEATHS = 2
# More reports than any trial makes, since ASHA would stop a trial at its last rung.
MANY_REPORTS = 10**6


@dataclass(frozen=True)
class SweepResult:
    """A sweep after a call of `run_sweep`. `finished_before`: no trial remained."""

    name: str
    sweep: SweepDir
    study_url: str
    trials: list[TrialRow]
    best: TrialRow | None  # by the first metric; None where no trial has a value
    finished_before: bool
    front: tuple[TrialRow, ...] = ()  # with several metrics, the Pareto front

    @property
    def code_versions(self) -> dict[str, int]:
        """How many of the trials that have a value ran with each version of the code."""
        return dict(Counter(row.code_version or "unknown" for row in self.trials if row.state in DONE))

    @property
    def params(self) -> dict[str, Any]:
        """The best trial's parameters."""
        return self.best.params if self.best else {}

    @property
    def directory(self) -> Path:
        """The folder of this machine that has the sweep's files."""
        return self.sweep.path

    @property
    def best_checkpoint(self) -> Path | None:
        """The checkpoint of the best trial on this machine; None where no trial wrote one."""
        return self.sweep.best(self.best.name) if self.best else None

    @property
    def best_address(self) -> str | None:
        """The name by which other commands load that checkpoint; None where there is none."""
        return self.sweep.address(self.best.name) if self.best and self.best_checkpoint else None

    def study(self) -> Study:
        """The Optuna study itself, read from its database."""
        import optuna

        return optuna.load_study(study_name=self.name, storage=self.study_url)


def run_sweep(
    config: SweepConfig,
    objective: Objective,
    *,
    on_trial: Callable[[TrialRow], None] | None = None,
    inputs: Mapping[str, Any] | None = None,
    places: Iterable[str] = (),
    fresh: bool = False,
) -> SweepResult:
    """Runs the trials that remain, on the Ray that the driver started, and returns all trials.

    objective  `objective(params, report)`, called in Ray actors
    on_trial   called in this process after each trial
    inputs     what the trials depend on besides the options of the sweep; default: `config.train`
    places     absolute paths that the trials read, which all nodes of a cluster have to see
    fresh      removes an earlier sweep of this name first

    A trial that fails (NaN) or hangs is not run again. One that raises an exception is repeated at once, and
    where it raises again it is recorded as an error, and runs again at the next call. A process that dies is
    restarted up to `MAX_DEATHS` times. Repeats have the parameters, the place and the reports of the first
    try, so that the study ends as without the fault.
    Raises RunError where the name is in use by other inputs, where another process is running this sweep,
    where the study lacks trials that the sweep has, or where all first trials raise; and a user's mistake in
    a trial (His2lipError) as it is.
    """
    import ray

    assert ray.is_initialized(), "the driver starts Ray"
    sweep = open_sweep(config.storage, config.name)
    url = config.study or f"sqlite:///{sweep.path / STUDY}"
    alone = only_driver(url, config.name) if config.study else nullcontext()
    with sweep.locked(), alone, silence_optuna(), tune_settings():
        if fresh:
            _remove_earlier(config, sweep, url)
        study = open_study(config, url, inputs={"train": config.train} if inputs is None else inputs)
        sweep.refuse_unknown([row.name for row in rows(study) if row.state != "waiting"])
        (sweep.path / CONFIG).write_text(dump_yaml(recorded(config)), encoding="utf-8")
        warm = warm_points(study, config, lambda name: earlier_trials(config, name))
        remaining = prepare_resume(study, config, warm=warm)
        log_to(sweep.path)
        _log.info("sweep %s: %d trials to run", config.name, remaining)
        if remaining:
            check_nodes(read=places, write=[sweep.shared])
            sweep.store()
            sweep.remove_unknown([row.name for row in rows(study)])
            _run(config, objective, study, remaining, sweep, on_trial or (lambda row: None))
        table = rows(study)
    best = best_rows(table, config.mode, 1)
    front = tuple(front_of(config, table))
    return SweepResult(config.name, sweep, url, table, best[0] if best else None, not remaining, front)


def front_of(config: SweepConfig, table: list[TrialRow]) -> list[TrialRow]:
    """The Pareto front of a sweep with several metrics; of one with one metric, none."""
    return pareto_front(table, config.metrics, config.mode) if len(config.metrics) > 1 else []


def earlier_trials(config: SweepConfig, name: str) -> list[TrialRow]:
    """The trials of an earlier sweep with a value, best first. Raises RunError where there is no such sweep.

    name  of a sweep in the same storage, or its folder or URI
    """
    import optuna

    named = name if "://" in name else f"{config.storage.rstrip('/')}/tune/{name}"
    for place in dict.fromkeys((name, named)):
        with study_at(place) as url:
            if url is not None:
                study = optuna.load_study(study_name=None, storage=url)
                mode = "max" if study.directions[0].name == "MAXIMIZE" else "min"
                table = rows(study)
                return best_rows(table, mode, len(table))
    fix = "give the name, the folder or the URI of a sweep, or paper"
    raise RunError("there is no earlier sweep here", where=named, key="warm_start", fix=fix)


def _run(
    config: SweepConfig,
    objective: Objective,
    study: Study,
    count: int,
    sweep: SweepDir,
    on_trial: Callable[[TrialRow], None],
) -> None:
    """Runs `count` trials and records them in the study."""
    from his2lip.tuning.search import StudySearch

    ended = {row.number: row for row in rows(study) if row.state not in OPEN}

    def end(row: TrialRow) -> None:
        sweep.store()
        ended[row.number] = row
        keep_best(config, sweep, list(ended.values()))  # last: a stored study has the checkpoints of its best
        on_trial(row)

    search = StudySearch(study, config, sweep, on_trial=end)
    sweep.remove_scratch()
    try:
        with sweep.collected_log():
            _tuner(config, objective, search, count, sweep, _scheduler(config, study)).fit()
    finally:
        sweep.remove_scratch()
    if search.error is not None:
        raise search.error
    keep_best(config, sweep, list(ended.values()))  # what a stopped trial wrote after its end
    table = rows(study)
    if search.raised and not any(row.state in DONE for row in table):
        note = [row.note for row in table if row.state == "error"][-1]
        what = f"every trial raised an error, the last: {note}"
        raise RunError(what, where=f"sweep {config.name}", key="train")


def _tuner(
    config: SweepConfig,
    objective: Objective,
    search: StudySearch,
    count: int,
    sweep: SweepDir,
    scheduler: Any,
) -> Tuner:
    import ray
    from ray import tune

    from his2lip.tuning.search import TrialRecords
    from his2lip.tuning.trial import TrialActor

    actor = tune.with_parameters(
        TrialActor,
        objective=objective,
        metrics=config.metrics,
        mode=config.mode,
        worst=config.worst_value,
        sweep=sweep,
        timeout=config.trial_timeout,
    )
    return tune.Tuner(
        tune.with_resources(actor, _resources(config, ray.cluster_resources())),
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=scheduler,
            num_samples=count,
            max_concurrent_trials=config.max_concurrent,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=config.name,
            storage_path=str(sweep.scratch),
            stop=_stopper(search),
            verbose=0,
            callbacks=[TrialRecords(search, sweep, timeout=config.trial_timeout)],
            # The objective writes its own checkpoints.
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=MAX_DEATHS),
        ),
    )


def gpus_of_sweep(config: SweepConfig, base: TrainConfig, resources: Mapping[str, float]) -> int:
    """GPUs that the trials that run at once ask for on a Ray with these `resources`.

    base  the training of a trial, whose workers ask for GPUs of their own where it has several
    """
    from his2lip.training import gpus_of_run

    own = gpus_of_run(base, resources) if base.workers.num > 1 else 0
    of_trial = _resources(config, resources).get("gpu", 0.0)
    return math.ceil(round((of_trial + own) * config.max_concurrent, 6))


def _resources(config: SweepConfig, total: Mapping[str, float]) -> dict[str, float]:
    """A GPU or a share of one, but no CPU, since two trials would leave none for Ray Data.

    A trial with workers of its own leaves the GPUs to them. Tune refuses an empty request, so trials without
    a GPU request one byte of memory.

    total  the resources of the cluster
    """
    workers = config.train.get("workers", {})
    lends = workers.get("num", 1) == 1 and workers.get("use_gpu", "auto") is not False
    here = total.get("GPU", 0.0) if lends else 0.0
    gpus = min(1.0, here / config.max_concurrent) if config.gpus == "auto" else config.gpus
    return {"cpu": 0, "gpu": gpus} if gpus else {"cpu": 0, "memory": 1}


def _scheduler(config: SweepConfig, study: Study) -> Any:
    """Tune's scheduler. ASHA begins with the reports of the trials that ended in earlier calls.

    Of several metrics the study has no reports; ASHA then compares only trials of one call.
    """
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    from his2lip.tuning.search import NewestFirst
    from his2lip.tuning.trial import VALUE

    class Plain(NewestFirst, FIFOScheduler):
        pass

    class Halving(NewestFirst, ASHAScheduler):
        pass

    if config.scheduler.kind == "none":
        return Plain()
    halving = Halving(
        metric=VALUE,
        mode=config.mode,
        grace_period=config.scheduler.grace,
        reduction_factor=config.scheduler.reduction,
        max_t=MANY_REPORTS,
    )
    controller: Any = None  # ASHA does not use it
    for number, results in enumerate(earlier_results(study, worst=config.worst_value)):
        trial: Any = SimpleNamespace(trial_id=f"earlier-{number}")
        halving.on_trial_add(controller, trial)
        for iteration, value in results:
            halving.on_trial_result(controller, trial, {"training_iteration": iteration, VALUE: value})
    return halving


def _stopper(search: StudySearch) -> Any:
    """Ends the sweep at a user's mistake, or where the first trials all raise errors."""
    from ray.tune import Stopper

    class Broken(Stopper):
        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            return search.error is not None or search.ended == search.raised >= MAX_FIRST_ERRORS

    return Broken()


def keep_best(config: SweepConfig, sweep: SweepDir, ended: list[TrialRow]) -> None:
    """Removes what ended trials have written, except of the `keep` best and of the Pareto front."""
    kept = {row.name for row in (*best_rows(ended, config.mode, config.keep), *front_of(config, ended))}
    sweep.remove_trials({row.name for row in ended} - kept)


def _remove_earlier(config: SweepConfig, sweep: SweepDir, url: str) -> None:
    """Removes an earlier sweep of this name: its study, also a damaged file of it, checkpoints and plots."""
    import optuna

    if config.study is None:
        for end in ("-journal", "-wal", "-shm", ""):  # SQLite would read a killed process's into a new file
            (sweep.path / f"{STUDY}{end}").unlink(missing_ok=True)
    elif config.name in optuna.get_all_study_names(storage=(storage := open_storage(url))):
        optuna.delete_study(study_name=config.name, storage=storage)
    sweep.clear()
