"""An MLflow run: its parameters, metrics, checkpoints as logged models, and their scores on datasets."""

from __future__ import annotations

import contextlib
import json
import math
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from his2lip.errors import redact

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUN_ID = "his2lip.run_id"  # tag: the digest of a run's inputs, by which the same run is found
WEIGHTS = "his2lip.weights_sha256"  # tag: a logged model's tensor digest
ORDER = "his2lip.order"  # tag: whether a model's order with another one depends on the prompts
PATH = "his2lip.path"  # tag: what loads a logged model
PARENT = "mlflow.parentRunId"
CODE_VERSION = "his2lip.code_version"  # tag: the code that made a trial
BATCH = 500  # metrics per request; MLflow allows 1,000


@dataclass(frozen=True)
class Run:
    """An MLflow run that is being written."""

    client: MlflowClient
    run_id: str
    experiment_id: str

    def params(self, config: Mapping[str, Any]) -> None:
        """The values of a configuration as parameters by their dotted keys; long values are cut."""
        from mlflow.entities import Param

        leaves = [Param(_name(key), redact(str(value))[:6000]) for key, value in _flat(config)]
        for start in range(0, len(leaves), 100):
            self.client.log_batch(self.run_id, params=leaves[start : start + 100])

    def metrics(self, values: Mapping[str, float], *, step: int = 0) -> None:
        """Finite values at a step; NaN and infinite ones are left out, since SQL stores cannot sort them."""
        self.client.log_batch(self.run_id, metrics=_metrics(values, step))

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """A file, or a folder with its content."""
        if path.is_dir():
            self.client.log_artifacts(self.run_id, str(path), folder)
        else:
            self.client.log_artifact(self.run_id, str(path), folder)

    def dataset(self, name: str, *, digest: str, uri: str, context: str) -> None:
        """A dataset that this run read; `context` is training, select or report."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        made = Dataset(
            name=name, digest=digest[:36], source_type="his2lip", source=json.dumps({"uri": redact(uri)})
        )
        tag = InputTag("mlflow.data.context", context)
        self.client.log_inputs(self.run_id, datasets=[DatasetInput(made, [tag])])

    def model(
        self, name: str, *, digest: str, path: str | None = None, params: Mapping[str, Any] | None = None
    ) -> str:
        """The id of the logged model with these weights in this experiment, created where there is none.

        It is an external model: its files stay at `path` until it is promoted.
        """
        import mlflow

        filters = f"tags.`{WEIGHTS}` = '{digest}' AND name = '{model_name(name)}'"
        found = self.client.search_logged_models([self.experiment_id], filters, max_results=1)
        if found:
            return str(found[0].model_id)
        tags = {WEIGHTS: digest} | ({PATH: redact(path)} if path else {})
        made = mlflow.create_external_model(
            name=model_name(name),
            source_run_id=self.run_id,
            tags=tags,
            params={_name(key): redact(str(value))[:500] for key, value in _flat(params or {})},
            model_type="dual-encoder",
            experiment_id=self.experiment_id,
        )
        return str(made.model_id)

    def checkpoint(self, path: Path, name: str, meta: Mapping[str, Any]) -> str:
        """A checkpoint as a logged model, with the configuration that it was trained under."""
        params = meta.get("config", {})
        return self.model(name, digest=meta["tensor_digest"], path=str(path.absolute()), params=params)

    def model_metrics(self, model_id: str, values: Mapping[str, float]) -> None:
        """Adds metrics of a logged model that belong to no dataset; those that it has are not repeated."""
        logged = self.client.get_logged_model(model_id).metrics or []
        have = {(metric.key, metric.value) for metric in logged}
        fresh = {key: value for key, value in values.items() if (_name(key), value) not in have}
        self.client.log_batch(self.run_id, metrics=_metrics(fresh, 0, {"model_id": model_id}))

    def children(self) -> set[str]:
        """The `his2lip.run_id`s of the finished child runs."""
        return set(self._children())

    def remove_children(self, *, keep: Collection[str]) -> None:
        """Deletes the child runs whose `his2lip.run_id` is not in `keep`.

        They are of an earlier call with the same inputs, whose files were removed or whose results changed.
        """
        for child_id, run_id in self._children().items():
            if child_id not in keep:
                self.client.delete_run(run_id)

    def _children(self) -> dict[str, str]:
        """`his2lip.run_id` -> MLflow's id of each finished child run."""
        found: dict[str, str] = {}
        token: str | None = None
        while token != "":
            filters = f"tags.`{PARENT}` = '{self.run_id}' AND status != 'RUNNING'"
            page = self.client.search_runs([self.experiment_id], filters, page_token=token)
            found |= {run.data.tags.get(RUN_ID, ""): run.info.run_id for run in page}
            token = page.token or ""
        return found

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
        with self._child(trial_id, name) as child:
            child.params(params)
            child.metrics(metrics)
            if code_version is not None:
                self.client.set_tag(child.run_id, CODE_VERSION, code_version)
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
        params: Mapping[str, Any],
        generated: bool,
        order_depends_on_prompts: bool = False,
    ) -> None:
        """One grid cell as a child run, with its metrics on the logged model and on the dataset.

        MLflow then compares models side by side. A generated twin is called NAME-generated, so that its
        scores are not mistaken for those of the real dataset.
        """
        name = f"{dataset}-generated" if generated else dataset
        name = name if protocol == "default" else f"{name}.{protocol}"
        with self._child(cell_id, f"{model} on {name}") as child:
            known = {"model": model, "dataset": dataset, "protocol": protocol, "generated": generated}
            child.params({**known, **params})
            if order_depends_on_prompts:
                self.client.set_tag(child.run_id, ORDER, "depends on prompts")
            child.dataset(name, digest=digest, uri=dataset, context="report")
            of = {"model_id": model_id, "dataset_name": name, "dataset_digest": digest[:36]}
            self.client.log_batch(child.run_id, metrics=_metrics(metrics, 0, of))

    @contextlib.contextmanager
    def _child(self, child_id: str, name: str) -> Iterator[Run]:
        tags = {PARENT: self.run_id, RUN_ID: child_id}
        made = self.client.create_run(self.experiment_id, run_name=name, tags=tags).info.run_id
        yield Run(self.client, made, self.experiment_id)
        self.client.set_terminated(made, "FINISHED")


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
    """A name as MLflow allows it: letters, digits and a few signs."""
    return re.sub(r"[^\w\-./ ]", "_", key)[:250]


def model_name(name: str) -> str:
    """A model's name as MLflow allows it, without the signs of its URIs."""
    return re.sub(r"[^\w\- ]", "-", name)[:250]
