"""A sweep on an object store: whole objects, a study that is never torn, and the same on every machine."""

from __future__ import annotations

import pickle
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from buckets import s3_on_loopback
from typer.testing import CliRunner

from his2lip.cli.app import app
from his2lip.cli.study_page import opened_study
from his2lip.config import validate
from his2lip.errors import ConfigError, RunError
from his2lip.files import filesystem
from his2lip.models import load_model, read_meta, save_checkpoint
from his2lip.models.registered import meta_of
from his2lip.tuning import sweep_directory
from his2lip.tuning.config import SweepConfig
from his2lip.tuning.study import open_study
from his2lip.tuning.sweep import earlier_trials
from his2lip.tuning.sweep_directory import StoredSweep, SweepDir, open_sweep

Machine = Callable[[str], None]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """machine(name): from now on this process is on the machine `name`; at first it is on `head`."""

    def move(name: str) -> None:
        monkeypatch.setattr(sweep_directory, "session_folder", lambda: tmp_path / name)

    move("head")
    return move


@pytest.fixture
def sweep(machine: Machine, tmp_path: Path) -> SweepDir:
    return open_sweep((tmp_path / "bucket").as_uri(), "mine")


@pytest.fixture
def bucket() -> Iterator[str]:
    with s3_on_loopback("ihc") as uri:
        yield uri


def objects(sweep: SweepDir) -> set[str]:
    """The names of all objects of a sweep."""
    from pyarrow.fs import FileSelector

    system, root = filesystem(sweep.shared)
    found = system.get_file_info(FileSelector(root, recursive=True, allow_not_found=True))
    return {info.path.removeprefix(f"{root}/") for info in found if info.is_file}


def train(sweep: SweepDir, name: str, *, step: int) -> None:
    """What a trial does at a report that is its best so far."""
    save_checkpoint(sweep.trial(name) / "best", load_model("tiny", seed=step), meta={"step": step})
    sweep.keep(name)


def config(storage: str, **changes: Any) -> SweepConfig:
    space = {"x": {"kind": "uniform", "low": 0.0, "high": 1.0}}
    tree = {"name": "mine", "train": {}, "space": space, "metric": "value", "storage": storage}
    return validate(SweepConfig, {**tree, **changes})


def with_study(sweep: SweepDir, *values: float) -> optuna.Study:
    """A study in the sweep's folder with a finished trial for each x, which is its value too."""
    study = open_study(config(""), f"sqlite:///{sweep.path}/study.db", inputs={})
    for value in values:
        trial = study.ask(fixed_distributions={})
        trial.suggest_float("x", value, value)
        study.tell(trial, value)
    return study


def test_checkpoints_and_study_go_from_machine_to_machine_over_s3(machine: Machine, bucket: str) -> None:
    sweep = open_sweep(f"{bucket}/runs", "mine")
    with sweep.locked():
        with_study(sweep, 0.5)
        (sweep.path / "his2lip.log").write_text("a line\n", encoding="utf-8")
        sweep.store()
        machine("node")
        train(sweep, "0", step=1)
        train(sweep, "1", step=2)
        first = objects(sweep)
        assert first == {"study.db", "driver", "his2lip.log", "trials/0/best.tar", "trials/1/best.tar"}
        sweep.release("0")
        assert not sweep.trial("0").exists()
        machine("head")
        sweep.remove_trials({"0", "5"})
        assert objects(sweep) == first - {"trials/0/best.tar"}
    machine("another head")
    anew = StoredSweep(sweep.shared)
    with anew.locked():
        study = optuna.load_study(study_name="mine", storage=f"sqlite:///{anew.path}/study.db")
        assert len(study.trials) == 1
        assert (anew.path / "his2lip.log").read_text(encoding="utf-8") == "a line\n"
        best = anew.best("1")
        assert best is not None
        assert read_meta(best)["step"] == 2
        assert load_model(anew.address("1")).config_digest() == load_model(best).config_digest()
        assert anew.best("0") is None
        anew.clear()
    assert objects(sweep) == {"driver", "his2lip.log"}
    with StoredSweep(f"{sweep.shared}-other").locked():
        assert not (StoredSweep(f"{sweep.shared}-other").path / "study.db").exists()


def test_a_checkpoint_is_stored_when_it_is_new_and_only_then(sweep: SweepDir, tmp_path: Path) -> None:
    train(sweep, "3", step=1)
    file = tmp_path / "bucket/tune/mine/trials/3/best.tar"
    first = file.stat().st_ino
    sweep.keep("3")
    assert file.stat().st_ino == first
    train(sweep, "3", step=2)
    assert meta_of(sweep.address("3"))["step"] == 2
    sweep.keep("4")  # a trial that wrote nothing
    assert sweep.best("4") is None


def test_the_stored_study_is_whole_while_another_connection_writes(sweep: SweepDir) -> None:
    with sweep.locked():
        with_study(sweep, 0.25, 0.5)
        with closing(sqlite3.connect(sweep.path / "study.db", isolation_level=None)) as writer:
            writer.execute("BEGIN IMMEDIATE")
            writer.execute("DELETE FROM trials")
            sweep.store()
            writer.execute("ROLLBACK")
        with opened_study(sweep.shared) as url:
            copy = url.removeprefix("sqlite:///")
            with closing(sqlite3.connect(copy)) as stored:
                assert stored.execute("PRAGMA integrity_check").fetchone() == ("ok",)
                assert stored.execute("SELECT count(*) FROM trials").fetchone() == (2,)
    assert not Path(copy).exists()


def test_a_driver_whose_sweep_another_one_took_over_stores_and_removes_no_more_nor_do_its_trials(
    sweep: SweepDir, machine: Machine
) -> None:
    other = StoredSweep(sweep.shared)
    with sweep.locked():
        with_study(sweep, 0.25)
        sweep.store()
        sweep.store()  # its own writing is no other's
        mine = sweep.new_trial(1)
        trial = pickle.loads(pickle.dumps(sweep))  # as Ray sends it to the process of a trial
        train(trial, mine, step=1)
        machine("elsewhere")
        with other.locked():
            with_study(other, 0.5, 0.75)
            other.store()
            its = other.new_trial(1)
            assert its != mine, "a trial of the same number has another name"
            train(other, its, step=2)
            machine("head")
            for act in (
                sweep.store,
                lambda: sweep.remove_trials({mine, its}),
                lambda: train(trial, mine, step=3),
            ):
                with pytest.raises(RunError) as refused:
                    act()
                assert (refused.value.where, refused.value.key) == (sweep.shared, "storage")
            assert [meta_of(sweep.address(name))["step"] for name in (mine, its)] == [1, 2]
            machine("elsewhere")
            other.store()
            other.remove_trials({mine})
        assert f"trials/{its}/best.tar" in objects(sweep)
        with opened_study(sweep.shared) as url:
            assert len(optuna.load_study(study_name="mine", storage=url).trials) == 3
    machine("head")
    with sweep.locked():  # the same command resumes it
        sweep.store()


def test_a_driver_does_not_begin_with_a_study_that_another_one_has_written_since(
    sweep: SweepDir, machine: Machine
) -> None:
    other = StoredSweep(sweep.shared)
    with sweep.locked():
        with_study(sweep, 0.25)
        sweep.store()
        machine("elsewhere")
        with other.locked():
            machine("head")
            sweep.store()
            machine("elsewhere")
            with pytest.raises(RunError) as refused:
                other.store()
            assert (refused.value.where, refused.value.key) == (sweep.shared, "storage")
        machine("head")
        sweep.store()  # it was not taken over


def test_trials_that_a_killed_driver_began_and_its_study_does_not_know_are_no_others_and_are_removed(
    sweep: SweepDir, machine: Machine
) -> None:
    """The driver dies after it asked for trial 3 and before the study with it is stored."""
    with sweep.locked():
        with_study(sweep, 0.25)
        sweep.store()
        lost, known = sweep.new_trial(3), sweep.new_trial(0)
        for name in (lost, known, "2"):  # 2: of a version that named trials by their numbers only
            train(sweep, name, step=1)
        sweep.hang(lost).parent.mkdir()
        sweep.hang(lost).write_text("in objective", encoding="utf-8")
        sweep.collect_hang(lost)
    machine("another head")
    second = StoredSweep(sweep.shared)
    with second.locked():
        again = second.new_trial(3)
        second.fetch_hang(again)
        assert not second.hang(again).exists(), "another trial of that number did not hang"
        assert second.best(again) is None
        second.store()
        second.remove_unknown([known])
    left = {name for name in objects(sweep) if name.startswith("trials/")}
    assert left == {f"trials/{known}/best.tar", "trials/2/best.tar"}


def test_trials_in_a_bucket_whose_study_was_lost_are_refused_and_kept(
    sweep: SweepDir, machine: Machine, tmp_path: Path
) -> None:
    with sweep.locked():
        with_study(sweep, 0.25)
        sweep.store()
        train(sweep, name := sweep.new_trial(0), step=1)
    machine("another head")
    second = StoredSweep(sweep.shared)
    with second.locked():
        second.refuse_unknown([])  # its driver was killed before the study with the first trial was stored
    (tmp_path / "bucket/tune/mine/study.db").unlink()
    with second.locked():
        with_study(second)
        with pytest.raises(RunError) as refused:
            second.refuse_unknown([])
        assert (refused.value.key, refused.value.where) == ("study", f"{sweep.shared}/trials")
    assert f"trials/{name}/best.tar" in objects(sweep)


def test_what_an_earlier_command_left_here_is_not_used(sweep: SweepDir) -> None:
    with sweep.locked():
        with_study(sweep, 0.25)
        sweep.store()
        with_study(sweep, 0.5)
        (sweep.trial("7") / "best").mkdir(parents=True)
    with sweep.locked():
        study = optuna.load_study(study_name="mine", storage=f"sqlite:///{sweep.path}/study.db")
        assert len(study.trials) == 1
        assert not sweep.trial("7").exists()
        with pytest.raises(RunError) as refused, StoredSweep(sweep.shared).locked():
            pass
    assert refused.value.where == sweep.shared


def test_what_a_hung_trial_was_doing_is_found_on_another_machine(sweep: SweepDir, machine: Machine) -> None:
    with sweep.locked():
        sweep.hang("2").parent.mkdir()
        sweep.hang("2").write_text("in objective", encoding="utf-8")
        sweep.collect_hang("2")
        sweep.collect_hang("3")  # one whose process was killed
    assert objects(sweep) == {"hung/2.txt"}
    machine("node")
    for name in ("2", "3"):
        sweep.fetch_hang(name)
    assert sweep.hang("2").read_text(encoding="utf-8") == "in objective"
    assert not sweep.hang("3").exists()


def test_an_earlier_sweep_and_its_page_are_found_by_name_and_by_uri(sweep: SweepDir, tmp_path: Path) -> None:
    with sweep.locked():
        with_study(sweep, 0.25, 0.75)
        sweep.store()
    storage = (tmp_path / "bucket").as_uri()
    later = config(storage, name="later")
    for name in ("mine", sweep.shared):
        assert [row.value for row in earlier_trials(later, name)] == [0.75, 0.25]
    for name in ("nosuch", f"{storage}/nosuch"):
        with pytest.raises(RunError) as refused:
            earlier_trials(later, name)
        assert refused.value.key == "warm_start"
    with opened_study(sweep.shared) as url:
        assert [s.study_name for s in optuna.get_all_study_summaries(url)] == ["mine"]
    with pytest.raises(RunError) as missing, opened_study(f"{storage}/nosuch"):
        pass
    assert missing.value.key == "--study"
    for database in ("sqlite:///x.db", "postgresql+psycopg2://me@127.0.0.1/studies"):
        with opened_study(database) as url:
            assert url == database


def test_gc_of_an_object_store_is_refused() -> None:
    with pytest.raises(ConfigError) as refused:
        CliRunner().invoke(app, ["gc", "--storage", "s3://bucket/runs"], catch_exceptions=False)
    assert (refused.value.key, refused.value.where) == ("--storage", "s3://bucket/runs")


def test_a_folder_is_a_sweep_as_before(tmp_path: Path) -> None:
    sweep = open_sweep(str(tmp_path), "mine")
    assert not isinstance(sweep, StoredSweep)
    assert sweep.path == tmp_path / "tune/mine"
    assert (sweep.shared, sweep.new_trial(3)) == (str(sweep.path), "3")
    assert sweep.address("3") == str(sweep.path / "trials/3/best")
