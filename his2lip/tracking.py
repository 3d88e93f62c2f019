"""MLflow, for drivers only: runs that go on, checkpoints as logged models, and their scores on datasets."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from his2lip.errors import TrackingError, first_line
from his2lip.resources import sqlite_file, store_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

ARTIFACTS = "artifacts"  # folder beside a SQLite store's file

RUN_ID = "his2lip.run_id"  # tag: the digest of a run's inputs, by which the same run is found again
WEIGHTS = "his2lip.weights_sha256"  # tag: a logged model's tensor digest
PATH = "his2lip.path"  # tag: what loads a logged model
PARENT = "mlflow.parentRunId"
# Else MLflow's UI guesses from the logged models that these are experiments with agents.
_KIND = {"mlflow.experimentKind": "custom_model_development"}
BATCH = 500  # metrics in one request; MLflow takes 1,000


@dataclass(frozen=True)
class Tracker:
    """One MLflow store, reached and ready."""

    uri: str
    client: MlflowClient

    @classmethod
    def open(cls, uri: str | None = None) -> Tracker:
        """The store that `store_uri` names, made where it is a file that is not there yet.

        Raises TrackingError, within seconds, for a store that cannot be reached.
        """
        # A store that is away should be said at once; MLflow would go on trying for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        import mlflow

        uri = store_uri(uri)
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        mend = "set MLFLOW_TRACKING_URI to a running server or to sqlite:///FILE, or unset it"
        try:
            with _one_at_a_time(uri):
                mlflow.set_tracking_uri(uri)
                client = mlflow.MlflowClient(uri)
                client.search_experiments(max_results=1)
        except Exception as error:  # each kind of store raises its own family, requests' and SQLAlchemy's too
            said = f"the MLflow store cannot be used: {first_line(error)}"
            raise TrackingError(said, where=uri, mend=mend) from error
        return cls(uri, client)

    @contextlib.contextmanager
    def run(
        self,
        experiment: str,
        name: str,
        config: Mapping[str, Any],
        *,
        tags: Mapping[str, str] | None = None,
        fresh: bool = False,
    ) -> Iterator[Run]:
        """A run that ends FINISHED, or FAILED where the block raises, or KILLED where it is interrupted.

        With a `his2lip.run_id` tag, the latest run of that id in this experiment is gone on with, unless
        `fresh`. Raises TrackingError where the store is lost on the way.
        """
        from mlflow.exceptions import MlflowException

        experiment_id = self._experiment(experiment)
        tags = dict(tags or {})
        known = self._find(experiment_id, tags[RUN_ID]) if RUN_ID in tags and not fresh else None
        if known is None:
            known = self.client.create_run(experiment_id, run_name=name, tags=tags).info.run_id
            run = Run(self, known, experiment_id)
            run.params(config)
            self.client.log_text(known, json.dumps(config, indent=1, ensure_ascii=False), "config.json")
        else:
            self.client.update_run(known, status="RUNNING")
            run = Run(self, known, experiment_id)
        try:
            yield run
            self.client.set_terminated(known, "FINISHED")
        except BaseException as error:
            status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
            with contextlib.suppress(MlflowException):  # the store itself may be what failed
                self.client.set_terminated(known, status)
            if isinstance(error, MlflowException):
                said = f"the MLflow store was lost: {first_line(error)}"
                raise TrackingError(said, where=self.uri, mend="the same command goes on") from error
            raise

    def _experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        file = sqlite_file(self.uri)
        place = (file.absolute().parent / ARTIFACTS / name).as_uri() if file else None
        try:
            return str(self.client.create_experiment(name, artifact_location=place, tags=_KIND))
        except Exception:  # another process made it between the two calls
            found = self.client.get_experiment_by_name(name)
            if found is None:
                raise
            return str(found.experiment_id)

    def _find(self, experiment_id: str, run_id: str) -> str | None:
        filters = f"tags.`{RUN_ID}` = '{run_id}'"
        found = self.client.search_runs(
            [experiment_id], filters, max_results=1, order_by=["attributes.start_time DESC"]
        )
        return str(found[0].info.run_id) if found else None


@dataclass(frozen=True)
class Run:
    """One MLflow run, open."""

    tracker: Tracker
    run_id: str
    experiment_id: str

    @property
    def client(self) -> MlflowClient:
        return self.tracker.client

    def params(self, config: Mapping[str, Any]) -> None:
        """The configuration's leaves as parameters, `optim.lr` and the like; long values are cut."""
        from mlflow.entities import Param

        leaves = [Param(_name(key), str(value)[:6000]) for key, value in _flat(config)]
        for start in range(0, len(leaves), 100):
            self.client.log_batch(self.run_id, params=leaves[start : start + 100])

    def metrics(self, values: Mapping[str, float], *, step: int = 0) -> None:
        """Finite values at a step; others are left out, since SQL stores cannot order them."""
        self.client.log_batch(self.run_id, metrics=_metrics(values, step))

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """A file, or a folder with all that is in it."""
        if path.is_dir():
            self.client.log_artifacts(self.run_id, str(path), folder)
        else:
            self.client.log_artifact(self.run_id, str(path), folder)

    def dataset(self, name: str, *, digest: str, uri: str, context: str) -> None:
        """That this run read a dataset; `context` is training, select or report."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        made = Dataset(name=name, digest=digest[:36], source_type="his2lip", source=json.dumps({"uri": uri}))
        tag = InputTag("mlflow.data.context", context)
        self.client.log_inputs(self.run_id, datasets=[DatasetInput(made, [tag])])

    def model(
        self, name: str, *, digest: str, path: str | None = None, params: Mapping[str, Any] | None = None
    ) -> str:
        """The id of the logged model with these weights in this experiment; made where there is none yet.

        It is an external model: its files stay where they are (`path`), until it is promoted.
        """
        import mlflow

        filters = f"tags.`{WEIGHTS}` = '{digest}' AND name = '{model_name(name)}'"
        found = self.client.search_logged_models([self.experiment_id], filters, max_results=1)
        if found:
            return str(found[0].model_id)
        tags = {WEIGHTS: digest} | ({PATH: path} if path else {})
        made = mlflow.create_external_model(
            name=model_name(name),
            source_run_id=self.run_id,
            tags=tags,
            params={_name(key): str(value)[:500] for key, value in _flat(params or {})},
            model_type="dual-encoder",
            experiment_id=self.experiment_id,
        )
        return str(made.model_id)

    def checkpoint(self, path: Path, name: str, meta: Mapping[str, Any]) -> str:
        """A checkpoint as a logged model, with the configuration that it was trained under."""
        params = meta.get("config", {})
        return self.model(name, digest=meta["tensor_digest"], path=str(path.absolute()), params=params)

    def model_metrics(self, model_id: str, values: Mapping[str, float]) -> None:
        """Metrics of a logged model that belong to no dataset in particular; those it has are left alone."""
        logged = self.client.get_logged_model(model_id).metrics or []
        have = {(metric.key, metric.value) for metric in logged}
        fresh = {key: value for key, value in values.items() if (_name(key), value) not in have}
        self.client.log_batch(self.run_id, metrics=_metrics(fresh, 0, {"model_id": model_id}))

    def children(self) -> set[str]:
        """The `his2lip.run_id`s of the runs below this one that are written already."""
        found: set[str] = set()
        token: str | None = None
        while token != "":
            filters = f"tags.`{PARENT}` = '{self.run_id}' AND status != 'RUNNING'"
            page = self.client.search_runs([self.experiment_id], filters, page_token=token)
            found |= {run.data.tags.get(RUN_ID, "") for run in page}
            token = page.token or ""
        return found

    def trial(
        self,
        trial_id: str,
        name: str,
        *,
        params: Mapping[str, Any],
        metrics: Mapping[str, float],
        failed: bool = False,
    ) -> None:
        """One ended trial as a run below this one."""
        with self._child(trial_id, name) as child:
            child.params(params)
            child.metrics(metrics)
            if failed:
                self.client.set_tag(child.run_id, "his2lip.failed", "true")

    def cell(
        self,
        cell_id: str,
        *,
        model: str,
        model_id: str,
        dataset: str,
        protocol: str,
        digest: str,
        metrics: Mapping[str, float],
        generated: bool,
    ) -> None:
        """One scored cell as a run below this one: its metrics on the logged model and on the dataset.

        The UI's comparison of models then shows them side by side. A generated twin goes by NAME-generated,
        so that nobody takes its scores for the real dataset's.
        """
        name = f"{dataset}-generated" if generated else dataset
        name = name if protocol == "default" else f"{name}.{protocol}"
        with self._child(cell_id, f"{model} on {name}") as child:
            child.params({"model": model, "dataset": dataset, "protocol": protocol, "generated": generated})
            child.dataset(name, digest=digest, uri=dataset, context="report")
            of = {"model_id": model_id, "dataset_name": name, "dataset_digest": digest[:36]}
            self.client.log_batch(child.run_id, metrics=_metrics(metrics, 0, of))

    @contextlib.contextmanager
    def _child(self, child_id: str, name: str) -> Iterator[Run]:
        tags = {PARENT: self.run_id, RUN_ID: child_id}
        made = self.client.create_run(self.experiment_id, run_name=name, tags=tags).info.run_id
        yield Run(self.tracker, made, self.experiment_id)
        self.client.set_terminated(made, "FINISHED")


@contextlib.contextmanager
def _one_at_a_time(uri: str) -> Iterator[None]:
    """Keeps processes apart while a SQLite store is made: eight at once on a fresh file make seven fail."""
    file = sqlite_file(uri)
    if file is None:
        yield
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _metrics(values: Mapping[str, float], step: int, extra: Mapping[str, Any] | None = None) -> Sequence[Any]:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    finite = [(k, float(v)) for k, v in values.items() if v is not None and math.isfinite(v)]
    made = [Metric(_name(k), v, now, step, run_id=None, **(extra or {})) for k, v in finite]
    assert len(made) <= BATCH
    return made


def _flat(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _name(key: str) -> str:
    """What MLflow takes as a name: letters, digits and a few signs."""
    return re.sub(r"[^\w\-./ ]", "_", key)[:250]


def model_name(name: str) -> str:
    """What MLflow takes as a model's name; it refuses the signs that its URIs are made of."""
    return re.sub(r"[^\w\- ]", "-", name)[:250]
