"""`his2lip ui`: MLflow's own page on the current store, on loopback."""

from __future__ import annotations

import os
import subprocess
import sys

from his2lip.commands.console import say
from his2lip.errors import TrackingError


def run_ui(*, port: int, store: str | None) -> int:
    """Serves the store until it is interrupted; the server's exit code."""
    from his2lip.resources import sqlite_file, store_uri

    uri = store_uri(store)
    if uri.startswith(("http://", "https://")):
        raise TrackingError("this store is a server already", where=uri, fix="open that address in a browser")
    file = sqlite_file(uri)
    if file is not None and not file.is_file():
        fix = "his2lip train, tune or benchmark makes one; or name another with --store"
        raise TrackingError("there is no MLflow store here", where=uri, fix=fix)
    say(f"MLflow on http://127.0.0.1:{port} (store {uri}); stop it with Ctrl-C")
    say("  models side by side: 'Model training' (top left), experiment his2lip-benchmark, tab Models")
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    try:
        return subprocess.call(
            command,
            env=os.environ
            | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        )
    except KeyboardInterrupt:
        return 0
