"""The folder of a run: starting, resuming, finishing, refusing, clearing and locking."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from meanwhile import meanwhile

from his2lip.errors import CheckpointError, RunError
from his2lip.models.checkpoint import replacing
from his2lip.models.resume import ResumeState, save_resume
from his2lip.resources import code_version
from his2lip.training.run_directory import RunDir, start_or_resume


def made(lr: float = 1.0, data: str = "d", version: str = "1") -> dict:
    made_of = {"config": {"optim": {"lr": lr}}, "data": data}
    return {"id": f"{lr}{data}", "made_of": made_of, "code_version": version}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    path = tmp_path / "train" / "first"
    path.mkdir(parents=True)
    return RunDir(path)


def start(run: RunDir, identity: dict, *, fresh: bool = False) -> tuple[dict, list[str]]:
    said: list[str] = []
    return start_or_resume(run, identity=identity, fresh=fresh, say=said.append), said


def test_a_new_run_is_running_and_has_no_note(run: RunDir) -> None:
    state, said = start(run, made())
    assert state["status"] == "running"
    assert said == []
    assert run.read() == state


def test_same_inputs_resume_without_a_note(run: RunDir) -> None:
    start(run, made())
    state, said = start(run, made())
    assert (state["status"], said) == ("running", [])


def test_a_finished_run_is_reported_as_finished(run: RunDir) -> None:
    state, _ = start(run, made())
    run.write({**state, "status": "finished"})
    state, said = start(run, made(version="2"))
    assert state["status"] == "finished"
    assert "was finished before; nothing was run" in said[0]


def test_other_code_resumes_with_a_note(run: RunDir) -> None:
    start(run, made())
    _, said = start(run, made(version="2"))
    assert "code version 1" in said[0]
    assert "2" in said[0]


@pytest.mark.parametrize(("other", "named"), [(made(lr=2.0), "optim.lr"), (made(data="e"), "data")])
def test_name_in_use_by_other_inputs_is_refused_and_the_difference_named(
    run: RunDir, other: dict, named: str
) -> None:
    start(run, made())
    run.last.mkdir()
    with pytest.raises(RunError) as refused:
        start(run, other)
    assert (refused.value.key, refused.value.where) == ("name", run.path)
    assert named in re.findall(r"[\w.]+", refused.value.what)
    assert run.read()["id"] == made()["id"]


@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_checkpoints_of_a_run_that_is_not_known_are_not_resumed(run: RunDir, checkpoint: str) -> None:
    (run.path / checkpoint).mkdir()
    with pytest.raises(RunError) as refused:
        start(run, made())
    assert (refused.value.key, str(refused.value.where)) == ("name", str(run.path))
    assert run.read() is None


@pytest.mark.parametrize("name", [".best.former", ".last.former"])
def test_name_of_a_run_that_was_killed_while_it_replaced_its_checkpoint_is_not_free(
    run: RunDir, name: str
) -> None:
    start(run, made())
    (run.path / name).mkdir()
    with pytest.raises(RunError):
        start(run, made(lr=2.0))
    assert (run.path / name).is_dir()


@pytest.mark.parametrize("name", ["last", ".last.former"])
def test_a_last_checkpoint_that_cannot_be_resumed_is_refused_and_no_new_start(run: RunDir, name: str) -> None:
    start(run, made())
    (run.path / name).mkdir()
    with pytest.raises(CheckpointError) as refused:
        start(run, made())
    assert (refused.value.key, refused.value.where) == ("resume", run.path / name)


def test_a_note_says_that_a_run_without_its_last_checkpoint_starts_again(run: RunDir) -> None:
    start(run, made())
    run.best.mkdir()
    _, said = start(run, made())
    assert "step 0" in said[0]


def test_name_of_a_run_that_saved_nothing_is_free(run: RunDir) -> None:
    start(run, made())
    state, said = start(run, made(lr=2.0))
    assert (state["id"], said) == (made(lr=2.0)["id"], [])
    assert run.read()["id"] == made(lr=2.0)["id"]


def test_fresh_removes_all_files_of_the_earlier_run(run: RunDir) -> None:
    start(run, made())
    (run.path / "last").mkdir()
    (run.path / "last" / "model.safetensors").write_bytes(b"old")
    state, _ = start(run, made(lr=2.0), fresh=True)
    assert state["id"] == made(lr=2.0)["id"]
    assert not run.last.exists()


def test_unfinished_checkpoint_is_removed(run: RunDir) -> None:
    start(run, made())
    (run.path / ".last.1234.tmp").mkdir()
    (run.path / ".best.0123abcd.old.tmp").mkdir()
    (run.path / ".train.log.0123abcd.old.tmp").touch()
    save_resume(run.last / "resume", ResumeState(step=1, optimizer={}))
    start(run, made())
    assert not list(run.path.glob(".*.tmp"))
    assert [p.name for p in run.path.iterdir() if p.is_dir()] == ["last"]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"id": 1}', ""])
def test_damaged_state_is_refused(run: RunDir, text: str) -> None:
    (run.path / "run.json").write_text(text)
    with pytest.raises(RunError) as refused:
        start(run, made())
    assert refused.value.where == run.path / "run.json"


def test_a_second_command_is_refused_until_the_first_ends(run: RunDir) -> None:
    holder = (
        "import sys, pathlib; from his2lip.training.run_directory import RunDir\n"
        "with RunDir(pathlib.Path(sys.argv[1])).locked():\n"
        "    print('locked', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", holder, str(run.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(RunError) as refused, run.locked():
            pass
        assert refused.value.where == run.path
        process.kill()  # SIGKILL: the system releases the lock of a dead process
        process.wait()
    with run.locked():
        pass


def test_code_version_names_release_and_sources() -> None:
    release, _, sources = code_version().partition("+")
    assert release[0].isdigit()
    assert len(sources) == 12


def test_fresh_beside_a_worker_that_still_saves_a_checkpoint_is_no_error(run: RunDir) -> None:
    def save() -> None:
        with suppress(OSError), replacing(run.last) as new:  # what it writes is taken away
            for number in range(5):
                (new / str(number)).write_bytes(bytes(1000))

    with meanwhile(save):
        for _ in range(300):
            run.write({"id": "first"})
            run.clear()
    assert not (run.path / "run.json").exists()


def test_fresh_does_not_remove_a_folder_that_has_no_run(run: RunDir) -> None:
    (run.path / "patches").mkdir()
    with pytest.raises(RunError) as refused:
        start(run, made(), fresh=True)
    assert (refused.value.key, refused.value.where) == ("name", run.path)
    assert "patches" in refused.value.what, "the folder that --fresh would have removed"
    assert (run.path / "patches").is_dir()


def test_state_with_a_changed_letter_is_refused(run: RunDir) -> None:
    start(run, made())
    path = run.path / "run.json"
    path.write_text(path.read_text().replace('"running"', '"finished"'))
    with pytest.raises(RunError) as refused:
        start(run, made())
    assert refused.value.where == path


def test_a_checkpoint_that_a_living_worker_gives_its_name_meanwhile_is_whole(run: RunDir) -> None:
    """A worker may outlive its driver for a moment: the command that resumes empties no `last`."""
    new, files = run.path / ".last.01234567.tmp", 3000
    new.mkdir()
    for number in range(files):
        (new / str(number)).touch()
    remover = threading.Thread(target=run.remove_unfinished)
    remover.start()
    with suppress(FileNotFoundError):
        while sum(1 for _ in new.iterdir()) == files:
            pass
        new.rename(run.last)  # what the worker does
    remover.join()
    assert not run.last.exists() or sum(1 for _ in run.last.iterdir()) == files
    assert not list(run.path.glob(".*.tmp"))
