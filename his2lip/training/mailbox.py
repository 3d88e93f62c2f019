"""What reaches the driver while Ray Train works: progress, and notes on workers that failed."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import ray
import ray.train

from his2lip.errors import His2lipError

if TYPE_CHECKING:
    from his2lip.training.progress import Progress


@ray.remote(num_cpus=0)
class Mailbox:
    """Where workers leave progress and notes for the driver, and hear whether to go on.

    ray.train.report is a barrier with room for one report a poll: too narrow for every few steps.
    """

    def __init__(self) -> None:
        self._items: list[Progress | str] = []
        self._stops: dict[int, bool] = {}  # the driver's word on the epoch that ended with a step
        self._changed = asyncio.Condition()

    async def post(self, item: Progress | str) -> None:
        """Leaves progress, or a note."""
        async with self._changed:
            self._items.append(item)
            self._changed.notify_all()

    async def take(self, wait_s: float) -> list[Progress | str]:
        """All that was left since the last call; waits for something so long."""
        async with self._changed:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait_for(lambda: self._items), wait_s)
            items, self._items = self._items, []
            return items

    async def answer(self, step: int, stop: bool) -> None:
        """The driver has heard of the epoch that ended with `step`: whether the run ends there."""
        async with self._changed:
            self._stops[step] = stop
            self._changed.notify_all()

    async def stops(self, step: int) -> bool:
        """The driver's answer, as soon as it is there; the same for every worker that asks."""
        async with self._changed:
            await self._changed.wait_for(lambda: step in self._stops)
            return self._stops[step]


class Failures(ray.train.UserCallback):
    """In Ray's controller: a user's mistake ends the run at once; another failure is told, and retried."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for error in worker_exceptions.values():
            if isinstance(error, His2lipError):
                raise error
        ranks = ", ".join(map(str, sorted(worker_exceptions)))
        kind = type(next(iter(worker_exceptions.values()))).__name__
        self._mailbox.post.remote(f"worker {ranks} failed ({kind})")
