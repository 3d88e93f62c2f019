"""Starting a local Ray or joining a cluster: ports, token, folders, and clusters that do not answer."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from his2lip.errors import ClusterError
from his2lip.resources import code_version
from his2lip.runtime import (
    _check_node,
    _look,
    _temporary_folder,
    check_code,
    check_nodes,
    protect_token,
)
from his2lip.tracking.store import Tracker

START = "from his2lip.runtime import start_ray\nstart_ray(num_cpus=1, object_store_memory=100 << 20)\n"


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the token of this test is; there is none yet."""
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "home" / "auth_token"))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home" / "auth_token"


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_a_new_token_is_never_readable_by_others(token: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        assert not protect_token(create=True)
    finally:
        os.umask(before)
    assert _mode(token) == 0o600
    assert len(token.read_text()) == 64


def test_commands_that_start_at_once_agree_on_one_token(token: Path) -> None:
    threads = [threading.Thread(target=protect_token, kwargs={"create": True}) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first = token.read_text()
    protect_token(create=True)
    assert token.read_text() == first
    assert len(first) == 64


def test_a_token_that_others_can_read_is_made_private_and_kept(token: Path) -> None:
    token.parent.mkdir()
    token.write_text("secret")
    token.chmod(0o644)
    assert protect_token(create=True)
    assert (_mode(token), token.read_text()) == (0o600, "secret")
    assert not protect_token(create=True), "it is private already"


def test_no_token_is_written_to_join_a_cluster_or_where_tokens_are_off(
    token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    protect_token(create=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    protect_token(create=True)
    assert not token.exists()


_LISTENERS = (
    START
    + """
import json, os, time, ray
from listeners import listeners
@ray.remote
def work():
    time.sleep(3)
task = work.remote()
time.sleep(2)
print(json.dumps(sorted(listeners(os.getpid()))))
"""
)


@pytest.mark.parametrize(
    "before",
    [
        pytest.param("", marks=pytest.mark.slow, id="alone"),
        pytest.param("import ray, ray.train\n", id="ray is imported before"),
    ],
)
def test_a_local_ray_listens_on_this_machine_only_and_its_token_is_private(
    before: str, token: Path, tmp_path: Path
) -> None:
    """It starts where TMPDIR is too long for the paths of its sockets, too."""
    folder = tmp_path / ("job" * 20)
    folder.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"RAY_AUTH_TOKEN_PATH": str(token), "TMPDIR": str(folder)}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", before + _LISTENERS],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    listeners = json.loads(done.stdout.splitlines()[-1])
    assert {"gcs_server", "raylet"} <= {name for name, _ in listeners}
    assert {address for _, address in listeners} == {"127.0.0.1"}
    assert _mode(token) == 0o600


@pytest.mark.parametrize(
    "end", [signal.SIGINT, *(pytest.param(end, marks=pytest.mark.slow) for end in (None, signal.SIGTERM))]
)
def test_a_command_leaves_no_file_and_no_process_of_its_ray(end: signal.Signals | None) -> None:
    """Ended by itself, by Ctrl-C, or by SIGTERM."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="h2l") as folder:  # short: it has sockets
        wait = "print('started', flush=True)\nimport time\ntime.sleep(200)" if end else ""
        heeded = (
            "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"  # also behind `&`
        )
        command = subprocess.Popen(
            [sys.executable, "-c", heeded + START + wait],
            env={**os.environ, "TMPDIR": folder, "RAY_TMPDIR": folder},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            if end is not None:
                assert command.stdout is not None
                assert command.stdout.readline() == b"started\n"
                assert list(Path(folder).rglob("raylet*"))
                command.send_signal(end)
            command.communicate(timeout=120)
        finally:
            command.kill()
        assert [path.name for path in Path(folder).rglob("*") if path.is_file() or path.is_socket()] == []
        assert not list(Path(folder).rglob("session_*"))
        until = time.monotonic() + 10
        while (left := _processes_of(folder)) and time.monotonic() < until:
            time.sleep(0.2)
        assert left == []


def _processes_of(folder: str) -> list[str]:
    """The command lines of the processes that name a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (process / "cmdline").read_bytes()
            if folder.encode() in words:
                found.append(words.decode(errors="replace").replace("\0", " "))
    return found


def test_rays_own_choice_of_folder_is_kept_where_it_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/tmp/job-1234567")
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    assert _temporary_folder() is None


def test_a_long_folder_without_a_short_one_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/" + "long/" * 30)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ClusterError) as refused:
        _temporary_folder()
    assert refused.value.key == "RAY_TMPDIR"


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999", "http://127.0.0.1:8265"]
)
def test_a_cluster_that_does_not_answer_is_one_sentence_within_seconds(address: str) -> None:
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", START],
        capture_output=True,
        text=True,
        env=os.environ | {"RAY_ADDRESS": address},
        check=False,
    )
    assert time.monotonic() - start < 30
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("his2lip.errors.ClusterError: ")
    assert address in last


def test_a_folder_in_the_copy_of_the_checkout_that_a_job_gets_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    copy = tmp_path / "runtime_resources/working_dir_files/_ray_pkg_1/runs"
    check_nodes(write=[str(copy)])  # a local Ray has no copies
    assert not copy.exists()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(ClusterError) as refused:
        check_nodes(write=["s3://bucket/runs", str(copy)])
    assert (refused.value.key, refused.value.where) == ("storage", str(copy))


def test_an_mlflow_store_that_ray_would_delete_with_the_job_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    copy = tmp_path / "runtime_resources/working_dir_files/_ray_pkg_1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for needed in (True, False):
        with pytest.raises(ClusterError) as refused:
            Tracker.open(needed=needed)
        assert refused.value.key == "MLFLOW_TRACKING_URI"
        assert refused.value.where == str(copy / "runs/mlflow.db")
    assert not (copy / "runs").exists()


def test_a_process_with_other_code_than_the_command_is_refused() -> None:
    check_code(code_version())
    with pytest.raises(ClusterError) as refused:
        check_code("0.1.0+another")
    assert refused.value.key == "code"


def test_a_node_that_does_not_see_a_path_is_refused_by_it(ray_local: None, tmp_path: Path) -> None:
    import ray

    version, missing = _look([str(tmp_path), str(tmp_path / "elsewhere/probe")])
    assert missing == [str(tmp_path / "elsewhere/probe")]
    _check_node("10.0.0.1", ray.put((version, [])), {})
    with pytest.raises(ClusterError) as refused:
        _check_node("10.0.0.1", ray.put((version, missing)), {missing[0]: str(tmp_path / "elsewhere")})
    assert (refused.value.key, refused.value.where) == ("path", str(tmp_path / "elsewhere"))
