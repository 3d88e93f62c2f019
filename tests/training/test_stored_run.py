"""A run on an object store: whole objects, no lock, and the same content on every machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from small_disk import needs_mount, small_disk

from his2lip.config import digest
from his2lip.errors import CheckpointError, ModelError, StorageError
from his2lip.models import ResumeState, load_model, registered, save_checkpoint, weights_identity
from his2lip.models.provenance import read_meta
from his2lip.models.registered import checkpoint_folder, fetch_checkpoint, local_name, meta_of
from his2lip.models.stored import fetch_stored
from his2lip.training import run_directory
from his2lip.training.run_directory import RunDir, StoredRun, open_run, start_or_resume

IDENTITY = {"id": "a" * 64, "made_of": {}, "code_version": "1"}


@pytest.fixture
def storage(tmp_path: Path) -> str:
    return (tmp_path / "bucket").as_uri()


@pytest.fixture
def run(storage: str) -> RunDir:
    """A run that has saved its two checkpoints."""
    made = open_run(storage, "mine")
    with made.locked():
        start_or_resume(made, identity=IDENTITY, fresh=False, say=pytest.fail)
        for folder, seed in ((made.best, 1), (made.last, 2)):
            state = ResumeState(step=seed, optimizer={}) if folder == made.last else None
            save_checkpoint(folder, load_model("tiny", seed=seed), meta={"step": seed}, resume=state)
            made.keep(folder.name)
    return made


def objects(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "bucket/train/mine").iterdir())


def test_a_run_is_three_objects(run: RunDir, tmp_path: Path) -> None:
    assert objects(tmp_path) == ["best.tar", "last.tar", "run.json"]


def test_another_process_resumes_it_from_the_store(
    run: RunDir, storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = open_run(storage, "mine")
    assert other.path != run.path
    with other.locked():
        state = start_or_resume(other, identity=IDENTITY, fresh=False, say=pytest.fail)
        assert state["status"] == "running"
        assert (read_meta(other.best)["step"], read_meta(other.last)["step"]) == (1, 2)
    monkeypatch.setattr(run_directory, "session_folder", lambda: tmp_path / "session")
    with other.in_worker(0) as killed, other.in_worker(1) as there:
        assert read_meta(there.last)["step"] == 2
        folder = there.path
        (tmp_path / "left").mkdir()
        shutil.copytree(killed.path, tmp_path / "left/mine")  # what a killed worker leaves
        left = killed.path.parent.with_name("0-dead")
        shutil.move(tmp_path / "left", left)
        with other.in_worker(0):
            assert not left.exists()
            assert folder.exists(), "another rank's"
    assert not folder.exists()


@needs_mount
def test_the_copy_of_a_killed_driver_is_removed_at_the_next_start_and_that_of_a_living_one_is_kept(
    run: RunDir, storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = "import sys\nfrom his2lip.training.run_directory import open_run\n"
    code += "run = open_run(sys.argv[1], 'mine')\n"
    code += "with run.locked(): print(run.path, flush=True); sys.stdin.read()"
    line, to = [sys.executable, "-c", code, storage], {**os.environ, "TMPDIR": str(tmp_path)}

    def driver() -> tuple[subprocess.Popen[str], Path]:
        there = subprocess.Popen(line, env=to, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert there.stdout is not None
        return there, Path(there.stdout.readline().strip())

    (killed, left), (living, kept) = driver(), driver()
    with killed, living:
        killed.kill()
        killed.wait()
        assert read_meta(left / "best")["step"] == 1, "a copy of the checkpoint is left"
        other = tmp_path / f"{left.parent.name}-of-a-user"
        other.mkdir()
        open_run(storage, "mine")
        assert not left.parent.exists()
        assert read_meta(kept / "best")["step"] == 1
        assert other.is_dir(), "a folder that no process of ours has made"
        living.communicate(timeout=60)
    assert not kept.parent.exists()


def test_a_full_disk_while_a_checkpoint_is_packed_or_unpacked_is_one_sentence(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path / "small", 1 << 20) as disk:
        with monkeypatch.context() as small:
            small.setattr(tempfile, "tempdir", str(disk.path))
            with pytest.raises(StorageError) as refused:
                run.keep("last")
            assert refused.value.key == "disk"
        with pytest.raises(StorageError) as refused:
            fetch_stored(run.address("best"), disk.path / "best")
        assert refused.value.key == "disk"
    run.keep("last")


def test_its_checkpoint_is_loaded_by_its_address(run: RunDir, tmp_path: Path) -> None:
    address = run.address("best")
    assert address.endswith("/bucket/train/mine/best.tar")
    assert load_model(address).config_digest() == load_model(run.best).config_digest()
    assert meta_of(address)["step"] == 1
    with checkpoint_folder(address) as folder:
        assert folder is not None
        assert weights_identity(str(folder)) == weights_identity(str(run.best))
    copy = local_name(address, str(tmp_path / "runs"))
    assert weights_identity(copy) == weights_identity(str(run.best))


def test_an_object_that_is_cut_short_is_refused_and_one_that_is_missing_is_named(
    run: RunDir, tmp_path: Path
) -> None:
    file = tmp_path / "bucket/train/mine/best.tar"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(CheckpointError) as damaged:
        load_model(run.address("best"))
    assert damaged.value.where == run.address("best")
    file.unlink()
    with pytest.raises(ModelError) as missing:
        load_model(run.address("best"))
    assert missing.value.where == run.address("best")


def test_fresh_removes_the_objects_and_other_inputs_are_refused(
    run: RunDir, storage: str, tmp_path: Path
) -> None:
    again = open_run(storage, "mine")
    with again.locked():
        start_or_resume(again, identity=IDENTITY, fresh=True, say=pytest.fail)
    assert objects(tmp_path) == ["run.json"]
    assert not again.last.exists()


def test_a_folder_is_a_run_as_before(tmp_path: Path) -> None:
    run = open_run(str(tmp_path), "mine")
    assert not isinstance(run, StoredRun)
    assert run.path == tmp_path / "train/mine"
    assert (run.shared, run.address("best")) == (str(run.path), str(run.best))


def test_a_copy_has_the_name_of_its_content_while_the_run_stores_the_next_checkpoint(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch, fetched = registered.fetch_stored, []

    def then_another(uri: str, folder: Path) -> bool:
        found = fetch(uri, folder)
        fetched.append(uri)
        save_checkpoint(run.best, load_model("tiny", seed=3), meta={"step": 2 + len(fetched)})
        run.keep("best")
        return found

    monkeypatch.setattr(registered, "fetch_stored", then_another)
    place = fetch_checkpoint(run.address("best"), tmp_path / "copies")
    assert place.name == digest(read_meta(place))[:16]
    assert len(fetched) == 1, "an object is fetched once"


def test_two_commands_that_copy_one_checkpoint_at_once_both_have_it(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def after_another(source: Path, place: Path) -> None:
        shutil.copytree(source, place)
        rename(source, place)

    monkeypatch.setattr(registered.os, "rename", after_another)
    place = fetch_checkpoint(run.address("best"), tmp_path / "copies")
    assert read_meta(place)["step"] == 1
    assert list((tmp_path / "copies").iterdir()) == [place]
