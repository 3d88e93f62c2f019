"""Fixtures of the integration tests: a real MLflow server on loopback, and test files that Ray can pickle."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from mlflow_stores import mlflow_on_loopback
from ray import cloudpickle


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an `mlflow server` with a SQLite store for the whole session, on a free loopback port."""
    with mlflow_on_loopback(tmp_path_factory.mktemp("mlflow")) as url:
        yield url


@pytest.fixture(scope="module")
def by_value(request: pytest.FixtureRequest) -> Iterator[None]:
    """Pickles the functions of the test's file by value, because Ray's processes cannot import it."""
    cloudpickle.register_pickle_by_value(request.module)
    yield
    cloudpickle.unregister_pickle_by_value(request.module)
