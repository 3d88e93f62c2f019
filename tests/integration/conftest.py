"""Fixtures of the integration tests: a real MLflow server on loopback."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from loopback import on_loopback
from mlflow_stores import new_store


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an `mlflow server` with a SQLite store for the whole session, on a free loopback port."""
    folder = tmp_path_factory.mktemp("mlflow")
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
    command += ["--backend-store-uri", new_store(folder)]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with on_loopback(command, cwd=folder) as url:
        yield url
