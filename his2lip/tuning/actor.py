"""The process that runs trials: it answers Ray Tune's steps with what the objective reports."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.tune import Trainable

from his2lip.errors import ConfigError, His2lipError, did_you_mean
from his2lip.tuning.bridge import Bridge, Ended, Objective

VALUE = "value"  # the key of a result that searcher and scheduler read


class TrialActor(Trainable):
    """Runs one trial after another in one process: what the objective caches is there for the next."""

    def setup(  # type: ignore[override]  # tune.with_parameters adds the keywords
        self, config: dict, *, objective: Objective, metric: str, mode: str, worst: float, trials: Path
    ) -> None:
        self._objective, self._metric, self._worst, self._trials = objective, metric, worst, trials
        self._better = max if mode == "max" else min
        self.reset_config(config)

    def reset_config(self, new_config: dict) -> bool:
        self.cleanup()
        number = new_config["number"]
        folder = self._trials / str(number)
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
            mend = did_you_mean(self._metric, metrics) if metrics else None
            self._end(Ended(ConfigError(f"the objective does not report '{self._metric}'", mend=mend)))
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
        if error is not None:
            self._result["error"] = f"{type(error).__name__}: {error}"
            self._result["mistake"] = error if isinstance(error, His2lipError) else None
            self._result["trace"] = answer.trace
