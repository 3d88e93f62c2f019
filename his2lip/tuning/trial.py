"""Turns an objective that calls `report` into one that answers `next`, by a thread that waits in between."""

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

from his2lip.errors import ConfigError, His2lipError, did_you_mean
from his2lip.logs import log_to

_log = logging.getLogger(__name__)


class Report(Protocol):
    """What an objective is given to speak with: it ends early where a call returns True."""

    number: int  # the trial's, in its study
    folder: Path  # where the trial may keep files; made by whoever needs it

    def __call__(self, metrics: Mapping[str, float], /) -> bool: ...


Objective = Callable[[dict[str, Any], Report], None]


@dataclass(frozen=True)
class Reported:
    """The objective reported these metrics, and waits."""

    metrics: dict[str, float]


@dataclass(frozen=True)
class Ended:
    """The objective returned, or raised `error` (with its traceback as text)."""

    error: Exception | None = None
    trace: str = ""


class Bridge:
    """One call of an objective. It works while `next` waits, and stands still between two calls of `next`.

    The bridge itself is the `report` that the objective is given.
    """

    def __init__(
        self, objective: Objective, params: dict[str, Any], *, number: int = 0, folder: Path = Path()
    ) -> None:
        self.number, self.folder = number, folder
        self._said: SimpleQueue[Reported | Ended] = SimpleQueue()
        self._go_on: SimpleQueue[bool] = SimpleQueue()
        self._stopped = False
        self._waiting = False
        self._thread = threading.Thread(
            target=self._run, args=(objective, params), name="objective", daemon=True
        )

    def next(self) -> Reported | Ended:
        """Lets the objective work until it reports or ends. Not to be called after Ended."""
        if self._waiting:
            self._go_on.put(True)
        else:
            self._thread.start()
        answer = self._said.get()
        self._waiting = isinstance(answer, Reported)
        return answer

    def stop(self) -> None:
        """Makes the objective's open call of `report` (and later ones) return True, and waits for its end."""
        if self._waiting:
            self._waiting = False
            self._go_on.put(False)
        if self._thread.ident is not None:
            self._thread.join()

    def __call__(self, metrics: Mapping[str, float], /) -> bool:
        if not self._stopped:
            self._said.put(Reported({key: float(value) for key, value in metrics.items()}))
            self._stopped = not self._go_on.get()
        return self._stopped

    def _run(self, objective: Objective, params: dict[str, Any]) -> None:
        try:
            objective(params, self)
        except Exception as error:
            self._said.put(Ended(error, traceback.format_exc()))
        else:
            self._said.put(Ended())


VALUE = "value"  # the key of a result that searcher and scheduler read


class TrialActor(Trainable):
    """Runs one trial after another in one process: what the objective caches is there for the next."""

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
        self._bridge = Bridge(self._objective, dict(new_config["params"]), number=number, folder=folder)
        self._result: dict[str, Any] = {
            VALUE: self._worst, "best": self._worst, "metrics": "{}", "reports": 0, "ended": False
        }  # fmt: skip
        return True

    def step(self) -> dict[str, Any]:
        answer = self._bridge.next()
        if isinstance(answer, Ended):
            self._end(answer)
        else:
            self._take(answer.metrics)
        return {**self._result, "done": self._result["ended"]}

    def cleanup(self) -> None:
        if hasattr(self, "_bridge"):
            self._bridge.stop()

    def _take(self, metrics: Mapping[str, float]) -> None:
        """Notes one report; one without a finite metric ends the trial at the sweep's worst value."""
        if self._metric not in metrics:
            fix = did_you_mean(self._metric, metrics) if metrics else None
            self._end(Ended(ConfigError(f"the objective does not report '{self._metric}'", fix=fix)))
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
        _log.info("trial %d ends with %s", self._bridge.number, self._result)
        if error is not None:
            _log.info("trial %d raised an error: %s", self._bridge.number, answer.trace or error)
            self._result["error"] = f"{type(error).__name__}: {error}"
            self._result["mistake"] = error if isinstance(error, His2lipError) else None
            self._result["trace"] = answer.trace
