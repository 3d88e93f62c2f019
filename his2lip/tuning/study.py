"""The Optuna study of a sweep: opened, prepared to resume, and read as a table of trials."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from his2lip.config import digest, recorded
from his2lip.errors import RunError, first_line
from his2lip.tuning.config import PAPER, PAPER_POINT, SweepConfig
from his2lip.tuning.space import Params, Space, from_study, is_active, to_study

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

RECORD_DIGEST = "sha256"  # attribute of a trial that has ended: the digest of its record
REPORTS_DIGEST = "reports_sha256"  # attribute of a trial that made reports: the digest of its curve
CODE_VERSION = "code_version"  # attribute of a trial: the code that runs it; set after its parameters
NAME = "name"  # attribute of a trial whose name in its sweep's directory is not its number
STOPPED = "best"  # attribute of a trial that ASHA stopped: its value, which Optuna's own pruned trials lack
RETRY_OF = "retry_of"  # attribute of a trial that repeats another: the number of that one
_POINT = "point"  # attribute of a trial of a given point: the digest of the point
_DAMAGED = "its record in the study is damaged"
State = Literal["finished", "stopped", "failed", "hung", "error", "interrupted", "running", "waiting"]
# States of trials that end without a value and are not run again; an attribute of this name has the reason.
BAD: tuple[State, ...] = ("failed", "hung")
# States of trials that are not run again.
DONE: tuple[State, ...] = ("finished", "stopped", *BAD)
# States of trials that have not ended.
OPEN: tuple[State, ...] = ("running", "waiting")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialRow:
    """One trial. `value` is the first metric of its best report; trials that failed or hung have none.

    finished: ran to its end (Optuna: COMPLETE). stopped: ended early by ASHA (PRUNED). failed: a metric was
    NaN or infinite. hung: made no report for `trial_timeout` (both FAIL). error: raised an exception twice.
    interrupted: its sweep was stopped (both FAIL, and run again under a new number).
    """

    number: int
    name: str  # in the directory of its sweep
    state: State
    params: dict[str, Any]
    value: float | None = None
    metrics: dict[str, float]  # of the report that has `value`
    reports: int = 0
    seconds: float | None = None
    note: str | None = None  # why it failed or hung, or the exception
    retry_of: int | None = None  # number of the trial that this one repeats
    code_version: str | None = None  # of the code that ran it; None for trials from before it was recorded

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def open_study(config: SweepConfig, url: str, *, inputs: Mapping[str, Any]) -> Study:
    """The study of the sweep, created where there is none.

    Raises RunError where the study of this name has another configuration or other inputs.
    """
    import optuna

    direction: Literal["maximize", "minimize"] = "maximize" if config.mode == "max" else "minimize"
    study = optuna.create_study(
        study_name=config.name,
        storage=open_storage(url),
        directions=[direction] * len(config.metrics),
        load_if_exists=True,
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls it experimental
        study.set_metric_names(list(config.metrics))
    return study


def open_storage(url: str) -> RDBStorage:
    """The database of studies at `url`. Raises RunError where it cannot be opened."""
    import optuna

    try:
        return optuna.storages.RDBStorage(url)
    except Exception as error:  # SQLAlchemy's own family, or the import of a driver
        what = f"the study's database cannot be opened: {first_line(error)}"
        fix = "check study=URL; --fresh replaces a damaged study.db of the sweep's folder"
        raise RunError(what, where=url, key="study", fix=fix) from None


def prepare_resume(study: Study, config: SweepConfig, *, warm: Iterable[Params] = ()) -> int:
    """Prepares an interrupted study to resume; returns the number of trials that remain.

    RUNNING trials become FAIL. Each trial that was interrupted, raised an error or has a damaged record is
    enqueued again with the same parameters, and so is each point that was not enqueued yet, those of `warm`
    after the config's own. Where not all parameters had been drawn, the trial that repeats it draws all, as
    the sampler would have: those that are given would shift its draws.
    """
    from optuna.trial import TrialState

    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study._storage.set_trial_user_attr(trial._trial_id, "interrupted", True)
        study.tell(trial.number, state=TrialState.FAIL)
    trials = study.get_trials(deepcopy=False)
    remaining = config.trials - sum(to_row(t).state in DONE for t in trials)
    if remaining <= 0:
        return 0
    retried = {t.user_attrs.get(RETRY_OF) for t in trials}
    for trial in trials:
        if trial.number in retried or to_row(trial).state not in ("error", "interrupted"):
            continue
        own = trial.params if _is_drawn(trial) else {}
        if _is_damaged(trial):  # its parameters may be what is damaged
            own = to_study(config.dimensions, _within(config.dimensions, from_study(own)))
        params = {**own, **trial.system_attrs.get("fixed_params", {})}
        _enqueue(study, params, {RETRY_OF: trial.number, _POINT: trial.user_attrs.get(_POINT)})
    known = {t.user_attrs.get(_POINT) for t in trials}
    for point in (*config.all_points, *warm):
        if digest(point) not in known:
            known.add(digest(point))
            _enqueue(study, to_study(config.dimensions, point), {_POINT: digest(point)})
    return remaining


def warm_points(study: Study, config: SweepConfig, earlier: Callable[[str], list[TrialRow]]) -> list[Params]:
    """The points of `warm_start`, as they were when the sweep was started.

    earlier  the trials of an earlier sweep, best first
    """
    known: list[Params] | None = study.user_attrs.get("warm_points")
    if known is None:
        known = []
        for name in config.warm_start:
            best = [PAPER_POINT] if name == PAPER else [row.params for row in earlier(name)]
            points = [_within(config.space, params) for params in best]
            known += [point for point in points if point][: config.warm_start_best]
        study.set_user_attr("warm_points", known)
    return known


def _within(space: Space, params: Mapping[str, Any]) -> Params:
    """Those of the parameters that a space can have; the sampler draws the others."""
    kept: Params = {}
    for key, dimension in space.items():
        if key in params and dimension.contains(params[key]) and is_active(dimension, kept, space):
            kept[key] = params[key]
    return kept


def origin(number: int, retry_of: Mapping[int, int | None]) -> int:
    """The number of the trial that a trial repeats, over any number of repeats; else its own."""
    while (before := retry_of.get(number)) is not None:
        number = before
    return number


def rows(study: Study) -> list[TrialRow]:
    """All trials of a study, by number."""
    return [to_row(trial) for trial in study.get_trials(deepcopy=False)]


def best_rows(table: list[TrialRow], mode: str, count: int) -> list[TrialRow]:
    """The `count` best trials by the first metric, best first; of equal ones the earlier is first.

    A trial that was repeated counts as its first try, so that an interruption does not change the order.
    """
    sign = -1 if mode == "max" else 1
    own = [row for row in table if row.value is not None]
    before = {row.number: row.retry_of for row in table}
    return sorted(own, key=lambda row: (sign * (row.value or 0.0), origin(row.number, before)))[:count]


def pareto_front(table: list[TrialRow], metrics: tuple[str, ...], mode: str) -> list[TrialRow]:
    """The trials that no other one dominates: as good in all metrics, better in one. Ordered by the first."""
    sign = 1 if mode == "max" else -1
    own = best_rows(table, mode, len(table))
    points = [[sign * row.metrics[name] for name in metrics] for row in own]
    return [
        row
        for row, mine in zip(own, points, strict=True)
        if not any(
            all(o >= m for o, m in zip(other, mine, strict=True)) and other != mine for other in points
        )
    ]


def earlier_results(study: Study, *, worst: float) -> Iterator[list[tuple[int, float]]]:
    """The results (iteration, value) that a scheduler got from each trial that has ended.

    They are its reports. One more follows: at the end of a trial its last value again, or `worst` where it
    failed or hung; of a trial that the scheduler stopped, none.
    """
    for trial in study.get_trials(deepcopy=False):
        row, reports = to_row(trial), sorted(trial.intermediate_values.items())
        if row.state == "finished" and reports:
            yield [*reports, (row.reports + 1, reports[-1][1])]
        elif row.state == "stopped":
            yield reports
        elif row.state in BAD:
            yield [*reports, (max(row.reports, 1), worst)]


def to_row(trial: FrozenTrial) -> TrialRow:
    """A trial of Optuna as a TrialRow."""
    attrs, damaged = trial.user_attrs, _is_damaged(trial)
    state: State = "error" if damaged else _state(trial)
    return TrialRow(
        number=trial.number,
        name=attrs.get(NAME, str(trial.number)),
        state=state,
        params=from_study(trial.params),
        value=_value(trial) if state in ("finished", "stopped") else None,
        metrics=json.loads(attrs.get("metrics", "{}")),
        reports=attrs.get("reports", 0),
        seconds=attrs.get("seconds"),
        note=_DAMAGED if damaged else next((attrs[key] for key in (*BAD, "error") if key in attrs), None),
        retry_of=attrs.get(RETRY_OF),
        code_version=attrs.get(CODE_VERSION),
    )


def record_digest(params: Mapping[str, Any], values: Sequence[float], attrs: Mapping[str, Any]) -> str:
    """Digest of what the study has to keep of a trial that has ended; `values` are those of its metrics."""
    value = values[0] if len(values) == 1 else [*values]
    return digest([dict(params), value, {key: v for key, v in attrs.items() if key != RECORD_DIGEST}])


def reports_digest(curve: Mapping[int, float]) -> str:
    """Digest of a trial's reports (step -> value), which TPE compares stopped trials by."""
    return digest(sorted(curve.items()))


def damaged(study: Study) -> frozenset[int]:
    """The numbers of the trials whose records are not what was recorded."""
    return frozenset(trial.number for trial in study.get_trials(deepcopy=False) if _is_damaged(trial))


def _is_drawn(trial: FrozenTrial) -> bool:
    """Whether all parameters of a trial were drawn: the code version is recorded after the last of them."""
    return CODE_VERSION in trial.user_attrs


def _is_damaged(trial: FrozenTrial) -> bool:
    """Whether a trial is not what was recorded when it ended; earlier versions recorded fewer digests."""
    attrs = trial.user_attrs
    if RECORD_DIGEST not in attrs:
        return False
    as_told = attrs[RECORD_DIGEST] == record_digest(trial.params, stored_values(trial), attrs)
    return not as_told or attrs.get(REPORTS_DIGEST) not in (None, reports_digest(trial.intermediate_values))


def stored_values(trial: FrozenTrial) -> list[float]:
    """The metrics of a trial's best report, as its study has them; none for one that has no value."""
    if trial.state.name == "PRUNED":
        return list(trial.user_attrs.get(STOPPED, ()))
    return list(trial.values or ()) if trial.state.name == "COMPLETE" else []


def _value(trial: FrozenTrial) -> float | None:
    return next(iter(stored_values(trial)), None)


def _state(trial: FrozenTrial) -> State:
    attrs = trial.user_attrs
    match trial.state.name:
        case "COMPLETE":
            return "failed" if "failed" in attrs else "stopped" if attrs.get("stopped") else "finished"
        case "PRUNED":
            return "stopped"
        case "FAIL":
            known: tuple[State, ...] = (*BAD, "interrupted")
            return next((state for state in known if state in attrs), "error")
        case "WAITING":
            return "waiting"
        case _:
            return "running"


def _enqueue(study: Study, params: Mapping[str, Any], attrs: Mapping[str, Any]) -> None:
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
