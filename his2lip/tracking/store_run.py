"""One run in an MLflow store: finds or creates what a record is about, so that a repetition adds nothing."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from his2lip.errors import redact
from his2lip.tracking.outbox import Record
from his2lip.tracking.table import KIND, MODEL_RUN, Column, view_state

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

RUN_ID = "his2lip.run_id"  # tag: the digest of a run's inputs, by which the same run is found
OUTBOX = "his2lip.outbox"  # tag: the outbox that a run was written from
PLACE = "his2lip.storage"  # tag: the folder above a run's own: MACHINE:FOLDER, or a URI
WEIGHTS = "his2lip.weights_sha256"  # tag: a logged model's tensor digest
PATH = "his2lip.path"  # tag: what loads a logged model
IDENTITY = "his2lip.checkpoint"  # tag of a promoted model: digest of a checkpoint's his2lip.json
TRAINING_RUN = "his2lip.training_run"  # tag of a model run: the run that made its weights
BENCHMARK_RUN = "his2lip.benchmark_run"  # tag of a training run or logged model: the latest model run
NOTE = "mlflow.note.content"
PARENT = "mlflow.parentRunId"
BATCH = 500  # metrics per request; MLflow allows 1,000
_CONFIG = "config.json"


class StoreRun:
    """Writes the records of one outbox to the store of `client`, at `uri`. The first record is `begin`.

    experiment_of  finds or creates the experiment of a name, and returns its id
    """

    def __init__(self, client: MlflowClient, uri: str, experiment_of: Callable[[str], str]) -> None:
        self.client, self._uri, self._experiment_of = client, uri, experiment_of
        self.run_id = ""
        self.experiment_id = ""
        self._name = ""  # of the run
        self._inputs: str | None = None  # the run's his2lip.run_id; a promotion has none
        self._place: str | None = None  # its his2lip.storage
        self._replaced: Collection[str] = ()  # outboxes whose runs are deleted once this one has finished
        self._children: dict[str, tuple[str, str]] | None = None  # his2lip.run_id -> (MLflow's id, status)
        self._points: dict[str, set[int]] | None = None  # of a run that another outbox had begun

    def write(self, records: Sequence[Record]) -> None:
        """Writes records in order. Where MLflow or its client raises an error, all can be repeated."""
        metrics: list[Any] = []
        for record in records:
            arguments = {name: part for name, part in record.items() if name != "what"}
            if record["what"] == "metrics":
                metrics += self._new_points(**arguments)
                continue
            self._log(metrics)
            metrics = []
            getattr(self, record["what"])(**arguments)
        self._log(metrics)

    def begin(
        self,
        *,
        outbox: str,
        experiment: str,
        name: str,
        config: Mapping[str, Any],
        tags: Mapping[str, str],
        fresh: bool,
        time: int,
        replaces: Collection[str] = (),
        began: bool = False,  # in outboxes of earlier versions
    ) -> None:
        """Finds the run of this outbox; else, unless `fresh`, the latest of the same inputs and storage.

        Where there is neither, it is created. A run of the same inputs in another storage, such as a
        colleague's, is left alone.
        """
        self.experiment_id = self._experiment_of(experiment)
        self._name, self._replaced = name, replaces
        self._inputs, self._place = tags.get(RUN_ID), tags.get(PLACE)
        found = self._latest(f"tags.`{OUTBOX}` = '{outbox}'")
        ours = found is not None
        if found is None and not fresh:
            here = [run for run in self._same_inputs() if run.data.tags.get(PLACE) == self._place]
            found = max(here, key=lambda run: run.info.start_time, default=None)
            self._points = None if found is None else {}
        if found is None:
            new = self.client.create_run(
                self.experiment_id, start_time=time, run_name=name, tags={**tags, OUTBOX: outbox}
            )
            self.run_id, known, ours = new.info.run_id, {}, True
        else:
            self.run_id, known = found.info.run_id, found.data.params
            self.client.update_run(self.run_id, status="RUNNING")
        if ours:  # a process may have died between the creation and these
            self.params(config, known)
            text = json.dumps(config, indent=1, ensure_ascii=False)
            self.client.log_text(self.run_id, text, _CONFIG)

    def params(self, config: Mapping[str, Any], known: Collection[str] = ()) -> None:
        """The values of a configuration as parameters by their dotted keys; long values are cut."""
        _log_params(self.client, self.run_id, config, known)

    def status(self, *, status: str, time: int) -> None:
        """How the run ended: FINISHED, FAILED or KILLED."""
        self.client.set_terminated(self.run_id, status, end_time=time)
        if status == "FINISHED":
            self._remove_replaced()

    def artifact(self, *, path: str, folder: str | None) -> None:
        """A file, or a folder with its content; nothing where it was removed meanwhile."""
        _log_file(self.client, self.run_id, path, folder)

    def dataset(self, *, name: str, digest: str, uri: str, context: str) -> None:
        _log_dataset(self.client, self.run_id, name, digest=digest, uri=uri, context=context)

    def model(
        self, *, name: str, digest: str, path: str | None, params: Mapping[str, Any], source: str = ""
    ) -> str:
        """The id of the logged model with these weights in this experiment, created where there is none.

        It is an external model: its files stay at `path` until it is promoted. With `source`, it is that of
        this run only: the same training elsewhere, or before `--fresh`, gives the same weights.
        """
        import mlflow

        filters = f"tags.`{WEIGHTS}` = '{digest}' AND name = '{model_name(name)}'"
        if source:
            filters += f" AND source_run_id = '{source}'"
        found = self.client.search_logged_models([self.experiment_id], filters, max_results=1)
        if found:
            return str(found[0].model_id)
        tags = {WEIGHTS: digest} | ({PATH: redact(path)} if path else {})
        mlflow.set_tracking_uri(self._uri)  # the function below takes no client
        made = mlflow.create_external_model(
            name=model_name(name),
            source_run_id=self.run_id,
            tags=tags,
            params={_name(key): redact(str(value))[:500] for key, value in _flat(params)},
            model_type="dual-encoder",
            experiment_id=self.experiment_id,
        )
        return str(made.model_id)

    def model_metrics(self, *, model: Mapping[str, Any], values: Mapping[str, float], time: int) -> None:
        """Adds metrics of the logged model of this run that belong to no dataset; none is repeated."""
        model_id = self.model(**model, source=self.run_id)
        logged = self.client.get_logged_model(model_id).metrics or []
        have = {(metric.key, metric.value) for metric in logged}
        fresh = {key: value for key, value in values.items() if (_name(key), value) not in have}
        self._log(_metrics(fresh, 0, time, model_id=model_id))

    def keep_children(self, *, ids: Sequence[str]) -> None:
        """Deletes the child runs whose `his2lip.run_id` is not in `ids`.

        They are of an earlier call with the same inputs, whose files were removed or whose results changed.
        """
        for child_id, (run_id, _) in list(self._known_children().items()):
            if child_id not in ids:
                self.client.delete_run(run_id)
                self._known_children().pop(child_id)

    def _remove_replaced(self) -> None:
        """Deletes the runs whose files `--fresh` removed, and their children."""
        for other in self._same_inputs():
            tags = other.data.tags
            here = self._place == tags.get(PLACE) or tags.get(OUTBOX) in self._replaced
            if here and other.info.run_id != self.run_id:
                for run in (*self._search(f"tags.`{PARENT}` = '{other.info.run_id}'"), other):
                    self.client.delete_run(run.info.run_id)

    def _same_inputs(self) -> list[Any]:
        if self._inputs is None:
            return []
        return self._search(f"tags.`{RUN_ID}` = '{self._inputs}'")

    def child(
        self,
        *,
        id: str,
        name: str,
        params: Mapping[str, Any],
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        dataset: Mapping[str, str] | None,
        model: Mapping[str, Any] | None,
        time: int,
    ) -> None:
        """One ended trial or grid cell as a child run.

        With `model` and `dataset`, the metrics are also those of the logged model on the dataset, by which
        MLflow compares models side by side.
        """
        known = self._unfinished_child(id, name, time)
        if known is None:
            return
        _log_params(self.client, known, params)
        of: dict[str, Any] = {}
        if dataset is not None:
            _log_dataset(self.client, known, **dataset)
            of = {"dataset_name": dataset["name"], "dataset_digest": dataset["digest"][:36]}
        if model is not None:
            of["model_id"] = self.model(**model)
        self.client.log_batch(known, metrics=_metrics(metrics, 0, time, **of))
        self._finish_child(id, known, tags, time)

    def model_run(
        self,
        *,
        id: str,
        model: Mapping[str, Any],
        metrics: Mapping[str, float],
        params: Mapping[str, Any],
        headline: Collection[str],
        note: str,
        images: Sequence[str],
        time: int,
    ) -> None:
        """All figures of one model as a child run, whose inputs are the logged models with its weights.

        The run, the run of its training and the logged models name each other in tags. Of the metrics, the
        logged models get those of `headline`, so that MLflow shows the run on their pages.
        """
        from mlflow.entities import LoggedModelInput

        known = self._unfinished_child(id, model["name"], time)
        if known is None:
            return
        _log_params(self.client, known, params)
        trained = self._trained(model["digest"], model["path"])
        ids = [self.model(**model), *(found.model_id for found in trained)]
        self.client.log_inputs(known, models=[LoggedModelInput(found) for found in ids])
        self.client.log_batch(known, metrics=_metrics(metrics, 0, time))
        for model_id in ids:
            shown = {key: value for key, value in metrics.items() if key in headline}
            self.client.log_batch(known, metrics=_metrics(shown, 0, time, model_id=model_id))
            self.client.set_logged_model_tags(model_id, {BENCHMARK_RUN: known})
        for image in images:
            _log_file(self.client, known, image, "plots")
        links = [f"[logged model](#/experiments/{self.experiment_id}/models/{ids[0]})"]
        tags = {KIND: MODEL_RUN}
        if trained and (training := trained[0].source_run_id):
            tags[TRAINING_RUN] = training
            self.client.set_tag(training, BENCHMARK_RUN, known)
            links.append(f"[training run](#/experiments/{trained[0].experiment_id}/runs/{training})")
        self._finish_child(id, known, {**tags, NOTE: f"{note}\n\n{', '.join(links)}"}, time)

    def table(self, *, columns: Sequence[Mapping[str, Any]], sort: str, time: int) -> None:
        """What MLflow's table of the model runs shows."""
        shown = [Column(**column) for column in columns]
        key, state = view_state(self._name, self.run_id, shown, sort=sort, time=time)
        self.client.set_experiment_tag(self.experiment_id, key, state)

    def _trained(self, digest: str, path: str | None) -> list[LoggedModel]:
        """The logged models of these weights from training runs: that of `path` first, then the latest.

        Those of deleted runs, such as one that `--fresh` replaced, are left out: they take no tags.
        """
        experiments = [e.experiment_id for e in self.client.search_experiments()]
        found = self.client.search_logged_models(
            [e for e in experiments if e != self.experiment_id],
            f"tags.`{WEIGHTS}` = '{digest}'",
            order_by=[{"field_name": "creation_timestamp", "ascending": False}],
        )
        trained = [model for model in found if model.source_run_id and IDENTITY not in model.tags]
        if not trained:
            return []
        made_by = ", ".join(f"'{model.source_run_id}'" for model in trained)
        runs = self.client.search_runs(experiments, f"attributes.run_id IN ({made_by})")
        there = {run.info.run_id for run in runs}
        trained.sort(key=lambda model: path is None or model.tags.get(PATH) != redact(path))
        return [model for model in trained if model.source_run_id in there]

    def _unfinished_child(self, id: str, name: str, time: int) -> str | None:
        """The run of a child, created where there is none; None where it has all of its record."""
        known, status = self._known_children().get(id, (None, ""))
        if status == "FINISHED":
            return None
        if known is None:
            tags = {PARENT: self.run_id, RUN_ID: id}
            new = self.client.create_run(self.experiment_id, start_time=time, run_name=name, tags=tags)
            known = str(new.info.run_id)
            self._known_children()[id] = known, "RUNNING"
        return known

    def _finish_child(self, id: str, known: str, tags: Mapping[str, str], time: int) -> None:
        for key, value in tags.items():
            self.client.set_tag(known, key, value)
        self.client.set_terminated(known, "FINISHED", end_time=time)
        self._known_children()[id] = known, "FINISHED"

    def _new_points(self, *, values: Mapping[str, float], step: int | None, time: int) -> list[Any]:
        """The metrics of a record, without points that the run had before this outbox."""
        points = _metrics(values, step or 0, time)
        if self._points is None or step is None:
            return points
        for key in {point.key for point in points} - self._points.keys():
            self._points[key] = {old.step for old in self.client.get_metric_history(self.run_id, key)}
        return [point for point in points if point.step not in self._points[point.key]]

    def _log(self, metrics: Sequence[Any]) -> None:
        for start in range(0, len(metrics), BATCH):
            self.client.log_batch(self.run_id, metrics=metrics[start : start + BATCH])

    def _known_children(self) -> dict[str, tuple[str, str]]:
        if self._children is None:
            found = self._search(f"tags.`{PARENT}` = '{self.run_id}'")
            self._children = {
                run.data.tags.get(RUN_ID, ""): (run.info.run_id, run.info.status) for run in found
            }
        return self._children

    def _search(self, filters: str) -> list[Any]:
        runs: list[Any] = []
        token: str | None = None
        while token != "":
            page = self.client.search_runs([self.experiment_id], filters, page_token=token)
            runs += page
            token = page.token or ""
        return runs

    def _latest(self, filters: str) -> Any:
        newest = ["attributes.start_time DESC"]
        found = self.client.search_runs([self.experiment_id], filters, max_results=1, order_by=newest)
        return found[0] if found else None


def _log_params(
    client: MlflowClient, run_id: str, config: Mapping[str, Any], known: Collection[str] = ()
) -> None:
    from mlflow.entities import Param

    leaves = [Param(_name(key), redact(str(value))[:6000]) for key, value in _flat(config)]
    leaves = [leaf for leaf in leaves if leaf.key not in known]
    for start in range(0, len(leaves), 100):
        client.log_batch(run_id, params=leaves[start : start + 100])


def _log_file(client: MlflowClient, run_id: str, path: str, folder: str | None) -> None:
    """Stores a file, or a folder with its content; nothing where it was removed meanwhile."""
    if Path(path).is_dir():
        client.log_artifacts(run_id, path, folder)
    elif Path(path).exists():
        client.log_artifact(run_id, path, folder)


def _log_dataset(
    client: MlflowClient, run_id: str, name: str, *, digest: str, uri: str, context: str
) -> None:
    """A dataset that a run read; `context` is training, select or report."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = json.dumps({"uri": redact(uri)})
    made = Dataset(name=name, digest=digest[:36], source_type="his2lip", source=source)
    tag = InputTag("mlflow.data.context", context)
    client.log_inputs(run_id, datasets=[DatasetInput(made, [tag])])


def _metrics(values: Mapping[str, float], step: int, time: int, **of: Any) -> list[Any]:
    """Finite values as MLflow's metrics; NaN and infinite ones are left out, since SQL cannot sort them."""
    from mlflow.entities import Metric

    finite = [(k, float(v)) for k, v in values.items() if v is not None and math.isfinite(v)]
    return [Metric(_name(k), v, time, step, run_id=None, **of) for k, v in finite]


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


def alias_name(alias: str) -> str:
    """An alias as MLflow allows it: it reserves `latest`, and `v` with a number."""
    plain = re.sub(r"[^\w\-]", "-", alias)[:240]
    return f"model-{plain}" if re.fullmatch(r"|latest|v\d+", plain, re.IGNORECASE) else plain
