"""The thread between an objective that reports and a driver that asks for the next report."""

from __future__ import annotations

import threading
from typing import Any

from his2lip.tuning.trial import Ended, ObjectiveThread, Reported, TrialReporter


def test_an_objective_waits_between_two_requests_for_a_report() -> None:
    seen: list[int] = []

    def objective(params: dict[str, Any], report: TrialReporter) -> None:
        for step in range(params["steps"]):
            seen.append(step)
            assert not report({"value": step})

    thread = ObjectiveThread(objective, {"steps": 2})
    assert seen == []
    assert thread.next() == Reported({"value": 0.0})
    assert seen == [0]
    assert thread.next() == Reported({"value": 1.0})
    assert thread.next() == Ended()
    assert seen == [0, 1]


def test_after_a_stop_every_report_returns_true() -> None:
    answers: list[bool] = []

    def objective(params: dict[str, Any], report: TrialReporter) -> None:
        answers.extend(report({"value": step}) for step in range(3))

    thread = ObjectiveThread(objective, {})
    thread.next()
    thread.stop()
    assert answers == [True, True, True]


def test_an_error_is_returned_with_its_traceback() -> None:
    def objective(params: dict[str, Any], report: TrialReporter) -> None:
        report({"value": 1.0})
        raise ValueError("broken")

    thread = ObjectiveThread(objective, {})
    thread.next()
    ended = thread.next()
    assert isinstance(ended, Ended)
    assert str(ended.error) == "broken"
    assert "raise ValueError" in ended.trace


def test_an_objective_that_was_never_asked_or_has_ended_can_be_stopped() -> None:
    before = {*threading.enumerate()}
    ObjectiveThread(lambda params, report: None, {}).stop()
    ended = ObjectiveThread(lambda params, report: None, {})
    ended.next()
    for _ in range(2):
        ended.stop()
        assert {*threading.enumerate()} <= before


def test_metrics_of_any_number_type_become_floats() -> None:
    import numpy as np

    thread = ObjectiveThread(lambda params, report: bool(report({"a": np.float32(0.5), "b": 2})) and None, {})
    said = thread.next()
    assert isinstance(said, Reported)
    assert {key: type(value) for key, value in said.metrics.items()} == {"a": float, "b": float}
    thread.stop()
