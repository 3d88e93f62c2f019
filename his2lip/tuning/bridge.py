"""Turns an objective that calls `report` into one that answers `next`, by a thread that waits in between."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol


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
