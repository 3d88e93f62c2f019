"""The bridge between an objective that reports and a driver that asks for the next report."""

from __future__ import annotations

from typing import Any

from his2lip.tuning.trial import Bridge, Ended, Report, Reported


def test_an_objective_stands_still_between_two_questions() -> None:
    seen: list[int] = []

    def objective(params: dict[str, Any], report: Report) -> None:
        for step in range(params["steps"]):
            seen.append(step)
            assert not report({"value": step})

    bridge = Bridge(objective, {"steps": 2})
    assert seen == []
    assert bridge.next() == Reported({"value": 0.0})
    assert seen == [0]
    assert bridge.next() == Reported({"value": 1.0})
    assert bridge.next() == Ended()
    assert seen == [0, 1]


def test_stopping_makes_this_and_every_later_report_answer_true() -> None:
    answers: list[bool] = []

    def objective(params: dict[str, Any], report: Report) -> None:
        answers.extend(report({"value": step}) for step in range(3))

    bridge = Bridge(objective, {})
    bridge.next()
    bridge.stop()
    assert answers == [True, True, True]


def test_an_error_comes_back_with_its_traceback() -> None:
    def objective(params: dict[str, Any], report: Report) -> None:
        report({"value": 1.0})
        raise ValueError("broken")

    bridge = Bridge(objective, {})
    bridge.next()
    ended = bridge.next()
    assert isinstance(ended, Ended)
    assert str(ended.error) == "broken"
    assert "raise ValueError" in ended.trace


def test_a_bridge_that_was_never_asked_or_has_ended_can_be_stopped() -> None:
    Bridge(lambda params, report: None, {}).stop()
    ended = Bridge(lambda params, report: None, {})
    ended.next()
    ended.stop()
    ended.stop()


def test_metrics_of_any_number_type_become_floats() -> None:
    import numpy as np

    bridge = Bridge(lambda params, report: bool(report({"a": np.float32(0.5), "b": 2})) and None, {})
    said = bridge.next()
    assert isinstance(said, Reported)
    assert {key: type(value) for key, value in said.metrics.items()} == {"a": float, "b": float}
    bridge.stop()
