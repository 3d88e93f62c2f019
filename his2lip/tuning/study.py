"""The Optuna study of a sweep: opened, prepared to resume, and read as a table of trials."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from his2lip.config import digest, recorded
from his2lip.errors import RunError, first_line
from his2lip.tuning.config import SweepConfig

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

RECORD = "sha256"  # attribute of a trial with a value: the digest of its record
_DAMAGED = "its record in the study is damaged"
State = Literal["finished", "stopped", "failed", "error", "interrupted", "running", "waiting"]
# States of trials that have a value and are not run again.
DONE: tuple[State, ...] = ("finished", "stopped", "failed")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialRow:
    """One trial. `value` is the metric of its best report; for a failed trial, the sweep's worst value.

    finished: ran to its end. stopped: ended early by ASHA. failed: its metric was NaN or infinite.
    error: raised an exception. interrupted: its sweep was stopped. Both run again under a new number.
    """

    number: int
    state: State
    params: dict[str, Any]
    value: float | None = None
    metrics: dict[str, float]  # of the report that has `value`
    reports: int = 0
    seconds: float | None = None
    note: str | None = None  # why it failed, or the exception
    retry_of: int | None = None  # number of the trial that this one repeats
    code_version: str | None = None  # of the code that ran it; None for trials from before it was recorded

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def open_study(config: SweepConfig, url: str, *, inputs: Mapping[str, Any]) -> Study:
    """The study of the sweep, created where there is none.

    Raises RunError where the study of this name has another configuration or other inputs.
    """
    import optuna

    try:
        storage = optuna.storages.RDBStorage(url)
    except Exception as error:  # SQLAlchemy's own family, or the import of a driver
        what = f"the study's database cannot be opened: {first_line(error)}"
        raise RunError(what, where=url, key="study", fix="check study=URL") from None
    direction: Literal["maximize", "minimize"] = "maximize" if config.mode == "max" else "minimize"
    study = optuna.create_study(
        study_name=config.name, storage=storage, direction=direction, load_if_exists=True
    )
    identity = {**config.identity(), **inputs}
    known = study.user_attrs.get("identity")
    if known is None:
        study.set_user_attr("identity", identity)
    elif digest(known) != digest(identity):
        key, before, now = _first_difference(known, identity)
        values = f"{before!r:.60} then, {now!r:.60} now"
        raise RunError(
            f"the sweep '{config.name}' was started with another {key} ({values})",
            where=url,
            key=key,
            fix="give this one another name, or start again with --fresh",
        )
    study.set_user_attr("sweep", recorded(config))
    return study


def prepare_resume(study: Study, config: SweepConfig) -> int:
    """Prepares an interrupted study to resume; returns the number of trials that remain.

    RUNNING trials become FAIL. Each trial that ended without a value is enqueued again with the same
    parameters, and so is each point that was not enqueued yet.
    """
    from optuna.trial import TrialState

    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study._storage.set_trial_user_attr(trial._trial_id, "interrupted", True)
        study.tell(trial.number, state=TrialState.FAIL)
    trials = study.get_trials(deepcopy=False)
    remaining = config.trials - sum(to_row(t).state in DONE for t in trials)
    if remaining <= 0:
        return 0
    retried = {t.user_attrs.get("retry_of") for t in trials}
    for trial in trials:
        params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        if trial.state == TrialState.FAIL and trial.number not in retried and params:
            _enqueue(study, params, retry_of=trial.number, point=trial.user_attrs.get("point"))
    known = {t.user_attrs.get("point") for t in trials}
    for point in config.points:
        if digest(point) not in known:
            _enqueue(study, point, point=digest(point))
    return remaining


def rows(study: Study) -> list[TrialRow]:
    """All trials of a study, by number."""
    return [to_row(trial) for trial in study.get_trials(deepcopy=False)]


def best_rows(table: list[TrialRow], mode: str, count: int) -> list[TrialRow]:
    """The `count` best trials with a finite metric, best first; of equal ones the earlier is first."""
    sign = -1 if mode == "max" else 1
    own = [row for row in table if row.state in ("finished", "stopped") and row.value is not None]
    return sorted(own, key=lambda row: (sign * (row.value or 0.0), row.number))[:count]


def to_row(trial: FrozenTrial) -> TrialRow:
    """A trial of Optuna as a TrialRow."""
    attrs, damaged = trial.user_attrs, _is_damaged(trial)
    return TrialRow(
        number=trial.number,
        state="error" if damaged else _state(trial),
        params=dict(trial.params),
        value=trial.value if trial.state.name == "COMPLETE" and not damaged else None,
        metrics=json.loads(attrs.get("metrics", "{}")),
        reports=attrs.get("reports", 0),
        seconds=attrs.get("seconds"),
        note=_DAMAGED if damaged else attrs.get("failed") or attrs.get("error"),
        retry_of=attrs.get("retry_of"),
        code_version=attrs.get("code_version"),
    )


def record_digest(params: Mapping[str, Any], value: float, attrs: Mapping[str, Any]) -> str:
    """Digest of what the study has to keep of a trial with a value."""
    return digest([dict(params), value, {key: v for key, v in attrs.items() if key != RECORD}])


def _is_damaged(trial: FrozenTrial) -> bool:
    """Whether a trial with a value is not what was recorded; earlier versions recorded no digest."""
    known = trial.user_attrs.get(RECORD)
    if known is None or trial.state.name != "COMPLETE" or trial.value is None:
        return False
    return bool(known != record_digest(trial.params, trial.value, trial.user_attrs))


def _state(trial: FrozenTrial) -> State:
    attrs = trial.user_attrs
    match trial.state.name:
        case "COMPLETE":
            return "failed" if "failed" in attrs else "stopped" if attrs.get("stopped") else "finished"
        case "FAIL":
            return "interrupted" if "interrupted" in attrs else "error"
        case "WAITING":
            return "waiting"
        case _:
            return "running"


def _enqueue(study: Study, params: Mapping[str, Any], **attrs: Any) -> None:
    with warnings.catch_warnings():
        # The values are checked against the space before.
        warnings.simplefilter("ignore", UserWarning)
        study.enqueue_trial(dict(params), user_attrs={k: v for k, v in attrs.items() if v is not None})


def _first_difference(known: Any, now: Any, path: str = "") -> tuple[str, Any, Any]:
    """The first dotted key at which two nested mappings differ, and both values."""
    if isinstance(known, Mapping) and isinstance(now, Mapping):
        for key in sorted({*known, *now}):
            if known.get(key) != now.get(key):
                return _first_difference(known.get(key), now.get(key), f"{path}.{key}" if path else key)
    return path, known, now
