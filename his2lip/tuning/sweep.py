"""A sweep: Ray Tune runs the trials, Optuna chooses and keeps them, and the same call goes on with it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from his2lip.config import dump_yaml
from his2lip.errors import RunError
from his2lip.files import locked
from his2lip.logs import log_to
from his2lip.training import refuse_object_store
from his2lip.tuning.config import SweepConfig
from his2lip.tuning.library_settings import quiet_optuna, tune_settings
from his2lip.tuning.study import DONE, TrialRow, best_rows, open_study, rows, take_up
from his2lip.tuning.trial import Objective

if TYPE_CHECKING:
    from optuna import Study
    from ray.tune import Tuner

    from his2lip.tuning.search import StudySearch

_log = logging.getLogger(__name__)

# A sweep of which so many trials raised before any came to a value is broken, not unlucky.
HOPELESS = 3
TRIALS = "trials"  # the folder of the trials' own folders, one a number
# More reports than any trial makes: ASHA would stop a trial that reaches its last rung.
MANY_REPORTS = 10**6


@dataclass(frozen=True)
class SweepResult:
    """How a sweep stands after a call. `finished_before`: nothing was left to run."""

    name: str
    directory: Path
    study_url: str
    trials: list[TrialRow]
    best: TrialRow | None  # None where no trial came to a finite value
    finished_before: bool

    @property
    def params(self) -> dict[str, Any]:
        """The best trial's parameters."""
        return self.best.params if self.best else {}

    @property
    def best_folder(self) -> Path | None:
        """What the best trial kept."""
        return self.directory / TRIALS / str(self.best.number) if self.best else None

    def study(self) -> Study:
        """The Optuna study itself, read from its database."""
        import optuna

        return optuna.load_study(study_name=self.name, storage=self.study_url)


def sweep_directory(config: SweepConfig) -> Path:
    """Where the sweep's study, trials' checkpoints and plots are. Raises RunError for an object store."""
    refuse_object_store(config.storage)
    return (Path(config.storage) / "tune" / config.name).resolve()


def run_sweep(
    config: SweepConfig,
    objective: Objective,
    *,
    on_trial: Callable[[TrialRow], None] | None = None,
    inputs: Mapping[str, Any] | None = None,
    fresh: bool = False,
) -> SweepResult:
    """Runs the trials that are still to run, on the Ray that the driver started, and returns all of them.

    `objective(params, report)` runs in Ray actors; `on_trial` in this process, after each trial. `inputs` is
    what the trials are made of besides the sweep's own settings: by default, `config.train`.

    A trial whose metric is not finite counts as run, at `config.worst_value`; one that raises is told to the
    study as failed and runs again at the next call. Raises RunError where the name is in use by other inputs,
    where another process is running this sweep, or where every trial raises; and a user's mistake that a
    trial meets (His2lipError) as it is.
    """
    import ray

    assert ray.is_initialized(), "the driver starts Ray"
    directory = sweep_directory(config)
    directory.mkdir(parents=True, exist_ok=True)
    url = config.study or f"sqlite:///{directory}/study.db"
    busy = RunError(
        "this sweep is being run by another process", where=directory, fix="wait for it, or stop it"
    )
    with locked(directory / "lock", busy=busy), quiet_optuna(), tune_settings():
        if fresh:
            _forget(config, directory, url)
        study = open_study(config, url, inputs={"train": config.train} if inputs is None else inputs)
        (directory / "sweep.yaml").write_text(dump_yaml(config), encoding="utf-8")
        remaining = take_up(study, config)
        log_to(directory)
        _log.info("sweep %s: %d trials to run", config.name, remaining)
        if remaining:
            _run(config, objective, study, remaining, directory, on_trial or (lambda row: None))
        table = rows(study)
    best = best_rows(table, config.mode, 1)
    return SweepResult(config.name, directory, url, table, best[0] if best else None, not remaining)


def _run(
    config: SweepConfig,
    objective: Objective,
    study: Study,
    count: int,
    directory: Path,
    on_trial: Callable[[TrialRow], None],
) -> None:
    """Runs `count` trials; their results are in the study."""
    from his2lip.tuning.search import PlacedTPE, StudySearch
    from his2lip.tuning.trial import VALUE

    def end(row: TrialRow) -> None:
        keep_best(directory, rows(study), mode=config.mode, keep=config.keep)
        on_trial(row)

    space = {key: dimension.distribution() for key, dimension in config.space.items()}
    search = StudySearch(
        study,
        on_trial=end,
        space=space,
        metric=VALUE,
        mode=config.mode,
        sampler=PlacedTPE(seed=config.seed, startup=config.sampler.startup),
    )
    scratch = directory / "ray"
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
        raise RunError(f"every trial raised an error, the last: {note}", where=f"sweep {config.name}")


def _tuner(
    config: SweepConfig, objective: Objective, search: StudySearch, count: int, scratch: Path
) -> Tuner:
    from ray import tune

    from his2lip.tuning.search import TrialRecords
    from his2lip.tuning.trial import TrialActor

    actor = tune.with_parameters(
        TrialActor,
        objective=objective,
        metric=config.metric,
        mode=config.mode,
        worst=config.worst_value,
        trials=scratch.parent / TRIALS,
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
            # There is nothing to save at a trial's end: the objective keeps its own checkpoints.
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            # For processes that die, of memory or with their node; what an objective raises is not retried.
            failure_config=tune.FailureConfig(max_failures=2),
        ),
    )


def _resources(config: SweepConfig) -> dict[str, float]:
    """A GPU or a share of one, but no CPU: two trials would starve what they start themselves (Ray Data).

    A trial that drives workers of its own leaves the GPUs to them; one that may not use a GPU takes none.
    Tune refuses an empty request, hence the one byte of memory.
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
    """Ends the sweep at the user's mistake, or where the first trials all raise."""
    from ray.tune import Stopper

    class Broken(Stopper):
        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            return search.error is not None or search.ended == search.raised >= HOPELESS

    return Broken()


def keep_best(directory: Path, table: list[TrialRow], *, mode: str, keep: int) -> None:
    """Removes what ended trials left under `directory`/trials, but for the `keep` best ones."""
    kept = {row.number for row in best_rows(table, mode, keep)}
    for row in table:
        if row.number not in kept and row.state not in ("running", "waiting"):
            shutil.rmtree(directory / TRIALS / str(row.number), ignore_errors=True)


def _forget(config: SweepConfig, directory: Path, url: str) -> None:
    """Removes a sweep of this name: its study, its trials' checkpoints and its plots."""
    import optuna

    if config.name in optuna.get_all_study_names(storage=url):
        optuna.delete_study(study_name=config.name, storage=url)
    for entry in (TRIALS, "plots"):
        shutil.rmtree(directory / entry, ignore_errors=True)
