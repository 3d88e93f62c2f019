"""The searcher of a sweep: connects Ray Tune to the Optuna study."""

from __future__ import annotations

import copy
from collections.abc import Callable, Container
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import TrialState
from ray.tune import Callback
from ray.tune.search import Searcher

from his2lip.config import digest
from his2lip.errors import His2lipError, redact
from his2lip.resources import code_version
from his2lip.tuning.config import SweepConfig
from his2lip.tuning.space import Dimension, from_study, suggest
from his2lip.tuning.study import (
    BAD,
    CODE_VERSION,
    NAME,
    RECORD_DIGEST,
    REPORTS_DIGEST,
    RETRY_OF,
    STOPPED,
    TrialRow,
    damaged,
    origin,
    record_digest,
    reports_digest,
    to_row,
)
from his2lip.tuning.sweep_directory import SweepDir
from his2lip.tuning.trial import VALUE

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial
    from ray.tune.experiment import Trial


class PlacedTPE(BaseSampler):
    """TPE whose sample for a trial depends only on the seed, the trial's place and the trials that ended.

    Optuna's own sampler starts again at its seed when a sweep is resumed, and repeats its first samples. The
    place of a trial is its number among the trials that are not repeats of others. A repeat has the place of
    the trial that it repeats, so a trial that was lost does not change what the others are.

    worst    what a trial that failed or hung counts as, so that TPE avoids its parameters
    ignored  numbers of trials that TPE must not learn from: those whose records are damaged
    """

    def __init__(
        self, *, seed: int, startup: int, worst: float, ignored: Container[int] = frozenset()
    ) -> None:
        self._seed, self._startup, self._worst, self._ignored = seed, startup, worst, ignored
        self._tpe = TPESampler(seed=seed, n_startup_trials=startup)
        self._seen: Any = None

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        trials = study.get_trials(deepcopy=False)
        before = {t.number: t.user_attrs.get(RETRY_OF) for t in trials}
        first = origin(trial.number, before)
        place = sum(number < first and of is None for number, of in before.items())
        seed = int(digest([self._seed, place])[:8], 16)
        self._tpe = TPESampler(seed=seed, n_startup_trials=self._startup)
        sound = [t for t in trials if t.number not in self._ignored]
        bad = len(sound) < len(trials) or any(map(_is_bad, sound))
        self._seen = _SeenByTPE(study, sound, self._worst) if bad else study

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._tpe.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._tpe.sample_relative(self._seen, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._tpe.sample_independent(self._seen, trial, param_name, param_distribution)


class _SeenByTPE:
    """A study of these trials, in which those that failed or hung are complete, with the worst value."""

    def __init__(self, study: Study, trials: list[FrozenTrial], worst: float) -> None:
        self._study = study
        self._trials = [self._as_worst(t, worst) if _is_bad(t) else t for t in trials]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        return [trial for trial in self._trials if states is None or trial.state in states]

    def _as_worst(self, trial: FrozenTrial, worst: float) -> FrozenTrial:
        seen = copy.copy(trial)
        seen.state, seen.values = TrialState.COMPLETE, [worst] * len(self._study.directions)
        return seen


def _is_bad(trial: FrozenTrial) -> bool:
    # The state of a trial needs the digest of its record: only of those that may be bad.
    return any(state in trial.user_attrs for state in BAD) and to_row(trial).state in BAD


class StudySearch(Searcher):
    """Asks the study for the parameters of each trial, and tells it how the trial ended.

    error    a user's mistake, or an error of `on_trial`, which Tune would wrap
    records  Tune's own trials of this call
    """

    def __init__(
        self, study: Study, config: SweepConfig, sweep: SweepDir, *, on_trial: Callable[[TrialRow], None]
    ) -> None:
        super().__init__(metric=VALUE, mode=config.mode)
        study.sampler = PlacedTPE(
            seed=config.seed,
            startup=config.sampler.startup,
            worst=config.worst_value,
            ignored=damaged(study),
        )
        self._study, self._space, self._on_trial = study, config.dimensions, on_trial
        self._sweep = sweep
        self._crossed = bool(config.cross)
        self._trials: dict[str, optuna.Trial] = {}
        self._draws_curves = len(config.metrics) == 1  # Optuna has no curves of several metrics
        self.ended = 0
        self.raised = 0
        self.error: Exception | None = None
        self.records: list[Trial] = []

    def suggest(self, trial_id: str) -> dict[str, Any]:
        trial = self._study.ask()
        params = suggest(self._drawn(trial), trial)
        name = self._sweep.new_trial(trial.number)
        if name != str(trial.number):
            trial.set_user_attr(NAME, name)
        trial.set_user_attr(CODE_VERSION, code_version())  # last: it marks that all parameters are drawn
        self._trials[trial_id] = trial
        return {"number": trial.number, "name": name, "params": params}

    def _drawn(self, trial: optuna.Trial) -> dict[str, Dimension]:
        """The dimensions that a trial has: all, but with `cross` only those that its point sets."""
        if not self._crossed:
            return self._space
        stored = self._study.get_trials(deepcopy=False)[trial.number]
        point = from_study(stored.system_attrs.get("fixed_params", {}))
        return {key: dimension for key, dimension in self._space.items() if key in point}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Adds a report to the curve of the trial."""
        if self._draws_curves and result["reports"] and not result["ended"]:
            self._trials[trial_id].report(result[VALUE], step=result["reports"])

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        trial = self._trials[trial_id]
        record = next(record for record in self.records if record.trial_id == trial_id)
        if error or result is None:
            self._tell_lost(trial, record)
        else:
            self.on_trial_result(trial_id, result)
            self._tell(trial, result)
        self.ended += 1
        try:
            self._on_trial(to_row(self._study.get_trials(deepcopy=False)[trial.number]))
        except Exception as problem:
            self.error = problem

    def _tell_lost(self, trial: optuna.Trial, record: Trial) -> None:
        """Records a trial whose process died more often than it is started."""
        lines = Path(record.error_file).read_text(encoding="utf-8").strip().splitlines()
        trial.set_user_attr("error", redact(f"its process failed: {lines[-1]}"))
        self.raised += 1
        self._study.tell(trial, state=TrialState.FAIL)

    def _tell(self, trial: optuna.Trial, result: dict[str, Any]) -> None:
        attrs: dict[str, Any] = {key: result[key] for key in (*BAD, "error") if result.get(key) is not None}
        self.raised += "error" in attrs
        if isinstance(result.get("mistake"), His2lipError):
            self.error = result["mistake"]
        values = [] if attrs else list(result["best"])
        stopped = not attrs and not result["ended"]
        attrs |= {key: result[key] for key in ("reports", "metrics")}
        attrs["seconds"] = round(result["time_total_s"], 3)
        if stopped:
            attrs[STOPPED] = values
        if curve := trial.storage.get_trial(trial._trial_id).intermediate_values:
            attrs[REPORTS_DIGEST] = reports_digest(curve)
        for key, value in attrs.items():
            trial.set_user_attr(key, value)
        trial.set_user_attr(RECORD_DIGEST, record_digest(trial.params, values, trial.user_attrs))
        if not values:
            self._study.tell(trial, state=TrialState.FAIL)
        elif stopped:
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, values)

    def save(self, checkpoint_path: str) -> None:
        """Does nothing: the state is in the study's database."""

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing, as `save`."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing is pickled: Tune's own way to resume is not used."""
        return {}


class NewestFirst:
    """Mixed into Tune's schedulers: the newest pending trial gets an actor that is free.

    Tune would give it to the oldest pending trial, whose own actor is about to start; it would discard that
    actor and start another for the newest. Short trials would then start one process each.
    """

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        pending = [trial for trial in tune_controller.get_trials() if trial.status == "PENDING"]
        return pending[-1] if pending else None


class TrialRecords(Callback):
    """Gives the searcher Tune's trials, which have the reason why a process failed, and looks for hangs."""

    def __init__(self, search: StudySearch, sweep: SweepDir, *, timeout: float | None) -> None:
        self._search, self._sweep, self._timeout = search, sweep, timeout

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        self._search.records = trials

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A process died, and the next one, perhaps on another machine, has to know whether it hung."""
        if self._timeout is not None:
            try:
                self._sweep.collect_hang(trial.config["name"])
            except His2lipError as problem:
                self._search.error = problem
