"""`his2lip ui`: pages of the current MLflow store, of a cluster's or of a study, on this machine only."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, TextIO
from urllib.parse import urlsplit, urlunsplit

import typer

from his2lip.cli.benchmark import EXPERIMENT
from his2lip.cli.console import say
from his2lip.cli.options import refuse_unused
from his2lip.cli.registry import command
from his2lip.cli.served_page import check_port, open_page
from his2lip.errors import ClusterError, TrackingError
from his2lip.mlflow_store import sqlite_file, store_uri
from his2lip.resources import find

_START_S, _PAUSE_S = 120.0, 0.5  # how long a server may take to answer, and between two attempts
_END_S = 10.0  # for a server to end in order
_CLUSTER_PORT = 5000  # of MLflow on the head of a cluster of cluster.yaml
# SSH forwards a port as long as this runs; Ray finds the head, its key and its options.
_TUNNEL = """
import sys
from ray.autoscaler.sdk import run_on_cluster
run_on_cluster(sys.argv[1], cmd="sleep infinity", port_forward=(int(sys.argv[2]), int(sys.argv[3])))
"""


@command("ui")
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port on 127.0.0.1.")] = 5000,
    store: Annotated[
        str | None,
        typer.Option(help="URI of an MLflow store. Default: MLFLOW_TRACKING_URI, else runs/mlflow.db."),
    ] = None,
    cluster: Annotated[
        Path | None,
        typer.Option(help="The file of a cluster that `ray up` has started, such as cluster.yaml."),
    ] = None,
    study: Annotated[
        str | None,
        typer.Option(
            help="Show a sweep in optuna-dashboard: its name, folder or URI, or its database's URL."
        ),
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open the table of models in the default browser.")] = True,
) -> None:
    """Open MLflow's UI on the current store: the models of the latest benchmark, the highest mean first.

    A SQLite store is served on this machine only. Where the store is a server, its own pages are opened. With
    --cluster, the MLflow server of that cluster's head is reached through SSH. With --study, a sweep's trials
    are shown in optuna-dashboard: curves, parallel coordinates, importance, Pareto front.
    """
    if cluster is not None:
        refuse_unused({"--store": store, "--study": study}, "cannot be shown together with --cluster")
        _show_cluster(find(cluster), port, browser=browser)
        return
    if study is not None:
        refuse_unused({"--store": store}, "is MLflow's, and --study shows a study of Optuna")
        from his2lip.cli.study_page import serve_study

        serve_study(study, port, opened=open_page if browser else lambda page: None)
        return
    uri = store_uri(store)
    if uri.startswith(("http://", "https://")):
        link = _show_tables(uri, _without_secrets(uri))
        if browser:
            open_page(link)
        return
    file = sqlite_file(uri)
    if file is not None and not file.is_file():
        fix = "his2lip train, tune or benchmark makes one; or name another with --store"
        raise TrackingError("there is no MLflow store here", where=uri, key="--store", fix=fix)
    check_port(port)
    address = f"http://127.0.0.1:{port}"
    link = _show_tables(uri, address)
    say(f"MLflow on {address} (store {uri}); stop it with Ctrl-C")
    if browser:
        threading.Thread(target=_open_when_ready, args=(address, link), daemon=True).start()
    raise typer.Exit(_serve(uri, port))


def _show_cluster(file: Path, port: int, *, browser: bool) -> None:
    """Forwards `port` to the MLflow server of a cluster's head until Ctrl-C, and prints its address.

    Raises ClusterError where the head cannot be found or reached, or MLflow does not answer there.
    """
    check_port(port)
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-c", _TUNNEL, str(file), str(port), str(_CLUSTER_PORT)]
    say(f"looking for the head of {file}")
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as printed:
        streams = {"stdin": subprocess.DEVNULL, "stdout": printed, "stderr": subprocess.STDOUT}
        with suppress(KeyboardInterrupt), _running(command, **streams) as tunnel:
            _await_mlflow(address, tunnel, printed, file)
            link = _show_tables(address, address)
            say(f"MLflow of the cluster on {address}; stop it with Ctrl-C")
            if browser:
                open_page(link)
            tunnel.wait()
            raise _not_reached(printed, file, "the connection to the head has ended")


@contextmanager
def _running(command: list[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the block, and so do those that it has started.

    They also end where this process gets SIGTERM, or loses its terminal, by which the block ends.
    """

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    ends = [
        number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL
    ]
    process: subprocess.Popen[bytes] | None = None
    try:
        for number in ends:
            signal.signal(number, end)
        process = subprocess.Popen(command, start_new_session=True, **options)
        yield process
    finally:
        for number in ends:
            signal.signal(number, signal.SIG_IGN)
        if process is not None:
            _end_group(process)
        for number in ends:
            signal.signal(number, signal.SIG_DFL)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_END_S)
            return


def _await_mlflow(address: str, tunnel: subprocess.Popen[bytes], printed: TextIO, file: Path) -> None:
    until = time.monotonic() + _START_S
    while time.monotonic() < until:
        if tunnel.poll() is not None:
            raise _not_reached(printed, file, "the head of this cluster cannot be reached")
        if _answers(address):
            return
        time.sleep(_PAUSE_S)
    raise _not_reached(printed, file, "MLflow does not answer on the head of this cluster")


def _not_reached(printed: TextIO, file: Path, what: str) -> ClusterError:
    """With the last line that Ray or ssh has printed."""
    printed.seek(0)
    lines = [line.strip() for line in printed.read().splitlines() if line.strip()]
    reason = f": {lines[-1]}" if lines else ""
    fix = "check `ray up`, the keys of the cloud account, and `ray exec FILE 'journalctl -u his2lip-mlflow'`"
    return ClusterError(what + reason, where=file, key="--cluster", fix=fix)


def _show_tables(uri: str, address: str) -> str:
    """Prints the link to the table of each benchmark; the link of the latest, or MLflow's first page."""
    from his2lip.tracking import Tracker, tables

    found = tables(Tracker.open(uri).client, EXPERIMENT)
    for table in found:
        typer.echo(f"models of benchmark {table.benchmark}, the highest mean first: {address}{table.link}")
    return f"{address}{found[0].link}" if found else f"{address}/#/experiments?workflowType=machine_learning"


def _without_secrets(uri: str) -> str:
    """The address of a server's pages: without the user, the password and the query of a store's URI."""
    parts = urlsplit(uri)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))


def _serve(uri: str, port: int) -> int:
    """Runs MLflow's server until it is stopped; its exit code."""
    command = [sys.executable, "-m", "mlflow", "server"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    settings = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    settings["MLFLOW_BACKEND_STORE_URI"] = uri  # all users see the arguments of a process
    with suppress(KeyboardInterrupt), _running(command, env=os.environ | settings) as server:
        return server.wait()
    return 0


def _open_when_ready(address: str, link: str) -> None:
    until = time.monotonic() + _START_S
    while time.monotonic() < until:
        if _answers(address):
            open_page(link)
            return
        time.sleep(_PAUSE_S)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5):
            return True
    except (OSError, http.client.HTTPException):
        return False
