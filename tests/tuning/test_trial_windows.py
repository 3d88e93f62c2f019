"""The time that a trial has for one report, where it raises an error and repeats its earlier reports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from his2lip.tuning.sweep_directory import SweepDir
from his2lip.tuning.trial import Hang, TrialActor, TrialReporter

REPORTS, RAISES_AT = 6, 4


class Windows(Hang):
    """Counts what the objective did within each window of `trial_timeout`."""

    def __init__(self, file: Path, timeout: float, seen: list[int]) -> None:
        super().__init__(file, timeout)
        self.counts: list[int] = []
        self._seen = seen

    @contextmanager
    def watched(self) -> Iterator[None]:
        before = len(self._seen)
        with super().watched():
            yield
        self.counts.append(len(self._seen) - before)


def test_each_repeated_report_has_its_own_time_limit(tmp_path: Path) -> None:
    seen: list[int] = []
    raised: list[int] = []

    def objective(params: dict[str, Any], report: TrialReporter) -> None:
        for number in range(REPORTS):
            if number == RAISES_AT and not raised:
                raised.append(number)
                raise OSError("for once")
            seen.append(number)
            report({"value": number})

    actor = object.__new__(TrialActor)  # without Ray's part, which keeps logs and checkpoints
    actor.setup(
        {"number": 0, "name": "0", "params": {}},
        objective=objective,
        metrics=("value",),
        mode="max",
        worst=-1.0,
        sweep=SweepDir(tmp_path),
        timeout=60.0,
    )
    actor._hang = windows = Windows(tmp_path / "hung" / "0.txt", 60.0, seen)
    results = [actor.step() for _ in range(REPORTS + 1)]
    assert seen == [*range(RAISES_AT), *range(REPORTS)]
    assert [result["reports"] for result in results] == [*range(1, REPORTS + 1), REPORTS]
    assert results[-1]["done"]
    assert max(windows.counts) == 1
