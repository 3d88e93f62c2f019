"""A sweep: Ray Tune runs the trials, Optuna chooses and records them; the same call resumes it."""

from __future__ import annotations

import logging
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from his2lip.config import dump_yaml, recorded
from his2lip.errors import RunError
from his2lip.files import locked
from his2lip.logs import log_to
from his2lip.runtime import check_nodes
from his2lip.training import refuse_object_store
from his2lip.tuning.config import SweepConfig
from his2lip.tuning.library_settings import silence_optuna, tune_settings
from his2lip.tuning.study import (
    DONE,
    OPEN,
    TrialRow,
    best_rows,
    open_study,
    pareto_front,
    prepare_resume,
    rows,
    warm_points,
)
from his2lip.tuning.trial import Objective

if TYPE_CHECKING:
    from optuna import Study
    from ray.tune import Tuner

    from his2lip.training import TrainConfig
    from his2lip.tuning.search import StudySearch

_log = logging.getLogger(__name__)

# A sweep ends where its first trials all raise errors, this many of them.
MAX_FIRST_ERRORS = 3
SCRATCH = "ray"  # folder of what is removed when the sweep ends: Tune's state, decoded batches
TRIALS = "trials"  # folder of the trials, each in a folder named by its number
HANGS = "hung"  # folder of what hung trials were doing, each in a file named by its number
# Restarts of a trial whose process dies.
MAX_DEATHS = 2
# More reports than any trial makes, since ASHA would stop a trial at its last rung.
MANY_REPORTS = 10**6


@dataclass(frozen=True)
class SweepResult:
    """A sweep after a call of `run_sweep`. `finished_before`: no trial remained."""

    name: str
    directory: Path
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
    def best_folder(self) -> Path | None:
        """The folder of the best trial."""
        return self.directory / TRIALS / str(self.best.number) if self.best else None

    def study(self) -> Study:
        """The Optuna study itself, read from its database."""
        import optuna

        return optuna.load_study(study_name=self.name, storage=self.study_url)


def sweep_directory(config: SweepConfig) -> Path:
    """The folder of the sweep's study, checkpoints and plots. Raises RunError for an object store."""
    refuse_object_store(config.storage)
    return (Path(config.storage) / "tune" / config.name).resolve()


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
    Raises RunError where the name is in use by other inputs, where another process is running this sweep, or
    where all first trials raise; and a user's mistake in a trial (His2lipError) as it is.
    """
    import ray

    assert ray.is_initialized(), "the driver starts Ray"
    directory = sweep_directory(config)
    directory.mkdir(parents=True, exist_ok=True)
    url = config.study or f"sqlite:///{directory}/study.db"
    busy = RunError(
        "this sweep is being run by another process", where=directory, fix="wait for it, or stop it"
    )
    with locked(directory / "lock", busy=busy), silence_optuna(), tune_settings():
        if fresh:
            _remove_earlier(config, directory, url)
        study = open_study(config, url, inputs={"train": config.train} if inputs is None else inputs)
        (directory / "sweep.yaml").write_text(dump_yaml(recorded(config)), encoding="utf-8")
        warm = warm_points(study, config, lambda name: earlier_trials(config, name))
        remaining = prepare_resume(study, config, warm=warm)
        log_to(directory)
        _log.info("sweep %s: %d trials to run", config.name, remaining)
        if remaining:
            check_nodes(read=places, write=[str(directory)])
            _run(config, objective, study, remaining, directory, on_trial or (lambda row: None))
        table = rows(study)
    best = best_rows(table, config.mode, 1)
    front = tuple(front_of(config, table))
    return SweepResult(config.name, directory, url, table, best[0] if best else None, not remaining, front)


def front_of(config: SweepConfig, table: list[TrialRow]) -> list[TrialRow]:
    """The Pareto front of a sweep with several metrics; of one with one metric, none."""
    return pareto_front(table, config.metrics, config.mode) if len(config.metrics) > 1 else []


def earlier_trials(config: SweepConfig, name: str) -> list[TrialRow]:
    """The trials of an earlier sweep with a value, best first. Raises RunError where there is no such sweep.

    name  of a sweep in the same storage, or its folder
    """
    import optuna

    place = Path(name) if (Path(name) / "study.db").is_file() else Path(config.storage) / "tune" / name
    url = f"sqlite:///{(place / 'study.db').resolve()}"
    if not (place / "study.db").is_file():
        fix = "give the name or the folder of a sweep, or paper"
        raise RunError("there is no earlier sweep here", where=place, key="warm_start", fix=fix)
    study = optuna.load_study(study_name=None, storage=url)
    mode = "max" if study.directions[0].name == "MAXIMIZE" else "min"
    table = rows(study)
    return best_rows(table, mode, len(table))


def _run(
    config: SweepConfig,
    objective: Objective,
    study: Study,
    count: int,
    directory: Path,
    on_trial: Callable[[TrialRow], None],
) -> None:
    """Runs `count` trials and records them in the study."""
    from his2lip.tuning.search import StudySearch

    ended = {row.number: row for row in rows(study) if row.state not in OPEN}

    def end(row: TrialRow) -> None:
        ended[row.number] = row
        table = list(ended.values())
        keep_best(directory, table, mode=config.mode, keep=config.keep, also=front_of(config, table))
        on_trial(row)

    search = StudySearch(study, config, on_trial=end)
    scratch = directory / SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        _tuner(config, objective, search, count, scratch).fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if search.error is not None:
        raise search.error
    table = rows(study)
    if search.raised and not any(row.state in DONE for row in table):
        note = [row.note for row in table if row.state == "error"][-1]
        what = f"every trial raised an error, the last: {note}"
        raise RunError(what, where=f"sweep {config.name}", key="train")


def _tuner(
    config: SweepConfig, objective: Objective, search: StudySearch, count: int, scratch: Path
) -> Tuner:
    from ray import tune

    from his2lip.tuning.search import TrialRecords
    from his2lip.tuning.trial import TrialActor

    actor = tune.with_parameters(
        TrialActor,
        objective=objective,
        metrics=config.metrics,
        mode=config.mode,
        worst=config.worst_value,
        trials=scratch.parent / TRIALS,
        hangs=scratch.parent / HANGS,
        timeout=config.trial_timeout,
    )
    return tune.Tuner(
        tune.with_resources(actor, _resources(config)),
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=_scheduler(config),
            num_samples=count,
            max_concurrent_trials=config.max_concurrent,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=config.name,
            storage_path=str(scratch),
            stop=_stopper(search),
            verbose=0,
            callbacks=[TrialRecords(search)],
            # The objective writes its own checkpoints.
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=MAX_DEATHS),
        ),
    )


def gpus_of_sweep(config: SweepConfig, base: TrainConfig) -> int:
    """GPUs that the trials that run at once ask the connected Ray for.

    base  the training of a trial, whose workers ask for GPUs of their own where it has several
    """
    from his2lip.training import gpus_of_run

    own = gpus_of_run(base) if base.workers.num > 1 else 0
    return math.ceil(round((_resources(config).get("gpu", 0.0) + own) * config.max_concurrent, 6))


def _resources(config: SweepConfig) -> dict[str, float]:
    """A GPU or a share of one, but no CPU, since two trials would leave none for Ray Data.

    A trial with workers of its own leaves the GPUs to them. Tune refuses an empty request, so trials without
    a GPU request one byte of memory.
    """
    import ray

    workers = config.train.get("workers", {})
    lends = workers.get("num", 1) == 1 and workers.get("use_gpu", "auto") is not False
    here = ray.cluster_resources().get("GPU", 0) if lends else 0.0
    gpus = min(1.0, here / config.max_concurrent) if config.gpus == "auto" else config.gpus
    return {"cpu": 0, "gpu": gpus} if gpus else {"cpu": 0, "memory": 1}


def _scheduler(config: SweepConfig) -> Any:
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    from his2lip.tuning.search import NewestFirst
    from his2lip.tuning.trial import VALUE

    class Plain(NewestFirst, FIFOScheduler):
        pass

    class Halving(NewestFirst, ASHAScheduler):
        pass

    if config.scheduler.kind == "none":
        return Plain()
    return Halving(
        metric=VALUE,
        mode=config.mode,
        grace_period=config.scheduler.grace,
        reduction_factor=config.scheduler.reduction,
        max_t=MANY_REPORTS,
    )


def _stopper(search: StudySearch) -> Any:
    """Ends the sweep at a user's mistake, or where the first trials all raise errors."""
    from ray.tune import Stopper

    class Broken(Stopper):
        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            return search.error is not None or search.ended == search.raised >= MAX_FIRST_ERRORS

    return Broken()


def keep_best(
    directory: Path, table: list[TrialRow], *, mode: str, keep: int, also: Iterable[TrialRow] = ()
) -> None:
    """Removes the folders of ended trials in `directory`/trials, except of the `keep` best and of `also`."""
    kept = {row.number for row in (*best_rows(table, mode, keep), *also)}
    removable = {str(row.number) for row in table if row.number not in kept and row.state not in OPEN}
    for folder in (directory / TRIALS).glob("*"):  # few; most trials have none any more
        if folder.name in removable:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_earlier(config: SweepConfig, directory: Path, url: str) -> None:
    """Removes an earlier sweep of this name: its study, checkpoints and plots."""
    import optuna

    if config.name in optuna.get_all_study_names(storage=url):
        optuna.delete_study(study_name=config.name, storage=url)
    for entry in (TRIALS, HANGS, "plots"):
        shutil.rmtree(directory / entry, ignore_errors=True)
