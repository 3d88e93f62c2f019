"""What `his2lip gc` lists and removes, and what it never touches."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cell_results import cell_result
from meanwhile import meanwhile
from typer.testing import CliRunner

from his2lip.cli.app import app
from his2lip.errors import ConfigError, RunError
from his2lip.evaluation.results import to_csv
from his2lip.housekeeping import remove, superfluous
from his2lip.tracking.store import Tracker
from his2lip.training.run_directory import RunDir

DAY = 86_400.0
LISTER = """
import pathlib, sys
from his2lip.housekeeping import superfluous
print("lists", flush=True)
for _ in range(500):
    superfluous(pathlib.Path(sys.argv[1]), days=7, needed=())
"""
LEFT = f"part-2.parquet.{'a' * 32}.tmp"


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """A finished run, an old and a new unfinished one, a benchmark with its features, and leftovers."""
    folder = tmp_path / "runs"
    for name, status, age in (("done", "finished", 30), ("old", "running", 30), ("new", "running", 0)):
        run = RunDir(folder / "train" / name)
        run.path.mkdir(parents=True)
        state = {"id": name, "status": status, "code_version": "1"}
        run.write(state | ({"result": {"steps": 1, "history": []}} if status == "finished" else {}))
        for checkpoint in (run.best, run.last):
            checkpoint.mkdir()
            (checkpoint / "model.safetensors").write_bytes(bytes(1000))
        _age(run.path, age)
    cell = cell_result(encoder="used")
    for key in (cell.encoder, "unused"):
        place = folder / "cache/images" / key
        place.mkdir(parents=True)
        (place / "part-1.parquet").write_bytes(bytes(500))
    (place / LEFT).write_bytes(bytes(10))
    (place / "a users own.tmp").write_bytes(bytes(10))
    board = folder / "benchmark/b/leaderboard.csv"
    board.parent.mkdir(parents=True)
    board.write_text(to_csv([cell]), encoding="utf-8")
    (folder / "registered/v1").mkdir(parents=True)
    (folder / "mine.tmp").write_bytes(b"a user's own file")
    _age(folder / "registered", 30)
    _age(folder / "cache/images/unused", 30)
    return folder


def _age(folder: Path, days: float) -> None:
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (time.time() - days * DAY, time.time() - days * DAY))


def listed(storage: Path, **changes: object) -> set[tuple[str, str]]:
    found = superfluous(storage, **({"days": 7, "needed": ()} | changes))  # type: ignore[arg-type]
    return {(item.kind, item.path.relative_to(storage).as_posix()) for item in found}


def test_what_no_result_needs_is_listed_and_nothing_else(storage: Path) -> None:
    assert listed(storage) == {
        ("checkpoint", "train/done/last"),
        ("run", "train/old"),
        ("features", "cache/images/unused"),
        ("copy", "registered/v1"),
        ("leftover", f"cache/images/unused/{LEFT}"),
    }
    assert listed(storage, now=time.time() + 8 * DAY) - listed(storage) == {("run", "train/new")}


def test_what_a_killed_command_was_writing_fetching_or_removing_is_a_leftover(storage: Path) -> None:
    left = {
        "train/done/.last.0123abcd.tmp",
        "tune/s/trials/7/.best.0123abcd.old.tmp",
        "registered/.fetch-a1b2c3",
    }
    for place in left:
        (storage / place / "checkpoint").mkdir(parents=True)
        (storage / place / "checkpoint/model.safetensors").write_bytes(bytes(1000))
    file = "train/done/.run.json.0123abcd.old.tmp"  # of `run.json`, which --fresh was about to remove
    (storage / file).touch()
    before = listed(storage)
    left.add(file)
    for place in left:
        _age(storage / place, 1)
    assert listed(storage) - before == {("leftover", place) for place in left}
    for item in superfluous(storage, days=7, needed=()):
        remove(item)
    assert not any((storage / place).exists() for place in left)
    assert (storage / "train/done/best").is_dir()


def test_a_former_checkpoint_that_a_kill_in_the_last_save_left_is_listed_once_the_run_is_finished(
    storage: Path,
) -> None:
    before = listed(storage)
    for run in ("done", "new"):
        for name in ("last", "best"):
            (storage / "train" / run / f".{name}.former").mkdir()
    left = {("checkpoint", f"train/done/.{name}.former") for name in ("last", "best")}
    assert listed(storage) - before == left
    for item in superfluous(storage, days=7, needed=()):
        remove(item)
    assert sorted(path.name for path in (storage / "train/done").iterdir() if path.is_dir()) == ["best"]


def test_what_a_run_removes_while_it_is_looked_for_is_no_error(storage: Path) -> None:
    writing = storage / "train/new/.best.01234567.tmp/resume"

    def write_and_remove() -> None:
        writing.mkdir(parents=True, exist_ok=True)
        (writing / "optimizer.safetensors").touch()
        shutil.rmtree(writing.parent)

    before = listed(storage)
    with meanwhile(write_and_remove):
        for _ in range(500):
            assert listed(storage) == before


def test_what_a_board_or_a_run_names_is_kept(storage: Path) -> None:
    board = {"config": {"models": [{"path": f"local-dir:{storage}/train/done/last"}]}}
    (storage / "benchmark/b/board.json").write_text(json.dumps(board), encoding="utf-8")
    run = RunDir(storage / "train/new")
    run.write({**(run.read() or {}), "made_of": {"source": str(storage / "train/old/best")}})
    assert not {kind for kind, _ in listed(storage)} & {"checkpoint", "run"}
    (storage / "benchmark/b/board.json").write_text("damaged", encoding="utf-8")
    assert not {kind for kind, _ in listed(storage)} & {"checkpoint", "run"}


def test_what_a_sweep_starts_from_is_kept(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = storage / "tune/s/sweep.yaml"
    sweep.parent.mkdir(parents=True)
    monkeypatch.chdir(storage.parent)
    names = ["runs/train/done/last", f"{storage}/train/old/best"]
    sweep.write_text(json.dumps({"space": {"model.backbone": {"choices": names}}}), encoding="utf-8")
    assert not {kind for kind, _ in listed(storage)} & {"checkpoint", "run"}
    sweep.write_text("[damaged", encoding="utf-8")
    assert not {kind for kind, _ in listed(storage)} & {"checkpoint", "run"}


def test_features_are_kept_beside_an_unfinished_benchmark(storage: Path) -> None:
    (storage / "benchmark/at-work/cells").mkdir(parents=True)
    assert "features" not in {kind for kind, _ in listed(storage)}


def test_links_and_what_is_behind_them_are_kept(storage: Path, tmp_path: Path) -> None:
    (storage / "train/old").rename(tmp_path / "elsewhere")
    (storage / "train/old").symlink_to(tmp_path / "elsewhere")
    assert ("run", "train/old") not in listed(storage)


def test_a_run_that_was_finished_after_it_was_listed_is_kept(storage: Path) -> None:
    (item,) = (i for i in superfluous(storage, days=7, needed=()) if i.kind == "run")
    run = RunDir(storage / "train/old")
    run.write({**(run.read() or {}), "status": "finished"})
    with pytest.raises(RunError):
        remove(item)
    assert run.best.is_dir()


def test_a_checkpoint_that_mlflow_refers_to_is_kept_with_its_run(storage: Path) -> None:
    needed = {str(storage / "train/done/last"), str(storage / "train/old/best")}
    assert not {kind for kind, _ in listed(storage, needed=needed)} & {"checkpoint", "run"}
    assert not {kind for kind, _ in listed(storage, needed=None)} & {"checkpoint", "run"}


def test_a_run_that_a_command_has_locked_is_kept(storage: Path) -> None:
    with RunDir(storage / "train/old").locked():
        assert ("run", "train/old") not in listed(storage)
    _age(storage / "train/old", 30)
    assert ("run", "train/old") in listed(storage)
    (storage / "train/old/.lock").touch()  # as some versions of filelock do where the lock is only tried
    assert ("run", "train/old") in listed(storage)


def test_a_command_that_starts_while_gc_lists_is_not_refused(storage: Path) -> None:
    run = RunDir(storage / "train/old")
    with run.locked():
        pass
    with subprocess.Popen([sys.executable, "-c", LISTER, str(storage)], stdout=subprocess.PIPE) as lister:
        assert lister.stdout is not None
        lister.stdout.readline()
        while lister.poll() is None:
            with run.locked():
                pass


def test_features_are_kept_where_a_leaderboard_cannot_be_read(storage: Path) -> None:
    (storage / "benchmark/b/leaderboard.csv").write_text("damaged", encoding="utf-8")
    assert "features" not in {kind for kind, _ in listed(storage)}


def test_a_cache_elsewhere_is_cleaned_of_what_no_storage_that_shares_it_needs(
    storage: Path, tmp_path: Path, gc: Callable[..., str], mlflow_store: str
) -> None:
    elsewhere, other = tmp_path / "shared cache", tmp_path / "other"
    (storage / "cache").rename(elsewhere)
    shutil.copytree(elsewhere / "images/unused", elsewhere / "images/others")
    _age(elsewhere, 30)
    (other / "benchmark/b").mkdir(parents=True)
    cells = to_csv([cell_result(encoder="others")])
    (other / "benchmark/b/leaderboard.csv").write_text(cells, encoding="utf-8")
    board = json.dumps({"config": {"models": [], "cache": str(elsewhere)}})
    (storage / "benchmark/b/board.json").write_text(board, encoding="utf-8")

    assert f"--cache '{elsewhere}'" in gc("--kinds", "features").replace("\n", " ")
    gc("--remove", "--kinds", "features,leftover", "--cache", str(elsewhere), "--shared-with", str(other))
    assert {path.name for path in (elsewhere / "images").iterdir()} == {"used", "others"}
    assert not list(elsewhere.rglob(LEFT))
    with pytest.raises(ConfigError) as refused:
        gc("--cache", str(elsewhere / "absent"))
    assert refused.value.key == "--cache"


@pytest.fixture
def gc(storage: Path) -> Callable[..., str]:
    def call(*arguments: str) -> str:
        line = ["gc", "--storage", str(storage), *arguments]
        return CliRunner().invoke(app, line, catch_exceptions=False).output

    return call


def test_the_command_lists_first_and_removes_only_on_request(
    storage: Path, gc: Callable[..., str], mlflow_store: str
) -> None:
    run = Tracker.open().store_run()
    run.begin(outbox="o", experiment="e", name="old", config={}, tags={}, fresh=True, time=0)
    run.model(name="old", digest="0" * 64, path=str(storage / "train/old/best"), params={})
    before = sorted(storage.rglob("*"))
    assert "nothing was removed" in gc()
    assert sorted(storage.rglob("*")) == before
    assert "2 of 2 items removed" in gc("--remove", "--kinds", "checkpoint,features").replace("\n", " ")
    assert not (storage / "train/done/last").exists()
    assert (storage / "train/done/best").is_dir()
    assert json.loads((storage / "train/old/run.json").read_text())["status"] == "running"
    assert (storage / "registered/v1").is_dir(), "a kind that was not asked for"


def test_an_unknown_kind_is_a_mistake(gc: Callable[..., str], mlflow_store: str) -> None:
    with pytest.raises(ConfigError) as refused:
        gc("--kinds", "feature")
    assert refused.value.key == "--kinds"
