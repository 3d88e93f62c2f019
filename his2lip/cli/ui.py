"""`his2lip ui`: MLflow's own pages on the current store, on this machine only."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import Annotated

import typer

from his2lip.cli.console import say
from his2lip.cli.registry import command
from his2lip.errors import TrackingError, first_line
from his2lip.resources import relocate_store, sqlite_file, store_uri


@command("ui")
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port on 127.0.0.1.")] = 5000,
    store: Annotated[
        str | None,
        typer.Option(help="URI of an MLflow store. Default: MLFLOW_TRACKING_URI."),
    ] = None,
) -> None:
    """Open MLflow's UI on the current store, on this machine only."""
    uri = store_uri(store)
    if uri.startswith(("http://", "https://")):
        fix = "open that address in a browser"
        raise TrackingError("this store is a server already", where=uri, key="--store", fix=fix)
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
    if file is not None:
        relocate_store(file)
    say(f"MLflow on http://127.0.0.1:{port} (store {uri}); stop it with Ctrl-C")
    say("  models side by side: 'Model training' (top left), experiment his2lip-benchmark, tab Models")
    command = [sys.executable, "-m", "mlflow", "server"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    settings = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    settings["MLFLOW_BACKEND_STORE_URI"] = uri  # all users see the arguments of a process
    try:
        code = subprocess.call(command, env=os.environ | settings)
    except KeyboardInterrupt:
        code = 0
    raise typer.Exit(code)
