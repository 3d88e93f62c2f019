"""Models in MLflow, for drivers only: scores from all experiments, and the registry."""

from __future__ import annotations

import os
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from his2lip.errors import TrackingError, first_line
from his2lip.tracking.run import now
from his2lip.tracking.store import Tracker
from his2lip.tracking.store_run import (
    BATCH,
    BENCHMARK_RUN,
    IDENTITY,
    NOTE,
    PATH,
    TRAINING_RUN,
    WEIGHTS,
    StoreRun,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Metric

EXPERIMENT = "his2lip-models"  # where promoted models are logged
CALIBRATION = "his2lip.calibration"  # tag: what the temperatures of a promoted model were fitted on
TERMS = "his2lip.terms"  # tag: the conditions under which a promoted model is used
MODEL_TYPE = "dual-encoder"
_MOST = 500  # logged models that are read, the latest first


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One set of weights in MLflow: the names that it was logged under, the latest first, and macro F1."""

    names: Sequence[str]
    path: str | None
    weights: str
    experiment: str
    scores: Mapping[str, float]  # by dataset


@dataclass(frozen=True, kw_only=True)
class Promoted:
    """One version of a registered model and its aliases."""

    name: str
    version: int
    aliases: Sequence[str]
    weights: str | None
    terms: str | None

    @property
    def uri(self) -> str:
        """The name for `load_model`."""
        return (
            f"models:/{self.name}@{self.aliases[0]}"
            if self.aliases
            else f"models:/{self.name}/{self.version}"
        )


def scored_models(tracker: Tracker) -> list[Scored]:
    """Every set of weights that his2lip logged, the latest first, with its latest score on each dataset."""
    names = {e.experiment_id: e.name for e in tracker.client.search_experiments()}
    found: dict[str, list[LoggedModel]] = {}
    for model in _logged(tracker.client, list(names)):
        found.setdefault(model.tags[WEIGHTS], []).append(model)
    return [
        Scored(
            names=[model.name for model in same],
            path=next((model.tags[PATH] for model in same if model.tags.get(PATH)), None),
            weights=weights,
            experiment=names[same[0].experiment_id],
            scores=_macro_f1(same),
        )
        for weights, same in found.items()
    ]


def model_paths(tracker: Tracker) -> set[str]:
    """Where the files of all models are that his2lip logged: paths and names, as they were logged."""
    experiments = [e.experiment_id for e in tracker.client.search_experiments()]
    return {m.tags[PATH] for m in _logged(tracker.client, experiments, most=None) if PATH in m.tags}


def promoted_models(tracker: Tracker) -> list[Promoted]:
    """The registered versions that his2lip made and that have an alias, and the latest version of each name.

    Versions of one name come in descending order, whatever was edited last.
    """
    rows: list[Promoted] = []
    for model in tracker.client.search_registered_models():
        aliases: dict[int, list[str]] = {}
        for alias, version in model.aliases.items():
            aliases.setdefault(int(version), []).append(alias)
        found = tracker.client.search_model_versions(f"name = '{model.name}'")
        ours = sorted((v for v in found if WEIGHTS in v.tags), key=lambda v: int(v.version), reverse=True)
        for position, version in enumerate(ours):
            names = aliases.get(int(version.version), [])
            if names or position == 0:
                rows.append(_promoted(version, names))
    return rows


def promote(
    tracker: Tracker,
    files: Mapping[str, Any],
    *,
    name: str,
    alias: str,
    weights: str,
    identity: str,
    source: str,
    terms: str,
    calibration: str,
    description: str,
) -> tuple[Promoted, int | None]:
    """Gives the alias to the version of `name` with this checkpoint, which is registered where it is new.

    files        the model's files, as arguments of `mlflow.pyfunc.log_model`
    identity     digest of all that the version states, since equal weights can be two models
    source       what the model was made from
    terms        terms of use in brief, for a table; `description` has all of them
    calibration  what its temperatures were fitted on
    Returns the version, and the one that had the alias before. Raises TrackingError where MLflow refuses.
    """
    from mlflow.exceptions import MlflowException

    client = tracker.client
    try:
        before = next(
            (m.aliases.get(alias) for m in client.search_registered_models(f"name = '{name}'")), None
        )
        versions = client.search_model_versions(f"name = '{name}'")
        known = [v for v in versions if v.tags.get(IDENTITY) == identity]
        if known:
            version = int(known[0].version)
        else:
            tags = {WEIGHTS: weights, IDENTITY: identity, TERMS: terms, CALIBRATION: calibration}
            version = _register(tracker, files, name, source, tags, description)
        client.set_registered_model_alias(name, alias, str(version))
    except MlflowException as error:
        what = f"MLflow refused the model: {first_line(error)}"
        fix = "choose another --alias or --as, or repair the store"
        raise TrackingError(what, where=tracker.uri, key="--alias", fix=fix) from error
    promoted = Promoted(name=name, version=version, aliases=[alias], weights=weights, terms=terms)
    return promoted, None if before is None else int(before)


def _register(
    tracker: Tracker,
    files: Mapping[str, Any],
    name: str,
    source: str,
    tags: dict[str, str],
    description: str,
) -> int:
    """Logs the files as a model, with the scores of these weights, and registers it as a version."""
    import mlflow

    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    client = tracker.client
    with _logging(tracker, name, source) as run:
        with mlflow.start_run(run_id=run.run_id), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about an example and type hints, which the signature replaces
            made = mlflow.pyfunc.log_model(name=name, tags=tags, model_type=MODEL_TYPE, **files)
        tags |= _carry_scores(run, made.model_id, tags[WEIGHTS])
        client.set_logged_model_tags(made.model_id, {NOTE: description})
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name, description="Promoted by his2lip models promote.")
        version = client.create_model_version(
            name,
            made.model_uri,
            run_id=run.run_id,
            tags=tags,
            description=description,
            model_id=made.model_id,
        )
    return int(version.version)


@contextmanager
def _logging(tracker: Tracker, name: str, source: str) -> Iterator[StoreRun]:
    """A run in which a model is logged; FAILED where the block raises."""
    run = tracker.store_run()
    run.begin(
        outbox=uuid.uuid4().hex, experiment=EXPERIMENT, name=name, config={"model": source}, tags={},
        fresh=True, time=now(),
    )  # fmt: skip
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    finally:
        run.status(status=status, time=now())


def _carry_scores(run: StoreRun, model_id: str, weights: str) -> dict[str, str]:
    """Copies to a logged model the latest scores on datasets that its weights have under other names.

    Returns tags with the latest run that has all figures of these weights, and the run that trained them.
    """
    from mlflow.entities import Metric

    experiments = [e.experiment_id for e in run.client.search_experiments()]
    same = [m for m in _logged(run.client, experiments) if m.tags[WEIGHTS] == weights]
    scores = {(m.key, m.dataset_name, m.dataset_digest): m for m in _by_time(same) if m.dataset_name}
    # MLflow tells the metrics of a model apart by name, time and run, and not by dataset.
    times = {dataset: now() + i for i, dataset in enumerate(dict.fromkeys(key[1:] for key in scores))}
    copies = [
        Metric(
            key,
            m.value,
            times[name, digest],
            m.step,
            model_id=model_id,
            dataset_name=name,
            dataset_digest=digest,
        )
        for (key, name, digest), m in scores.items()
    ]
    for start in range(0, len(copies), BATCH):
        run.client.log_batch(run.run_id, metrics=copies[start : start + BATCH])
    figures = next((m.tags[BENCHMARK_RUN] for m in same if BENCHMARK_RUN in m.tags), None)
    if figures is None:
        return {}
    training = run.client.get_run(figures).data.tags.get(TRAINING_RUN)
    return {BENCHMARK_RUN: figures} | ({} if training is None else {TRAINING_RUN: training})


def _promoted(version: Any, aliases: Sequence[str]) -> Promoted:
    return Promoted(
        name=version.name,
        version=int(version.version),
        aliases=sorted(aliases),
        weights=version.tags.get(WEIGHTS),
        terms=version.tags.get(TERMS),
    )


def _logged(client: MlflowClient, experiments: list[str], most: int | None = _MOST) -> Iterator[LoggedModel]:
    """Models that his2lip logged, the latest first; of the `most` latest of all."""
    newest = [{"field_name": "creation_timestamp", "ascending": False}]
    token, read = None, 0
    while most is None or read < most:
        page = client.search_logged_models(experiments, order_by=newest, max_results=100, page_token=token)
        yield from (model for model in page if WEIGHTS in model.tags)
        token, read = page.token, read + len(page)
        if not token:
            return


def _macro_f1(models: Sequence[LoggedModel]) -> dict[str, float]:
    """The latest macro F1 by dataset; `select` is the split that the checkpoint was chosen on."""
    scores = {}
    for metric in _by_time(models):
        if metric.key == "macro_f1" and metric.dataset_name:
            scores[metric.dataset_name] = float(metric.value)
        elif metric.key == "select/macro_f1":
            scores["select"] = float(metric.value)
    return scores


def _by_time(latest_first: Sequence[LoggedModel]) -> list[Metric]:
    """The metrics of logged models, the latest last."""
    metrics = (metric for model in reversed(latest_first) for metric in model.metrics or [])
    return sorted(metrics, key=lambda metric: metric.timestamp)
