"""MLflow that is away, answers 500, loses answers, is locked or stays away: all records once, in order."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow_content import content, write_all
from mlflow_stores import mlflow_on_loopback, new_store, without_patience
from moments import FAULTS, moments
from proxy import Mode, Proxy
from reliability_page import Record
from typer.testing import CliRunner

from his2lip.cli import app
from his2lip.tracking import sender
from his2lip.tracking.store import Tracker
from his2lip.tracking.store_run import RUN_ID

pytestmark = FAULTS  # one and two moments of each are in tests/integration/test_tracking.py
COUNT, RECORDS = 20, 30
_MINUTE_S = 60.0
_OUTCOME = "the work continues; points, children and models of the undisturbed run, counted"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An `mlflow server` with a SQLite store on a free loopback port."""
    with mlflow_on_loopback(tmp_path_factory.mktemp("mlflow")) as url:
        yield url


@pytest.fixture
def tracker(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tracker]:
    """The store itself; waits between two contacts are short, and MLflow's client does not retry."""
    monkeypatch.setattr(sender, "_WAITS_S", (0.05,))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    yield Tracker.open(server)
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


def write_run(tracker: Tracker, name: str, folder: Path) -> None:
    with tracker.run(f"of {name}", "x", {"a": 1}, tags={RUN_ID: name}, beside=folder) as run:
        write_all(run)


@pytest.mark.parametrize("mode", ["away", "500", "lost"])
def test_for_a_while(server: str, tracker: Tracker, tmp_path: Path, mode: Mode, record: Record) -> None:
    write_run(tracker, f"whole {mode}", tmp_path)
    whole = content(tracker, f"whole {mode}")
    for i, part in enumerate(moments(mode, COUNT)):
        name, at = f"{mode} {i}", int(part * RECORDS)
        with Proxy(server).running() as proxy:
            flaky = Tracker.open(proxy.url)
            with flaky.run(f"of {name}", "x", {"a": 1}, tags={RUN_ID: name}, beside=tmp_path / name) as run:
                write_all(run, slice(at))
                run.sender.finish_sending(20)
                proxy.mode = mode
                write_all(run, slice(at, None))
                while proxy.refused < 3:
                    run.sender.join(0.01)
                if i == 0:
                    run.sender.join(_MINUTE_S)
                proxy.mode = "up"
        assert content(tracker, name) == whole, name
    said = {"away": "closes connections", "500": "answers 500", "lost": "takes requests, but loses answers"}
    how = f"the server {said[mode]} from a seeded record on, the first time for a minute"
    record(f"MLflow for a while: {mode}", how, COUNT, _OUTCOME)


def test_for_good(
    server: str, tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: Record
) -> None:
    write_run(tracker, "whole gone", tmp_path)
    whole = content(tracker, "whole gone")
    for i, part in enumerate(moments("gone", COUNT)):
        name, at, storage = f"gone {i}", int(part * RECORDS), tmp_path / f"gone{i}"
        with Proxy(server).running() as proxy, monkeypatch.context() as patch:
            flaky = Tracker.open(proxy.url)
            patch.setattr("his2lip.tracking.store._PATIENCE_S", 0.2)
            tags = {RUN_ID: name}
            with flaky.run(f"of {name}", "x", {"a": 1}, tags=tags, beside=storage / "train") as run:
                write_all(run, slice(at))
                run.sender.finish_sending(20)
                proxy.mode = "away"
                write_all(run, slice(at, None))
            patch.setenv("MLFLOW_TRACKING_URI", proxy.url)
            patch.setattr("his2lip.tracking.store._PATIENCE_S", 60)
            assert run.sender.left > 0
            proxy.mode = "up"
            for sent in (run.sender.left, 0):
                done = CliRunner().invoke(app, ["track", "sync", "--storage", str(storage)])
                assert f"{sent} records sent" in done.output, done.output
        assert content(tracker, name) == whole, name
    how = "the server closes connections from a seeded record on until the run has ended; `track sync`"
    record("MLflow for good", how, COUNT, _OUTCOME)


def test_locked(tmp_path: Path, tracker: Tracker, record: Record) -> None:
    local = without_patience(Tracker.open(new_store(tmp_path / "store")))
    write_run(local, "free", tmp_path)
    whole = content(local, "free")
    for i, part in enumerate(moments("locked", COUNT)):
        other = sqlite3.connect(tmp_path / "store/mlflow.db", isolation_level=None, check_same_thread=False)
        name, at = f"locked {i}", int(part * RECORDS)
        with local.run(f"of {name}", "x", {"a": 1}, tags={RUN_ID: name}, beside=tmp_path / name) as run:
            write_all(run, slice(at))
            run.sender.finish_sending(20)
            other.execute("BEGIN EXCLUSIVE")
            write_all(run, slice(at, None))
            while run.sender.trouble is None:
                run.sender.join(0.01)
            other.close()
        assert content(local, name) == whole, name
    record("a locked SQLite of MLflow", "BEGIN EXCLUSIVE from a seeded record on", COUNT, _OUTCOME)
