"""The searcher of a sweep: connects Ray Tune to the Optuna study."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import TrialState
from ray.tune import Callback
from ray.tune.search.optuna import OptunaSearch

from his2lip.config import digest
from his2lip.errors import His2lipError, redact
from his2lip.resources import code_version
from his2lip.tuning.study import RECORD, TrialRow, record_digest, to_row
from his2lip.tuning.trial import VALUE

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial
    from ray.tune.experiment import Trial


class PlacedTPE(BaseSampler):
    """TPE whose sample for a trial depends only on the seed, the trial's position and the study.

    Optuna's own sampler starts again at its seed when a sweep is resumed, and repeats its first samples.
    """

    def __init__(self, *, seed: int, startup: int) -> None:
        self._seed, self._startup = seed, startup
        self._tpe = TPESampler(seed=seed, n_startup_trials=startup)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        # A trial that failed is run again at its own position.
        counted = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.RUNNING))
        position = sum(t.number != trial.number for t in counted)
        seed = int(digest([self._seed, position])[:8], 16)
        self._tpe = TPESampler(seed=seed, n_startup_trials=self._startup)
        self._tpe.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._tpe.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._tpe.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._tpe.sample_independent(study, trial, param_name, param_distribution)


class StudySearch(OptunaSearch):
    """OptunaSearch that also records each trial's attributes in the study and calls `on_trial` at its end.

    error    a user's mistake, or an error of `on_trial`, which Tune would wrap
    records  Tune's own trials of this call
    """

    def __init__(self, study: Study, *, on_trial: Callable[[TrialRow], None], **options: Any) -> None:
        super().__init__(study_name=study.study_name, storage=study._storage, **options)
        self._study, self._on_trial = study, on_trial
        self.ended = 0
        self.raised = 0
        self.error: Exception | None = None
        self.records: list[Trial] = []

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        params = super().suggest(trial_id)
        if params is not None:
            self._ot_trials[trial_id].set_user_attr("code_version", code_version())
        return {"number": self._ot_trials[trial_id].number, "params": params}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        trial = self._ot_trials[trial_id]
        record = next(record for record in self.records if record.trial_id == trial_id)
        for key, value in _attributes(result, record).items():
            trial.set_user_attr(key, value)
        raised = error or result is None or result.get("error") is not None
        self.raised += raised
        if raised:
            super().on_trial_complete(trial_id, None, error=True)
        else:
            value = result["best"]  # type: ignore[index]
            trial.set_user_attr(RECORD, record_digest(trial.params, value, trial.user_attrs))
            super().on_trial_complete(trial_id, {VALUE: value})
        if result and isinstance(result.get("mistake"), His2lipError):
            self.error = result["mistake"]
        self.ended += 1
        try:
            self._on_trial(to_row(self._study.get_trials(deepcopy=False)[trial.number]))
        except Exception as problem:
            self.error = problem

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
    """Gives the searcher Tune's trials, which have the reason why a process failed."""

    def __init__(self, search: StudySearch) -> None:
        self._search = search

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        self._search.records = trials


def _attributes(result: dict | None, record: Trial) -> dict[str, Any]:
    """The attributes of a trial in the study, besides its value."""
    if result is None:
        lines = Path(record.error_file).read_text(encoding="utf-8").strip().splitlines()
        return {"error": redact(f"its process failed: {lines[-1]}")}
    attrs = {key: result[key] for key in ("failed", "error") if result.get(key) is not None}
    attrs |= {key: result[key] for key in ("reports", "metrics")}
    attrs["seconds"] = round(result["time_total_s"], 3)
    return attrs if result["ended"] else {**attrs, "stopped": True}
