"""One trial as Ray Tune runs it: the objective works in a thread, one report at a time."""

from __future__ import annotations

import json
import logging
import math
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

from ray.tune import Trainable

from his2lip.errors import ConfigError, His2lipError, did_you_mean, redact
from his2lip.logs import log_to

_log = logging.getLogger(__name__)


class TrialReporter(Protocol):
    """What an objective reports with. Where a call returns True, the objective has to end."""

    number: int  # of the trial, in its study
    folder: Path  # for the trial's files; it may not exist yet

    def __call__(self, metrics: Mapping[str, float], /) -> bool: ...


Objective = Callable[[dict[str, Any], TrialReporter], None]


@dataclass(frozen=True)
class Reported:
    """The objective reported these metrics and waits."""

    metrics: dict[str, float]


@dataclass(frozen=True)
class Ended:
    """The objective returned, or raised `error` (with its traceback as text)."""

    error: Exception | None = None
    trace: str = ""


class ObjectiveThread:
    """One call of an objective in a thread, which runs only while `next` waits for it.

    It is also the `report` that the objective is given.
    """

    def __init__(
        self, objective: Objective, params: dict[str, Any], *, number: int = 0, folder: Path = Path()
    ) -> None:
        self.number, self.folder = number, folder
        self._answers: SimpleQueue[Reported | Ended] = SimpleQueue()
        self._resume: SimpleQueue[bool] = SimpleQueue()
        self._stopped = False
        self._waiting = False
        self._thread = threading.Thread(
            target=self._run, args=(objective, params), name="objective", daemon=True
        )

    def next(self) -> Reported | Ended:
        """Runs the objective until it reports or ends. Must not be called after Ended."""
        if self._waiting:
            self._resume.put(True)
        else:
            self._thread.start()
        answer = self._answers.get()
        self._waiting = isinstance(answer, Reported)
        return answer

    def stop(self) -> None:
        """Makes the current and later calls of `report` return True, and waits for the objective to end."""
        if self._waiting:
            self._waiting = False
            self._resume.put(False)
        if self._thread.ident is not None:
            self._thread.join()

    def __call__(self, metrics: Mapping[str, float], /) -> bool:
        if not self._stopped:
            self._answers.put(Reported({key: float(value) for key, value in metrics.items()}))
            self._stopped = not self._resume.get()
        return self._stopped

    def _run(self, objective: Objective, params: dict[str, Any]) -> None:
        try:
            objective(params, self)
        except Exception as error:
            self._answers.put(Ended(error, traceback.format_exc()))
        else:
            self._answers.put(Ended())


VALUE = "value"  # the key of a result for searcher and scheduler


class TrialActor(Trainable):
    """Runs one trial after another in one process, so that a trial can use what an earlier one cached."""

    def setup(  # type: ignore[override]  # tune.with_parameters adds the keywords
        self, config: dict, *, objective: Objective, metric: str, mode: str, worst: float, trials: Path
    ) -> None:
        self._objective, self._metric, self._worst, self._trials = objective, metric, worst, trials
        self._better = max if mode == "max" else min
        log_to(trials.parent)
        self.reset_config(config)

    def reset_config(self, new_config: dict) -> bool:
        self.cleanup()
        number = new_config["number"]
        folder = self._trials / str(number)
        _log.info("trial %d starts with %s", number, new_config["params"])
        self._thread = ObjectiveThread(
            self._objective, dict(new_config["params"]), number=number, folder=folder
        )
        self._result: dict[str, Any] = {
            VALUE: self._worst, "best": self._worst, "metrics": "{}", "reports": 0, "ended": False
        }  # fmt: skip
        return True

    def step(self) -> dict[str, Any]:
        answer = self._thread.next()
        if isinstance(answer, Ended):
            self._end(answer)
        else:
            self._record(answer.metrics)
        return {**self._result, "done": self._result["ended"]}

    def cleanup(self) -> None:
        if hasattr(self, "_thread"):
            self._thread.stop()

    def _record(self, metrics: Mapping[str, float]) -> None:
        """Records one report; a NaN or infinite metric ends the trial with the sweep's worst value."""
        if self._metric not in metrics:
            fix = did_you_mean(self._metric, metrics) if metrics else None
            what = f"the objective does not report '{self._metric}'"
            self._end(Ended(ConfigError(what, key=self._metric, fix=fix)))
            return
        value, result = metrics[self._metric], self._result
        result["reports"] += 1
        if not math.isfinite(value):
            result |= {VALUE: self._worst, "best": self._worst, "metrics": "{}", "ended": True}
            result["failed"] = f"{self._metric} was {value} at report {result['reports']}"
            return
        first = result["reports"] == 1
        if first or self._better(value, result["best"]) != result["best"]:
            finite = {k: v for k, v in metrics.items() if math.isfinite(v)}
            result |= {"best": value, "metrics": json.dumps(finite)}  # text: Tune flattens nested mappings
        result[VALUE] = value

    def _end(self, answer: Ended) -> None:
        error = answer.error
        if error is None and not self._result["reports"]:
            error = RuntimeError("the objective ended without a report")
        self._result["ended"] = True
        _log.info("trial %d ends with %s", self._thread.number, self._result)
        if error is not None:
            _log.info("trial %d raised an error: %s", self._thread.number, answer.trace or error)
            self._result["error"] = redact(f"{type(error).__name__}: {error}")
            self._result["mistake"] = error if isinstance(error, His2lipError) else None
            self._result["trace"] = answer.trace
