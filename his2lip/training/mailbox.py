"""What reaches the driver while Ray Train works: progress, and notes on workers that failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ray
import ray.train

from his2lip.errors import His2lipError

if TYPE_CHECKING:
    from his2lip.training.progress import Progress


@ray.remote(num_cpus=0)
class Mailbox:
    """Where workers leave progress and notes for the driver.

    ray.train.report is a barrier with room for one report a poll: too narrow for every few steps.
    """

    def __init__(self) -> None:
        self._items: list[Progress | str] = []

    def post(self, item: Progress | str) -> None:
        self._items.append(item)

    def take(self) -> list[Progress | str]:
        items, self._items = self._items, []
        return items


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
