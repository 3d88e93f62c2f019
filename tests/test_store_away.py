"""An object store that is away or refuses is one sentence, wherever a command meets it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
from broken_store import AWAY, BrokenStore, broken_store

from his2lip.cli.app import main
from his2lip.errors import StorageError
from his2lip.files import at_hand, fetch_file, filesystem
from his2lip.models.stored import fetch_stored
from his2lip.training.run_directory import open_run
from his2lip.tuning import sweep_directory
from his2lip.tuning.sweep_directory import open_sweep, study_at

STORAGE = "broken://bucket/runs"
PLACE = "bucket/runs"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[BrokenStore]]:
    monkeypatch.setattr(sweep_directory, "_session", lambda: str(tmp_path))
    with broken_store() as made:
        yield made


def sweep_is_opened() -> None:
    with open_sweep(STORAGE, "mine").locked():
        pytest.fail("it was opened")


def study_is_read() -> None:
    with study_at(f"{STORAGE}/tune/mine"):
        pytest.fail("it was read")


def run_is_opened() -> None:
    with open_run(STORAGE, "mine").locked():
        pytest.fail("it was opened")


def folder_is_fetched() -> None:
    with at_hand(f"{STORAGE}/benchmark/mine"):
        pytest.fail("it was fetched")


@pytest.mark.parametrize(
    "command",
    [
        sweep_is_opened,
        study_is_read,
        run_is_opened,
        folder_is_fetched,
        lambda: open_sweep(STORAGE, "mine").fetch_hang(3),
        lambda: open_sweep(STORAGE, "mine").best(3),
        lambda: open_sweep(STORAGE, "mine").remove_trials({3}),
        lambda: open_sweep(STORAGE, "mine").clear(),
        lambda: open_run(STORAGE, "mine").read(),
        lambda: open_run(STORAGE, "mine").clear(),
        lambda: fetch_stored(f"{STORAGE}/best.tar", "nowhere"),
    ],
)
def test_a_store_that_is_away_is_one_sentence(
    store: type[BrokenStore], command: Callable[[], object]
) -> None:
    store.fault = AWAY
    with pytest.raises(StorageError) as refused:
        command()
    assert store.requests
    assert refused.value.key == "store"
    assert PLACE in str(refused.value.where)
    assert "\n" not in str(refused.value)


def test_what_is_not_there_is_no_fault_of_the_store(store: type[BrokenStore], tmp_path: Path) -> None:
    system, root = filesystem(STORAGE)
    with pytest.raises(FileNotFoundError):
        fetch_file(system, f"{root}/none", tmp_path / "none")
    with study_at(f"{STORAGE}/tune/mine") as url:
        assert url is None
    assert open_run(STORAGE, "mine").read() is None
    open_run(STORAGE, "mine").clear()
    open_sweep(STORAGE, "mine").clear()
    assert not store.requests


def test_the_page_of_a_study_on_a_store_that_is_away_ends_with_2_and_one_sentence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_ENDPOINT_URL": "http://127.0.0.1:1"}
    line = ["his2lip", "ui", "--study", "s3://b/runs/tune/x"]
    with mock.patch.dict("os.environ", keys), mock.patch("sys.argv", line), pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert "b/runs/tune/x/study.db" in said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 1
