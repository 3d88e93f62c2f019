"""A run to write, and all that an MLflow store has of one, to compare runs by."""

from __future__ import annotations

from typing import Any

from his2lip.tracking.run import Run
from his2lip.tracking.store import Tracker
from his2lip.tracking.store_run import RUN_ID, WEIGHTS

_OF_TIME = ("images_per_second", "data_wait")  # metrics whose values differ between equal runs


def write_all(run: Run, part: slice = slice(None)) -> None:
    """A curve, a checkpoint with a score, and three children."""
    for step in list(range(1, 31))[part]:
        run.metrics({"train/loss": 1.0 / step, "lr": 0.1}, step=step)
    model = run.model("tiny", digest="f" * 64)
    run.model_metrics(model, {"select/macro_f1": 0.8})
    run.keep_children(["0", "1", "2"])
    for number in range(3):
        run.trial(str(number), f"trial {number}", params={"tau": number}, metrics={"f1": 0.1 * number})


def stored(tracker: Tracker, run_id: str) -> list[Any]:
    """The runs of a `his2lip.run_id`, the latest first."""
    return _search(tracker, f"tags.`{RUN_ID}` = '{run_id}'")


def runs_named(tracker: Tracker, name: str) -> list[Any]:
    return _search(tracker, f"attributes.run_name = '{name}'")


def children(tracker: Tracker, parent: Any) -> list[Any]:
    filters = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    return list(tracker.client.search_runs([parent.info.experiment_id], filters, order_by=["start_time"]))


def curve(tracker: Tracker, run: Any, key: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in tracker.client.get_metric_history(run.info.run_id, key)]


def points(tracker: Tracker, run: Any) -> dict[str, list[tuple[int, float | None]]]:
    """Metric -> its steps with their values, which are None for measures of time."""
    found: dict[str, list[tuple[int, float | None]]] = {}
    for key in sorted(run.data.metrics):
        timed = key.endswith(_OF_TIME)
        found[key] = [(step, None if timed else value) for step, value in curve(tracker, run, key)]
    return found


def models_of(tracker: Tracker, run: Any, weights: str) -> list[Any]:
    """The metrics of each logged model that has the name of a run and these weights."""
    models = tracker.client.search_logged_models([run.info.experiment_id], f"tags.`{WEIGHTS}` = '{weights}'")
    return [
        sorted((x.key, x.value) for x in m.metrics or [] if not x.key.endswith(_OF_TIME))
        for m in models
        if m.name == run.info.run_name
    ]


def content(tracker: Tracker, run_id: str, *, weights: str = "f" * 64) -> dict[str, Any]:
    """All that a store has of a run, counted; of logged models, those with these weights."""
    (found,) = stored(tracker, run_id)
    experiment = found.info.experiment_id
    models = tracker.client.search_logged_models([experiment], f"tags.`{WEIGHTS}` = '{weights}'")
    kept = children(tracker, found)
    return {
        "status": found.info.status,
        "params": found.data.params,
        "points": points(tracker, found),
        "children": sorted(
            (c.info.run_name, c.info.status, str(c.data.params), str(c.data.metrics)) for c in kept
        ),
        "models": [(m.name, sorted((x.key, x.value) for x in m.metrics or [])) for m in models],
        "artifacts": [a.path for a in tracker.client.list_artifacts(found.info.run_id)],
    }


def _search(tracker: Tracker, filters: str) -> list[Any]:
    experiments = [e.experiment_id for e in tracker.client.search_experiments()]
    newest = ["attributes.start_time DESC"]
    return list(tracker.client.search_runs(experiments, filters, order_by=newest))
