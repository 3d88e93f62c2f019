"""An MLflow run as drivers write it: parameters, metrics, checkpoints as logged models, and their scores."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from his2lip.config import redacted
from his2lip.files import absolute
from his2lip.tracking.outbox import Outbox
from his2lip.tracking.sender import Sender
from his2lip.tracking.table import Column

ORDER = "his2lip.order"  # tag: whether a model's order with another one depends on the prompts
CODE_VERSION = "his2lip.code_version"  # tag: the code that made a trial
_FAILED = "his2lip.failed"  # tag of a trial

LoggedModel = Mapping[str, Any]  # what identifies and describes a logged model, made by `Run.model`


@dataclass(frozen=True)
class Run:
    """A run that is being written. No method waits for the store, or raises where it is away."""

    outbox: Outbox
    sender: Sender

    def metrics(self, values: Mapping[str, float | None], *, step: int | None = None) -> None:
        """Values at a step, once per step; without one, of the whole run, and again where they change."""
        numbers = {key: float(value) for key, value in values.items() if value is not None}
        self._add("metrics", values=numbers, step=step, time=now())

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """A file, or a folder with its content."""
        self._add("artifact", path=str(path.absolute()), folder=folder)

    def dataset(self, name: str, *, digest: str, uri: str, context: str) -> None:
        """A dataset that this run read; `context` is training, select or report."""
        self._add("dataset", name=name, digest=digest, uri=uri, context=context)

    def model(
        self, name: str, *, digest: str, path: str | None = None, params: Mapping[str, Any] | None = None
    ) -> LoggedModel:
        """The logged model with these weights in this experiment, created where there is none."""
        model = {
            "name": name, "digest": digest, "path": path,
            "params": dict(params or {}),
        }  # fmt: skip
        self._add("model", **model)
        return model

    def checkpoint(self, path: str | Path, name: str, meta: Mapping[str, Any]) -> LoggedModel:
        """A checkpoint as a logged model, with the configuration that it was trained under."""
        params = meta.get("config", {})
        return self.model(name, digest=meta["tensor_digest"], path=absolute(str(path)), params=params)

    def model_metrics(self, model: LoggedModel, values: Mapping[str, float]) -> None:
        """Adds metrics of a logged model that belong to no dataset; those that it has are not repeated."""
        self._add("model_metrics", model=model, values=dict(values), time=now())

    def keep_children(self, ids: Collection[str]) -> None:
        """Deletes child runs of earlier calls that are not in `ids` (`StoreRun.keep_children`)."""
        self._add("keep_children", ids=sorted(ids))

    def trial(
        self,
        trial_id: str,
        name: str,
        *,
        params: Mapping[str, Any],
        metrics: Mapping[str, float],
        code_version: str | None = None,
        failed: bool = False,
    ) -> None:
        """One ended trial as a child run."""
        tags = {} if code_version is None else {CODE_VERSION: code_version}
        tags |= {_FAILED: "true"} if failed else {}
        self._child(trial_id, name, params=params, metrics=metrics, tags=tags)

    def cell(
        self,
        cell_id: str,
        *,
        model: LoggedModel,
        scored_as: str,
        digest: str,
        metrics: Mapping[str, float],
        params: Mapping[str, Any],
        order_depends_on_prompts: bool = False,
    ) -> None:
        """One grid cell as a child run, with its metrics on the logged model and on the dataset.

        scored_as  the dataset's name in MLflow; digest: of its units
        """
        read = {"name": scored_as, "digest": digest, "uri": params["dataset"], "context": "report"}
        tags = {ORDER: "depends on prompts"} if order_depends_on_prompts else {}
        self._child(
            cell_id, f"{model['name']} on {scored_as}", params={"model": model["name"], **params},
            metrics=metrics, tags=tags, dataset=read, model=model,
        )  # fmt: skip

    def model_run(
        self,
        run_id: str,
        *,
        model: LoggedModel,
        metrics: Mapping[str, float],
        params: Mapping[str, Any],
        headline: Collection[str],
        note: str,
        images: Sequence[Path] = (),
    ) -> None:
        """All figures of one model as a child run, linked with its logged models and with its training run.

        headline  the metrics that its logged models get too
        note      its description, Markdown
        images    plots
        """
        files = [str(image.absolute()) for image in images]
        self._add(
            "model_run", id=run_id, model=model, metrics=dict(metrics), params=dict(params),
            headline=list(headline), note=note, images=files, time=now(),
        )  # fmt: skip

    def table(self, columns: Sequence[Column], *, sort: str) -> None:
        """What MLflow's table of the model runs shows, from left to right, by the link of `tables`.

        sort  the metric that orders the rows, the greatest first
        """
        self._add("table", columns=[asdict(column) for column in columns], sort=sort, time=now())

    def end(self, status: str) -> None:
        """How the run ended: FINISHED, FAILED or KILLED."""
        self._add("status", status=status, time=now())

    def _child(
        self,
        child_id: str,
        name: str,
        *,
        params: Mapping[str, Any],
        metrics: Mapping[str, float],
        tags: Mapping[str, str] | None = None,
        dataset: Mapping[str, str] | None = None,
        model: LoggedModel | None = None,
    ) -> None:
        parts = {"params": params, "metrics": metrics, "tags": tags or {}, "dataset": dataset, "model": model}
        self._add("child", id=child_id, name=name, time=now(), **parts)

    def _add(self, what: str, **parts: Any) -> None:
        self.outbox.add(redacted({"what": what, **parts}))
        self.sender.notify()


def now() -> int:
    """The time as MLflow records it: milliseconds since 1970."""
    return int(time.time() * 1000)
