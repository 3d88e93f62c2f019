"""The file layer: addresses of stores, and a lock that one process has at a time."""

import errno
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyarrow import fs

from his2lip.errors import DatasetError, RunError, StorageError
from his2lip.files import at_hand, below, discard, filesystem, in_folder, locked, printable, write_file

HOLDER = """
import pathlib, sys
from his2lip.files import locked
with locked(pathlib.Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process(lock: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has the lock, until it is killed or the block ends."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_lock_of_another_process_raises_the_callers_error_and_ends_when_that_process_is_killed(tmp_path):
    lock, busy = tmp_path / "lock", RunError("busy")
    with another_process(lock) as process:
        with pytest.raises(RunError) as refused, locked(lock, busy=busy):
            pytest.fail("two processes have the lock")
        assert refused.value is busy
        process.kill()
        process.wait()
        with locked(lock, busy=busy):
            assert lock.exists()


def test_without_an_error_the_call_waits_until_the_lock_is_free(tmp_path):
    lock, entered = tmp_path / "lock", []
    with another_process(lock) as process:
        waiter = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(lock)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        )
        with pytest.raises(subprocess.TimeoutExpired):
            waiter.wait(timeout=1)
        process.kill()
        entered.append(waiter.communicate(timeout=30)[0])
    assert entered == [b"locked\n"]
    assert waiter.returncode == 0


def test_a_lock_is_made_again_where_its_folder_is_removed_while_a_command_waits_for_it(tmp_path):
    lock, entered = tmp_path / "run/lock", []

    def enter() -> None:
        with locked(lock):
            entered.append(lock.exists())

    waiter = threading.Thread(target=enter)
    with locked(lock):
        waiter.start()
        waiter.join(timeout=0.5)  # it waits
        discard(lock.parent)
    waiter.join()
    assert entered == [True]


def test_a_lock_is_free_again_after_the_block_also_when_it_raises(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), locked(tmp_path / "lock", busy=RunError("busy")):
            1 / 0  # noqa: B018


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_used_unlocked(tmp_path, monkeypatch, number):
    def no_locks(handle: int, flags: int) -> None:
        raise OSError(number, "no locks here")

    monkeypatch.setattr("fcntl.flock", no_locks)
    ran = []
    with locked(tmp_path / "lock", busy=RunError("busy")):
        ran.append(True)
    assert ran


def test_a_lock_that_cannot_be_created_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), locked(tmp_path / "file" / "lock"):
        pytest.fail("the block ran")


@pytest.mark.parametrize(
    "uri",
    [
        *("ftp://", "ftp:///data", "github://", "github://owner/path"),
        *("nosuch://x/y", "://x", "gs://bucket/x", "ftp://127.0.0.1:1/x", "\udcff"),
    ],
)
def test_an_address_that_cannot_be_used_is_one_sentence_within_seconds(
    uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # no Google credentials
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:1")
    start = time.monotonic()
    with pytest.raises(DatasetError) as refused:
        filesystem(uri)
    assert time.monotonic() - start < 20
    assert refused.value.where == printable(uri)
    assert "\n" not in str(refused.value)


def test_a_folder_that_another_process_creates_meanwhile_is_listed(tmp_path: Path) -> None:
    system, number = fs.LocalFileSystem(), 1000
    asked = threading.Semaphore(0)

    def create() -> None:
        for folder in range(number):
            asked.acquire()
            (tmp_path / str(folder)).mkdir()

    # Arrow's listing has the moment between its two looks at a folder; about 3 of 10 folders are made in it.
    creator = threading.Thread(target=create, daemon=True)
    creator.start()
    for folder in range(number):
        asked.release()
        while not (tmp_path / str(folder)).is_dir():
            assert in_folder(system, str(tmp_path / str(folder))) == []
    creator.join()


def test_a_file_whose_folder_is_removed_while_it_is_written_is_written_again(tmp_path: Path) -> None:
    system, folder, number = fs.LocalFileSystem(), tmp_path / "features", 1000
    asked, removed = threading.Semaphore(0), threading.Semaphore(0)

    def remove() -> None:
        for _ in range(number):
            asked.acquire()
            discard(folder)
            removed.release()

    # Most folders are removed between their creation and the renaming of the file.
    threading.Thread(target=remove, daemon=True).start()
    for _ in range(number):
        asked.release()
        write_file(system, f"{folder}/part", b"content")
        removed.acquire()


_MAKES_AND_REMOVES = """
import pathlib, shutil, sys
folder = pathlib.Path(sys.argv[1])
print("started", flush=True)
while True:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "file").touch()
    shutil.rmtree(folder)
"""


def test_what_another_process_removes_meanwhile_is_left_out_of_what_is_below_a_folder(tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(b"123")
    command = [sys.executable, "-c", _MAKES_AND_REMOVES, str(tmp_path / "a/b")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        for _ in range(5000):
            found = {path.relative_to(tmp_path).as_posix(): stat.st_size for path, stat in below(tmp_path)}
            assert found["kept"] == 3
            assert set(found) <= {"kept", "a", "a/b", "a/b/file"}
        process.kill()


def test_what_is_discarded_is_gone_and_what_a_link_leads_to_stays(tmp_path: Path) -> None:
    (tmp_path / "folder/inside").mkdir(parents=True)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    discard(tmp_path / "link")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    for name in ("folder", "file", "none"):
        discard(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_what_is_in_a_folder_is_listed_at_one_depth_or_at_any(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/file").write_bytes(b"12")
    system = fs.LocalFileSystem()
    assert [i.base_name for i in in_folder(system, f"{tmp_path}/a")] == ["b"]
    assert {i.base_name for i in in_folder(system, f"{tmp_path}/a", recursive=True)} == {"b", "file"}
    assert in_folder(system, f"{tmp_path}/none") == []
    with pytest.raises(StorageError):
        in_folder(system, f"{tmp_path}/a/b/file")


def test_a_folder_of_an_object_store_is_at_hand_as_a_copy_whose_changes_are_stored() -> None:
    system, root = filesystem("memory://at-hand/board")
    for name in ("kept.csv", "pages/index.html"):
        write_file(system, f"{root}/{name}", b"before")
    with at_hand("memory://at-hand/board") as folder:
        assert (folder / "pages/index.html").read_bytes() == b"before"
        (folder / "pages/index.html").write_bytes(b"after!")
        (folder / "pages/plots").mkdir()
        (folder / "pages/plots/new.png").write_bytes(b"png")
    assert not folder.exists()
    files = [i.path for i in system.get_file_info(fs.FileSelector(root, recursive=True)) if i.is_file]
    assert {path.removeprefix(root) for path in files} == {
        *("/kept.csv", "/pages/index.html", "/pages/plots/new.png"),
    }
    with system.open_input_stream(f"{root}/pages/index.html") as file:
        assert file.read() == b"after!"


def test_nothing_is_stored_where_the_work_on_the_copy_fails() -> None:
    system, root = filesystem("memory://at-hand/failed")
    write_file(system, f"{root}/file", b"before")
    with pytest.raises(IsADirectoryError), at_hand("memory://at-hand/failed") as folder:
        folder.write_bytes((folder / "file").write_bytes(b"half").to_bytes())
    with system.open_input_stream(f"{root}/file") as file:
        assert file.read() == b"before"


def test_a_local_folder_is_at_hand_as_it_is(tmp_path: Path) -> None:
    with at_hand(str(tmp_path)) as folder:
        assert folder == tmp_path
