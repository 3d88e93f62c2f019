"""An object store that is away or refuses is one sentence, wherever a command meets it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from broken_store import AWAY, BrokenStore, broken_store
from buckets import s3_on_loopback
from training_data import write_small_shards

from his2lip import files
from his2lip.cli.app import main
from his2lip.cli.train import run_train
from his2lip.cli.tune import run_tune
from his2lip.config import validate
from his2lip.data.shards import open_shards, read_row_group
from his2lip.errors import DatasetError, StorageError
from his2lip.files import at_hand, fetch_file, filesystem, remove_folder, store_file, write_file
from his2lip.logs import setup
from his2lip.models.stored import fetch_stored
from his2lip.training.config import TrainConfig
from his2lip.training.run_directory import open_run
from his2lip.tuning import sweep_directory
from his2lip.tuning.config import SweepConfig
from his2lip.tuning.sweep_directory import StoredSweep, open_sweep, study_at

STORAGE = "broken://bucket/runs"
PLACE = "bucket/runs"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[BrokenStore]]:
    monkeypatch.setattr(sweep_directory, "session_folder", lambda: tmp_path)
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
        lambda: open_sweep(STORAGE, "mine").fetch_hang("3"),
        lambda: open_sweep(STORAGE, "mine").best("3"),
        lambda: open_sweep(STORAGE, "mine").remove_trials({"3"}),
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


@pytest.mark.parametrize("fault", [AWAY, "AWS Error ACCESS_DENIED during DeleteObjects operation: no"])
def test_a_sweep_does_not_start_again_over_checkpoints_that_cannot_be_removed(
    store: type[BrokenStore], tmp_path: Path, fault: str
) -> None:
    system, root = filesystem(f"{STORAGE}/tune/mine")
    for name in ("trials/0/best.tar", "plots/sweep.html"):
        write_file(system, f"{root}/{name}", b"earlier")
    sweep = open_sweep(STORAGE, "mine")
    assert isinstance(sweep, StoredSweep)
    sweep._take_over()
    store.fault, store.spared = fault, 2  # the study, which is looked for and is not there
    with pytest.raises(StorageError) as refused:
        sweep.clear()
    assert (refused.value.where, refused.value.key) == (f"{sweep.shared}/trials", "store")
    remove_folder(f"{sweep.shared}/plots")  # what nothing depends on may stay
    store.fault = None
    assert system.get_file_info(f"{root}/trials/0/best.tar").is_file
    sweep.clear()
    sweep.clear()
    for name in ("trials/0/best.tar", "plots/sweep.html"):
        assert not system.get_file_info(f"{root}/{name}").is_file


def test_the_page_of_a_study_on_a_store_that_is_away_ends_with_2_and_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_ENDPOINT_URL": "http://127.0.0.1:1"}
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["his2lip", "ui", "--study", "s3://b/runs/tune/x"])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert "b/runs/tune/x/study.db" in said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 1


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were waited for, in no time."""
    waited: list[float] = []
    monkeypatch.setattr(files.time, "sleep", waited.append)
    return waited


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "best.tar"
    made.write_bytes(b"weights")
    return made


@pytest.mark.parametrize("fault", [AWAY, "AWS Error SLOW_DOWN", "AWS Error UNKNOWN (HTTP status 503) during"])
def test_a_store_that_comes_back_has_the_file_and_one_line_tells_of_the_wait(
    store: type[BrokenStore], waits: list[float], file: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    setup()
    store.fault, store.patience = fault, 3
    system, root = filesystem(STORAGE)
    store_file(system, file, f"{root}/best.tar")
    with system.open_input_stream(f"{root}/best.tar") as stored:
        assert stored.read() == b"weights"
    assert waits == [1.0, 5.0, 25.0]
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "WARNING" in line
    assert f"{PLACE}/best.tar" in line


def test_a_store_that_stays_away_is_asked_for_a_minute_and_a_half(
    store: type[BrokenStore], waits: list[float], file: Path
) -> None:
    store.fault = AWAY
    with pytest.raises(StorageError) as refused:
        store_file(filesystem(STORAGE)[0], file, f"{PLACE}/best.tar")
    assert refused.value.key == "store"
    assert sum(waits) == 91.0


@pytest.mark.parametrize(
    "fault",
    [
        "When testing for existence of bucket 'b': AWS Error ACCESS_DENIED during HeadBucket operation: no",
        "AWS Error UNKNOWN (HTTP status 403) during CreateMultipartUpload operation: no",
        "google::cloud::Status(PERMISSION_DENIED: Permanent error, no)",
    ],
)
def test_a_store_that_refuses_is_not_asked_again(
    store: type[BrokenStore], waits: list[float], file: Path, fault: str
) -> None:
    store.fault = fault
    with pytest.raises(StorageError) as refused:
        store_file(filesystem(STORAGE)[0], file, f"{PLACE}/best.tar")
    assert refused.value.key == "store"
    assert (waits, store.requests) == ([], 1)


def test_a_bucket_that_does_not_exist_is_refused_at_once_and_before_a_run_or_a_sweep_begins(
    waits: list[float], file: Path
) -> None:
    shards = {"data": {"shards": "none"}}
    sweep = {"name": "mine", "train": shards, "space": {"x": {"kind": "uniform", "low": 0, "high": 1}}}
    with s3_on_loopback("ihc"):
        for name in ("s3://none/runs", "s3://none/deep/runs"):
            system, root = filesystem(name)
            with pytest.raises(StorageError) as refused:
                store_file(system, file, f"{root}/best.tar")
            assert (refused.value.key, refused.value.where) == ("store", f"{root}/best.tar")
        with pytest.raises(DatasetError) as not_run:
            run_train(validate(TrainConfig, {**shards, "name": "mine", "storage": "s3://none/runs"}))
        with pytest.raises(DatasetError) as not_swept:
            run_tune(validate(SweepConfig, {**sweep, "storage": "s3://none/runs"}))
    assert (not_run.value.where, not_swept.value.where) == ("s3://none/runs/train", "s3://none/runs/tune")
    assert not waits


def test_shards_are_read_again_from_a_store_that_comes_back_and_damage_is_refused_at_once(
    store: type[BrokenStore], waits: list[float], tmp_path: Path
) -> None:
    local = open_shards(write_small_shards(tmp_path / "set", train=8, select=4))
    system, root = filesystem(f"{STORAGE}/set")
    for file in sorted(path for path in Path(local.root).rglob("*") if path.is_file()):
        write_file(system, f"{root}/{file.relative_to(local.root)}", file.read_bytes())
    here, there = local.row_groups("train"), open_shards(f"{STORAGE}/set")
    groups = there.row_groups("train")
    store.fault, store.patience = AWAY, 2
    table = read_row_group(there.filesystem, groups[0], ["patch_id", "image"])
    assert table.equals(read_row_group(local.filesystem, here[0], ["patch_id", "image"]))
    assert waits == [1.0, 5.0]
    store.patience = None
    with pytest.raises(StorageError) as refused:
        read_row_group(there.filesystem, groups[0])
    assert (refused.value.key, refused.value.where) == ("store", groups[0].path)
    waits.clear()
    store.fault = "AWS Error INVALID_ACCESS_KEY_ID during GetObject operation: no such key"
    with pytest.raises(StorageError):  # a damaged shard would be prepared again
        read_row_group(there.filesystem, groups[0])
    waits.clear()
    store.fault = None
    with pytest.raises(DatasetError):
        read_row_group(there.filesystem, dataclasses.replace(groups[0], path=f"{root}/none"))
    content = bytearray(Path(here[0].path).read_bytes())
    content[len(content) // 2] ^= 1
    write_file(there.filesystem, groups[0].path, bytes(content))
    with pytest.raises(DatasetError):
        _ = [read_row_group(there.filesystem, group, ["image"]) for group in groups]
    assert not waits
