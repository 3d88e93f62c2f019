"""Fixtures of the integration tests: a real MLflow server on loopback."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from mlflow_stores import mlflow_on_loopback


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an `mlflow server` with a SQLite store for the whole session, on a free loopback port."""
    with mlflow_on_loopback(tmp_path_factory.mktemp("mlflow")) as url:
        yield url
