"""The progress of a run: its reports, the state that a checkpoint saves, and its speed."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from his2lip.data.stream import Batch


@dataclass(frozen=True)
class StepReport:
    """One progress report. `metrics` has finite floats: train/…, and select/… at the end of an epoch."""

    kind: Literal["step", "epoch"]
    step: int  # number of steps done
    steps: int  # steps of the whole run
    epoch: int  # the current epoch, from 1
    metrics: dict[str, float]
    best: bool = False  # whether the checkpoint `best` is of this step


@dataclass(frozen=True)
class TrainState:
    """The state of a run after `step` steps. Model, optimizer and this state are all that resuming needs."""

    step: int = 0
    best_step: int = 0
    best_score: float = -math.inf
    history: tuple[dict[str, float], ...] = ()  # metrics of each finished epoch

    def to_json(self) -> dict[str, Any]:
        score = self.best_score if math.isfinite(self.best_score) else None
        return {
            "step": self.step,
            "best_step": self.best_step,
            "best_score": score,
            "history": list(self.history),
        }

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> TrainState:
        score = tree["best_score"]
        return cls(
            step=tree["step"],
            best_step=tree["best_step"],
            best_score=-math.inf if score is None else score,
            history=tuple(tree["history"]),
        )


class SaveClock:
    """Tells when `minutes` have passed since the last checkpoint; never where that is None."""

    def __init__(self, minutes: float | None) -> None:
        self._seconds = math.inf if minutes is None else 60 * minutes
        self.reset()

    def reset(self) -> None:
        """A checkpoint was written now."""
        self._since = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._since >= self._seconds


class Clock:
    """Images per second, and the share of the time spent waiting for data, since the last reset."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._start, self._waited, self._images = time.perf_counter(), 0.0, 0

    def timed(self, batches: Iterable[Batch]) -> Iterable[Batch]:
        """The same batches; the time until each one arrives counts as waiting for data."""
        iterator = iter(batches)
        while True:
            asked = time.perf_counter()
            batch = next(iterator, None)
            self._waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def count(self, images: int) -> None:
        """Adds images that were trained on."""
        self._images += images

    def images_per_second(self) -> float:
        return self._images / max(time.perf_counter() - self._start, 1e-9)

    def wait_share(self) -> float:
        return self._waited / max(time.perf_counter() - self._start, 1e-9)
