"""Starting a local Ray or joining a cluster: ports, token, folders, and clusters that do not answer."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from his2lip import runtime
from his2lip.errors import ClusterError
from his2lip.resources import code_version
from his2lip.runtime import (
    _check_node,
    _look,
    _nodes,
    _on,
    _temporary_folder,
    check_code,
    check_nodes,
    protect_token,
    usable_cpus,
)
from his2lip.tracking.store import Tracker

SHORT = Path("/tmp/ray")  # where sessions are whose own folder has too long a path
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


V1 = "cpu.cfs_quota_us", "cpu.cfs_period_us"


@pytest.mark.parametrize(
    ("own", "files", "cpus"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),  # rounded up
        ("0::/\n", {"cpu.max": "10000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 64),
        ("0::/\n", {"cpu.max": "9900000 100000\n"}, 64),  # more than the affinity
        ("0::/pods/one\n", {"pods/one/cpu.max": "max 100000\n", "pods/cpu.max": "300000 100000\n"}, 3),
        ("0::/of/the/host\n", {"cpu.max": "400000 100000\n"}, 4),
        (
            "4:cpu,cpuacct:/one\n0::/\n",
            {f"cpu,cpuacct/one/{V1[0]}": "250000", f"cpu,cpuacct/one/{V1[1]}": "100000"},
            3,
        ),
        ("1:cpu:/of/the/host\n2:cpuset:/\n", {f"cpu/{V1[0]}": "500000\n", f"cpu/{V1[1]}": "100000\n"}, 5),
        ("1:cpu:/\n", {f"cpu/{V1[0]}": "-1\n", f"cpu/{V1[1]}": "100000\n"}, 64),
        ("3:cpuset:/\n", {f"cpuset/{V1[0]}": "100000\n", f"cpuset/{V1[1]}": "100000\n"}, 64),
        ("0::/\n", {"cpu.max": "damaged"}, 64),
        (None, {}, 64),
    ],
)
def test_the_cpu_quota_of_a_container_bounds_the_usable_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str | None, files: dict[str, str], cpus: int
) -> None:
    for name, text in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(text)
    if own is not None:
        (tmp_path / "own").write_text(own)
    monkeypatch.setattr(runtime, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(runtime, "_OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert usable_cpus() == cpus


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


@dataclass(frozen=True)
class Ended:
    """A command that started a local Ray, and has ended by itself or by a signal.

    listeners  (process, address) of the ports that it and its Ray listened on
    token      of its Ray
    files      that are left in its temporary folders
    processes  of its Ray that are left
    """

    listeners: set[tuple[str, str]]
    token: Path
    files: list[str]
    processes: list[str]


_COMMAND = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where it is started in the background
import json, os, sys, time, ray
from listeners import listeners
@ray.remote
class Worker:
    def works(self):
        return True
worker = Worker.remote()
assert ray.get(worker.works.remote())
time.sleep(2)  # all processes of Ray have started
print(json.dumps(sorted(listeners(os.getpid()))), flush=True)
time.sleep(float(sys.argv[1]))
"""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("import ray, ray.train\n", signal.SIGINT), id="ray is imported before, Ctrl-C"),
        pytest.param(("", None), marks=pytest.mark.slow, id="ended by itself"),
        pytest.param(("", signal.SIGTERM), marks=pytest.mark.slow, id="SIGTERM"),
    ],
)
def ended(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """The command starts where TMPDIR is too long for the paths of Ray's sockets, too."""
    before, end = request.param
    home = tmp_path_factory.mktemp("command")
    folder, token = home / ("job" * 20), home / "auth_token"
    folder.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"RAY_AUTH_TOKEN_PATH": str(token), "TMPDIR": str(folder)}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = subprocess.Popen(
        [sys.executable, "-c", before + START + _COMMAND, "200" if end else "0"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    session = f"session_*_{command.pid}"
    try:
        assert command.stdout is not None
        listening = {(name, address) for name, address in json.loads(command.stdout.readline())}
        if end is not None:
            assert list(SHORT.glob(f"{session}/sockets/raylet*"))
            command.send_signal(end)
        command.communicate(timeout=120)
    finally:
        command.kill()
    files = [str(path) for path in folder.rglob("*") if path.is_file() or path.is_socket()]
    until = time.monotonic() + 10
    while (left := _processes_of(f"_{command.pid}/")) and time.monotonic() < until:
        time.sleep(0.2)
    return Ended(listening, token, files + [str(path) for path in SHORT.glob(session)], left)


def test_a_local_ray_listens_on_this_machine_only_and_its_token_is_private(ended: Ended) -> None:
    assert {"gcs_server", "raylet"} <= {name for name, _ in ended.listeners}
    assert {address for _, address in ended.listeners} == {"127.0.0.1"}
    assert _mode(ended.token) == 0o600


def test_a_command_leaves_no_file_and_no_process_of_its_ray(ended: Ended) -> None:
    assert (ended.files, ended.processes) == ([], [])


def _processes_of(folder: str) -> list[str]:
    """The command lines of the processes that name a folder in /tmp/ray."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (process / "cmdline").read_bytes()
            if f"{SHORT}/session_".encode() in words and folder.encode() in words:
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


_JOIN = """
import os, sys, time
from his2lip.runtime import start_ray
for address in sys.argv[1:]:
    os.environ["RAY_ADDRESS"] = address
    begun = time.monotonic()
    try:
        start_ray()
    except Exception as error:
        print(f"{time.monotonic() - begun:.1f} {type(error).__name__}: {error}")
"""


def test_a_cluster_that_does_not_answer_is_one_sentence_within_seconds() -> None:
    addresses = ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999", "http://127.0.0.1:8265"]
    done = subprocess.run(
        [sys.executable, "-c", _JOIN, *addresses], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for address, line in zip(addresses, done.stdout.splitlines(), strict=True):
        seconds, name, sentence = line.split(maxsplit=2)
        assert float(seconds) < 30
        assert name == "ClusterError:"
        assert address in sentence


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


def test_a_node_that_is_lost_while_it_is_asked_is_passed_over_and_one_that_fails_is_refused(
    ray_local: None,
) -> None:
    import ray

    (here,) = _nodes()
    lost = here[::-1]  # no node has this ID
    look: Any = ray.remote(num_cpus=0)(_look)
    _check_node(lost, look.options(scheduling_strategy=_on(lost)).remote([]), {})
    with pytest.raises(ClusterError) as refused:
        _check_node(here, look.options(scheduling_strategy=_on(here)).remote(None), {})
    assert (refused.value.key, refused.value.where) == ("code", _nodes()[here])
