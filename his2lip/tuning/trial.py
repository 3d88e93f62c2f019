"""One trial as Ray Tune runs it: the objective works in a thread, one report at a time."""

from __future__ import annotations

import faulthandler
import json
import logging
import math
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

from ray.tune import Trainable

from his2lip.errors import ConfigError, His2lipError, did_you_mean, redact
from his2lip.tuning.sweep_directory import SweepDir

_log = logging.getLogger(__name__)


class TrialReporter(Protocol):
    """What an objective reports with. Where a call returns True, the objective has to end."""

    number: int  # of the trial, in its study
    folder: Path  # for the trial's files, its folder `best` above all; it may not exist yet

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
    """Runs one trial after another in one process, so that a trial can use what an earlier one cached.

    metrics  to optimise; the best report is by the first
    worst    value of a trial without a report, for the scheduler
    sweep    where the trials and their checkpoints are
    timeout  seconds without a report after which the process ends itself; None: never
    """

    def setup(  # type: ignore[override]  # tune.with_parameters adds the keywords
        self,
        config: dict,
        *,
        objective: Objective,
        metrics: tuple[str, ...],
        mode: str,
        worst: float,
        sweep: SweepDir,
        timeout: float | None,
    ) -> None:
        self._objective, self._metrics, self._worst = objective, metrics, worst
        self._sweep, self._timeout = sweep, timeout
        self._better = max if mode == "max" else min
        sweep.log_trials()
        self.reset_config(config)

    def reset_config(self, new_config: dict) -> bool:
        self.cleanup()
        self._number, self._name = new_config["number"], new_config["name"]
        self._params = dict(new_config["params"])
        _log.info("trial %d starts with %s", self._number, self._params)
        self._thread, self._repeated = self._new_thread(), False
        if self._timeout is not None:
            self._sweep.fetch_hang(self._name)
        self._hang = Hang(self._sweep.hang(self._name), self._timeout)
        self._result: dict[str, Any] = {
            VALUE: self._worst, "best": [], "metrics": "{}", "reports": 0, "ended": False
        }  # fmt: skip
        return True

    def step(self) -> dict[str, Any]:
        if self._hang.happened():
            # This process was started again after the trial's first one had ended itself.
            address = self._sweep.hang_address(self._name)
            self._result |= {"ended": True, "hung": redact(self._hang.note(address))}
            _log.info("trial %d hung: %s", self._number, self._result["hung"])
            return {**self._result, "done": True}
        answer = self._next()
        if isinstance(answer, Ended):
            self._end(answer)
        else:
            self._record(answer.metrics)
        try:
            self._sweep.keep(self._name)  # before the driver hears of the report that it belongs to
        except His2lipError as error:
            self._end(Ended(error, traceback.format_exc()))
        return {**self._result, "done": self._result["ended"]}

    def cleanup(self) -> None:
        if hasattr(self, "_thread"):
            self._thread.stop()
            try:
                self._sweep.keep(self._name)
            except His2lipError as error:  # the driver has recorded the trial
                _log.warning("the last checkpoint of trial %d is not stored: %s", self._number, error)
            self._sweep.release(self._name)

    def _new_thread(self) -> ObjectiveThread:
        folder = self._sweep.trial(self._name)
        return ObjectiveThread(self._objective, dict(self._params), number=self._number, folder=folder)

    def _next(self) -> Reported | Ended:
        """The next report, or the end. A trial that raises an error is repeated once, from its start.

        Its first reports are those that are known already, so that scheduler and sampler do not notice.
        """
        answer = self._report()
        if not isinstance(answer, Ended) or answer.error is None or self._repeated:
            return answer
        if isinstance(answer.error, His2lipError):
            return answer
        _log.info("trial %d raised an error and is repeated: %s", self._number, answer.trace)
        self._repeated, self._thread = True, self._new_thread()
        for _ in range(self._result["reports"]):
            answer = self._report()
            if isinstance(answer, Ended):
                return answer
        return self._report()

    def _report(self) -> Reported | Ended:
        with self._hang.watched():
            return self._thread.next()

    def _record(self, metrics: Mapping[str, float]) -> None:
        """Records one report; a NaN or infinite metric ends the trial as failed."""
        for name in self._metrics:
            if name not in metrics:
                fix = did_you_mean(name, metrics) if metrics else None
                what = f"the objective does not report '{name}'"
                self._end(Ended(ConfigError(what, key=name, fix=fix)))
                return
        values, result = [metrics[name] for name in self._metrics], self._result
        result["reports"] += 1
        for name, value in zip(self._metrics, values, strict=True):
            if not math.isfinite(value):
                result |= {VALUE: self._worst, "best": [], "metrics": "{}", "ended": True}
                result["failed"] = f"{name} was {value} at report {result['reports']}"
                return
        first, best = values[0], result["best"]
        if not best or self._better(first, best[0]) == first:  # of equal ones the last, as its checkpoint
            finite = {k: v for k, v in metrics.items() if math.isfinite(v)}
            result |= {"best": values, "metrics": json.dumps(finite)}  # text: Tune flattens nested mappings
        result[VALUE] = first

    def _end(self, answer: Ended) -> None:
        error = answer.error
        if error is None and not self._result["reports"]:
            error = RuntimeError("the objective ended without a report")
        self._result["ended"] = True
        _log.info("trial %d ends with %s", self._number, self._result)
        if error is not None:
            _log.info("trial %d raised an error: %s", self._number, answer.trace or error)
            self._result["error"] = redact(f"{type(error).__name__}: {error}")
            self._result["mistake"] = error if isinstance(error, His2lipError) else None
            self._result["trace"] = answer.trace


class Hang:
    """Ends this process where a trial makes no report in time, and remembers that it did.

    A thread of C does it, which works also where Python's own threads are blocked. It first writes where all
    threads of the process are, to `file`.
    """

    def __init__(self, file: Path, timeout: float | None) -> None:
        self._file, self._timeout = file, timeout

    def happened(self) -> bool:
        """Whether an earlier process of this trial was ended."""
        return self._timeout is not None and self._file.is_file() and self._file.stat().st_size > 0

    def note(self, address: str) -> str:
        """The reason, for the study; `address` is where the user finds the file."""
        return f"it made no report for {self._timeout:g} s; where it was: {address}"

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Ends the process where the body takes longer than the timeout."""
        if self._timeout is None:
            yield
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("w", encoding="utf-8") as file:
            faulthandler.dump_traceback_later(self._timeout, exit=True, file=file)
            try:
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()
        self._file.unlink(missing_ok=True)
