"""An MLflow store: connected, created where it is a missing file, and the runs that are written to it."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from his2lip.config import digest, redacted
from his2lip.errors import TrackingError, first_line, redact
from his2lip.files import locked
from his2lip.mlflow_store import ARTIFACTS, relocate_store, sqlite_file, store_uri
from his2lip.resources import STORAGE
from his2lip.runtime import refuse_job_copy
from his2lip.tracking.outbox import SUFFIX, Outbox
from his2lip.tracking.run import Run, now
from his2lip.tracking.sender import Sender
from his2lip.tracking.store_run import PLACE, RUN_ID, StoreRun

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Without this tag MLflow's UI takes these for experiments with agents.
_KIND = {"mlflow.experimentKind": "custom_model_development"}

# Seconds without an answer after which a command ends: after its work, and where it failed or was stopped.
_PATIENCE_S, _LAST_S = 20.0, 3.0
_LASTING = "set it on the cluster to the address of a server, or to sqlite:///FILE in a folder that stays"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tracker:
    """A connected MLflow store."""

    uri: str
    client: MlflowClient

    @property
    def store(self) -> str:
        """The URI without secrets, by which outboxes know the store."""
        return redact(self.uri)

    @classmethod
    def open(cls, uri: str | None = None, *, needed: bool = True) -> Tracker:
        """The store at `store_uri(uri)`, created where it is a missing file.

        The paths of a SQLite store that was moved are corrected. Raises ClusterError for a file that Ray will
        delete with the job. Raises TrackingError within seconds where the store cannot be used; not where it
        is away for now (a server that does not answer, a locked file) and not `needed`: what a run writes is
        then kept until the store is back.
        """
        # MLflow would try for minutes to reach a store.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        import mlflow

        uri = store_uri(uri)
        if (file := sqlite_file(uri)) is not None:
            refuse_job_copy(str(file.absolute()), key="MLFLOW_TRACKING_URI", fix=_LASTING)
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # its errors are raised too
        try:
            with _one_at_a_time(uri):
                mlflow.set_tracking_uri(uri)
                client = mlflow.MlflowClient(uri)
                client.search_experiments(max_results=1)
                if file is not None:
                    relocate_store(file)
        except Exception as error:  # each kind of store raises its own family, requests' and SQLAlchemy's too
            if needed or not _is_away(uri, error):
                raise unusable(uri, error) from error
            client = mlflow.MlflowClient(uri)
        return cls(uri, client)

    @contextlib.contextmanager
    def run(
        self,
        experiment: str,
        name: str,
        config: Mapping[str, Any],
        *,
        tags: Mapping[str, str],
        beside: str | Path,
        fresh: bool = False,
    ) -> Iterator[Run]:
        """A run that ends FINISHED, or FAILED where the block raises, or KILLED where it is interrupted.

        tags    with `his2lip.run_id`, by which a run of the same place is found whose outbox is lost
        beside  the folder or URI above the run's own. The outbox, from which a thread sends what the block
                writes, is in that folder; for a URI, in the folder of its name below `runs`
        fresh   makes a new run; once it has finished, the one that it replaces and its children are deleted
                (MLflow can restore them)

        Where the store is away at the end, a warning names the outbox; `sync` and the same command send the
        rest of it. Raises RunError where another command writes the same run.
        """
        folder, run_id = Path(beside), tags[RUN_ID]
        place = f"{socket.gethostname()}:{folder.resolve()}"
        if "://" in str(beside):
            folder, place = Path(STORAGE, folder.name), redact(str(beside))
            run_id = digest([run_id, place])  # the outboxes of all object stores are in one folder
        with Outbox.open(folder / f"{name}.{run_id[:12]}{SUFFIX}", fresh=fresh) as outbox:
            if not outbox.records:
                outbox.add(
                    {
                        "what": "begin", "outbox": uuid.uuid4().hex, "experiment": experiment, "name": name,
                        "config": redacted(dict(config)), "tags": {**tags, PLACE: place}, "fresh": fresh,
                        "time": now(), "replaces": outbox.replaced,
                    }
                )  # fmt: skip
            outbox.mark_sent(self.store, outbox.sent(self.store))  # so that `sync` knows whose they are
            sender = Sender(outbox, self.store, self.store_run)
            sender.start()
            run = Run(outbox, sender)
            try:
                yield run
            except BaseException as error:
                run.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
                sender.finish(patience_s=_LAST_S)
                raise
            run.end("FINISHED")
            sender.finish(patience_s=_PATIENCE_S)
            if sender.left:
                _log.warning(
                    "%d records for MLflow at %s are kept in %s; his2lip track sync sends them",
                    sender.left, self.store, outbox.path,
                )  # fmt: skip

    def store_run(self) -> StoreRun:
        """Writes records to the store at once."""
        return StoreRun(self.client, self.uri, self.experiment)

    def experiment(self, name: str) -> str:
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


def sync(path: Path, tracker: Tracker) -> tuple[int, str | None]:
    """Sends what its store lacks of the outbox at `path`: (number of records sent, the outbox's store).

    A run whose command was killed ends KILLED. Nothing is sent where the outbox's store is another one.
    Raises RunError where a command is writing the outbox, and TrackingError where the store does not take the
    records.
    """
    with Outbox.open(path) as outbox:
        outbox.end_killed()
        sender = Sender(outbox, tracker.store, tracker.store_run)
        left = sender.left if outbox.store == tracker.store else 0
        try:
            while left and sender.left:
                sender.send_some()
        except Exception as error:
            raise unusable(tracker.uri, error) from error
    return left, outbox.store


def unusable(uri: str, error: Exception) -> TrackingError:
    what = f"the MLflow store cannot be used: {first_line(error)}"
    fix = "set MLFLOW_TRACKING_URI to a running server or to sqlite:///FILE, or unset it"
    return TrackingError(what, where=uri, key="MLFLOW_TRACKING_URI", fix=fix)


def _is_away(uri: str, error: Exception) -> bool:
    """Whether the store may be back later: a server that does not answer or fails, a locked SQLite file."""
    if uri.startswith(("http://", "https://")):
        status = getattr(error, "get_http_status_code", lambda: 400)()
        return int(status) >= 500 and "Invalid URL" not in str(error)
    return "database is locked" in str(error)


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
