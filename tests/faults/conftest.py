"""How many cases the tests of faults run, and where their results are written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from mlflow_stores import new_store
from reliability_page import Record, Row, update

PAGE = "HIS2LIP_FAULTS_PAGE"  # the page whose table gets the results; unset: they are not written
_ROWS = pytest.StashKey[list[Row]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_ROWS] = []


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Record:
    """record(fault, how it is injected, times, outcome): one row of the page, called at the end of a test."""

    def add(fault: str, how: str, times: int, outcome: str) -> None:
        request.config.stash[_ROWS].append(Row(fault, how, times, outcome))

    return add


def pytest_sessionfinish(session: pytest.Session) -> None:
    rows = session.config.stash[_ROWS]
    if rows and os.environ.get(PAGE):
        update(Path(os.environ[PAGE]), rows)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with an empty MLflow store; stores of the network answer at once or not at all."""
    monkeypatch.chdir(tmp_path)
    new_store(tmp_path / "runs")
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "AWS_PROFILE", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return tmp_path
