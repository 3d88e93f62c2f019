"""An MLflow store: connected, created where it is a missing file, and its runs started or resumed."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from his2lip.config import redacted
from his2lip.errors import TrackingError, first_line
from his2lip.files import locked
from his2lip.resources import ARTIFACTS, relocate_store, sqlite_file, store_uri
from his2lip.tracking.run import RUN_ID, Run

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Without this tag MLflow's UI takes these for experiments with agents.
_KIND = {"mlflow.experimentKind": "custom_model_development"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tracker:
    """A connected MLflow store."""

    uri: str
    client: MlflowClient

    @classmethod
    def open(cls, uri: str | None = None) -> Tracker:
        """The store at `store_uri(uri)`, created where it is a missing file.

        The paths of a SQLite store that was moved are corrected. Raises TrackingError within seconds where
        the store cannot be reached.
        """
        # MLflow would try for minutes to reach a store.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        import mlflow

        uri = store_uri(uri)
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        fix = "set MLFLOW_TRACKING_URI to a running server or to sqlite:///FILE, or unset it"
        try:
            with _one_at_a_time(uri):
                mlflow.set_tracking_uri(uri)
                client = mlflow.MlflowClient(uri)
                client.search_experiments(max_results=1)
                if (file := sqlite_file(uri)) is not None:
                    relocate_store(file)
        except Exception as error:  # each kind of store raises its own family, requests' and SQLAlchemy's too
            what = f"the MLflow store cannot be used: {first_line(error)}"
            raise TrackingError(what, where=uri, key="MLFLOW_TRACKING_URI", fix=fix) from error
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

        With a `his2lip.run_id` tag, the latest run of that id in this experiment is continued, unless
        `fresh`; once this one has finished, earlier ones and their children are deleted (MLflow can restore
        them). Parameters and config.json are written once. Raises TrackingError where the store is lost.
        """
        from mlflow.exceptions import MlflowException

        experiment_id = self._experiment(experiment)
        tags = dict(tags or {})
        known = self._find(experiment_id, tags[RUN_ID]) if RUN_ID in tags and not fresh else None
        if known is None:
            known = self.client.create_run(experiment_id, run_name=name, tags=tags).info.run_id
            run = Run(self.client, known, experiment_id)
            run.params(config)
            text = json.dumps(redacted(dict(config)), indent=1, ensure_ascii=False)
            self.client.log_text(known, text, "config.json")
        else:
            self.client.update_run(known, status="RUNNING")
            run = Run(self.client, known, experiment_id)
        try:
            yield run
            self.client.set_terminated(known, "FINISHED")
            if RUN_ID in tags:
                self._remove_others(run, tags[RUN_ID])
        except BaseException as error:
            status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
            with contextlib.suppress(MlflowException):  # the store itself may be what failed
                self.client.set_terminated(known, status)
            if isinstance(error, MlflowException):
                what = f"the MLflow store was lost: {first_line(error)}"
                raise TrackingError(what, where=self.uri, fix="the same command resumes") from error
            raise

    def _experiment(self, name: str) -> str:
        """The id of the experiment, created where there is none and restored where it was deleted."""
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            if found.lifecycle_stage == "deleted":  # MLflow keeps its name in use
                _log.warning("the experiment '%s' was deleted in MLflow and is restored", name)
                self.client.restore_experiment(found.experiment_id)
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
        """MLflow's id of the latest run of a `his2lip.run_id`."""
        return next(iter(self._all(experiment_id, run_id)), None)

    def _remove_others(self, run: Run, run_id: str) -> None:
        """Deletes other runs of this `his2lip.run_id`: `--fresh` removed their files."""
        for other in self._all(run.experiment_id, run_id):
            if other != run.run_id:
                Run(self.client, other, run.experiment_id).remove_children(keep=())
                self.client.delete_run(other)

    def _all(self, experiment_id: str, run_id: str) -> list[str]:
        filters = f"tags.`{RUN_ID}` = '{run_id}'"
        found = self.client.search_runs([experiment_id], filters, order_by=["attributes.start_time DESC"])
        return [str(run.info.run_id) for run in found]


@contextlib.contextmanager
def _one_at_a_time(uri: str) -> Iterator[None]:
    """Locks a SQLite store while it is created: of eight processes at once on a new file seven fail."""
    file = sqlite_file(uri)
    if file is None:
        yield
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with locked(file.with_suffix(".lock")):
        yield
