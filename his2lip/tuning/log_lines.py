"""The log lines of a sweep's trials on a cluster, on their way to the log of the driver."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from his2lip.logs import log_through

_SENT_S = 5.0  # to wait for a line to arrive; a process may end at the next one


@ray.remote(num_cpus=0)
class _Lines:
    """Keeps lines until they are taken."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(self, line: str) -> None:
        self._lines.append(line)

    def take(self) -> list[str]:
        lines, self._lines = self._lines, []
        return lines


class LogLines:
    """Made by the driver, on its machine; picklable."""

    def __init__(self) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._lines: Any = _Lines.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]

    def send(self) -> None:
        """From now on the lines of this process go to the driver."""
        log_through(lambda line: ray.wait([self._lines.add.remote(line)], timeout=_SENT_S))

    def append_to(self, file: Path) -> None:
        """Appends the lines that have arrived since the last call, where their keeper is alive."""
        with suppress(ray.exceptions.RayError):
            lines = ray.get(self._lines.take.remote())
            with file.open("a", encoding="utf-8") as log:
                log.writelines(f"{line}\n" for line in lines)
