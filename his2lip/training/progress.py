"""How far a run is: what it reports, where it stands, and how fast it goes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from his2lip.data.stream import Batch


@dataclass(frozen=True)
class Progress:
    """One report. `metrics` holds finite floats: train/…, and at the end of an epoch select/… as well."""

    kind: Literal["step", "epoch"]
    step: int  # steps done
    steps: int  # steps of the whole run
    epoch: int  # epochs begun, from 1
    metrics: dict[str, float]


@dataclass(frozen=True)
class State:
    """Where a run stands after `step` steps; with the model and the optimizer, all that going on needs."""

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
    def from_json(cls, tree: Mapping[str, Any]) -> State:
        score = tree["best_score"]
        return cls(
            step=tree["step"],
            best_step=tree["best_step"],
            best_score=-math.inf if score is None else score,
            history=tuple(tree["history"]),
        )


class Clock:
    """Images a second, and the share of the time that went in waiting for data, since the last reset."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._start, self._waited, self._images = time.perf_counter(), 0.0, 0

    def timed(self, batches: Iterable[Batch]) -> Iterable[Batch]:
        """The same batches; the time that `batches` takes to give each is counted as waiting."""
        iterator = iter(batches)
        while True:
            asked = time.perf_counter()
            batch = next(iterator, None)
            self._waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def count(self, images: int) -> None:
        self._images += images

    def pace(self) -> float:
        return self._images / max(time.perf_counter() - self._start, 1e-9)

    def wait_share(self) -> float:
        return self._waited / max(time.perf_counter() - self._start, 1e-9)
