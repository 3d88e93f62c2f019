"""`his2lip ui`: MLflow's own pages on the current store, on this machine only."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import webbrowser
from typing import Annotated
from urllib.parse import urlsplit, urlunsplit

import typer

from his2lip.cli.benchmark import EXPERIMENT
from his2lip.cli.console import say
from his2lip.cli.registry import command
from his2lip.errors import TrackingError, first_line
from his2lip.resources import sqlite_file, store_uri

_START_S, _PAUSE_S = 120.0, 0.5  # how long a server may take to answer, and between two attempts


@command("ui")
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port on 127.0.0.1.")] = 5000,
    store: Annotated[
        str | None,
        typer.Option(help="URI of an MLflow store. Default: MLFLOW_TRACKING_URI."),
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open the table of models in the default browser.")] = True,
) -> None:
    """Open MLflow's UI on the current store: the models of the latest benchmark, the highest mean first.

    A SQLite store is served on this machine only. Where the store is a server, its own pages are opened.
    """
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
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            probe.bind(("127.0.0.1", port))
    except OSError as error:
        what = f"port {port} on this machine cannot be used: {first_line(error)}"
        where, fix = f"127.0.0.1:{port}", "choose another --port"
        raise TrackingError(what, where=where, key="--port", fix=fix) from None
    address = f"http://127.0.0.1:{port}"
    link = _show_tables(uri, address)
    say(f"MLflow on {address} (store {uri}); stop it with Ctrl-C")
    if browser:
        threading.Thread(target=_open_when_ready, args=(address, link), daemon=True).start()
    raise typer.Exit(_serve(uri, port))


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
    try:
        return subprocess.call(command, env=os.environ | settings)
    except KeyboardInterrupt:
        return 0


def _open_when_ready(address: str, link: str) -> None:
    until = time.monotonic() + _START_S
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                open_page(link)
                return
        except OSError:
            time.sleep(_PAUSE_S)


def open_page(link: str) -> None:
    """Opens a page in the user's browser, where this machine has a screen or BROWSER names one."""
    has_screen = sys.platform in ("darwin", "win32") or {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
    if has_screen or "BROWSER" in os.environ:
        webbrowser.open(link)
