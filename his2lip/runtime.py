"""Starts a local Ray or joins a cluster: quietly, on the cores of this process, closed to other machines."""

from __future__ import annotations

import atexit
import logging
import math
import os
import secrets
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from his2lip.logs import LEVEL, terminal_level

_log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
_CONNECT_S = 5.0  # to wait for an answer from the cluster's address
_LOOK_S = 300.0  # to wait for each node to look at the folders; starting a process there takes seconds
_JOB_COPIES = "working_dir_files"  # Ray's folder of the checkouts that are sent with jobs, which it deletes
# Bytes that the path of a Unix socket may have, and those that Ray adds to the folder that it is given.
_SOCKET_PATH = 103 if sys.platform == "darwin" else 107
_RAY_ADDS = len("/ray/session_2026-01-01_00-00-00_000000_1234567890/sockets/plasma_store.123")
_SHORT_FOLDER = Path("/tmp")
# Control groups (cgroups): where they are mounted, and those of this process.
_CGROUPS, _OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def usable_cpus() -> int:
    """Cores that this process may use, by its affinity and by the CPU quota of its container, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cpu_quota()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def _cpu_quota() -> float | None:
    """CPUs that the control groups of this process allow it, the least of all levels; None: any number.

    Version 2 has `cpu.max` in each group, version 1 `cpu.cfs_quota_us` and `cpu.cfs_period_us`. In a
    container the path of the group may be that of the host; its own group is then the root of the mount.
    """
    try:
        lines = _OWN_CGROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux
        return None
    found: list[float] = []
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if controllers and "cpu" not in controllers.split(","):
            continue
        for mount in (controllers, "cpu") if controllers else ("", "unified"):
            base = _CGROUPS / mount
            group = base / path.strip("/")
            levels = [group, *(parent for parent in group.parents if parent.is_relative_to(base))]
            found += [limit for level in levels if (limit := _limit(level)) is not None]
    return min(found, default=None)


def _limit(group: Path) -> float | None:
    """The CPUs that one control group allows; None where it has no limit."""
    try:
        if (group / "cpu.max").is_file():
            quota, period = (group / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota, period = (
                (group / name).read_text(encoding="utf-8").strip()
                for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            )
        allowed = float(quota) / float(period)  # ValueError for `max`, which is no limit
    except (OSError, ValueError, ZeroDivisionError):
        return None
    return allowed if allowed > 0 else None  # version 1 has -1 where there is no limit


def share_cores() -> None:
    """Makes threads of torch sleep while they wait for each other. Call it before torch is imported.

    By default the threads spin. On two cores shared with Ray's processes, a spinning thread takes the core
    from the thread that it waits for: with three busy processes, a step of `tiny` ran at 70 images/s with
    spinning threads and at 470 images/s with sleeping ones (measured).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def start_ray(*, num_cpus: int | None = None, object_store_memory: int | None = None) -> None:
    """Joins the cluster at RAY_ADDRESS (Ray sets it for a submitted job), else starts a local Ray.

    Does nothing where Ray is initialized. A local Ray has as many CPUs as this process may use, unless
    `num_cpus` is given; `object_store_memory` is in bytes. All its ports are on 127.0.0.1, its token is
    readable only by its owner, and its temporary folder is removed when this process ends (not with
    HIS2LIP_LOG=debug). No usage statistics are sent, and the output of workers is shown only with
    --verbose. Raises ClusterError where the cluster does not answer or a local Ray cannot start.
    """
    share_cores()  # Ray's workers inherit it
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Tasks that request no CPU get processes too. With a lower limit, Ray warns about them on two cores.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "8")
    address = os.environ.get("RAY_ADDRESS", "")
    local = is_local()
    if local:
        _stay_on_loopback()
    import ray

    if ray.is_initialized():
        return
    _check_address(address)
    protect_token(create=local)
    quiet_ray()
    options: dict[str, Any] = {
        "logging_level": logging.WARNING,
        "log_to_driver": terminal_level() <= logging.INFO,
    }
    if local:
        options |= {
            "address": "local",
            "num_cpus": num_cpus or usable_cpus(),
            "object_store_memory": object_store_memory,
            "include_dashboard": False,
            "_temp_dir": _temporary_folder(),
        }
    elif LEVEL in os.environ:  # workers of a local Ray inherit it
        options["runtime_env"] = {"env_vars": {LEVEL: os.environ[LEVEL]}}
    try:
        ray.init(**options)
    except ConnectionError as error:
        raise _no_answer(address, error) from None
    except Exception as error:  # Ray raises a bare Exception where its processes do not start in time
        raise _not_started(error) from error
    if local and terminal_level() > logging.DEBUG:
        atexit.register(_remove_session, session_folder(), os.getpid())


def session_folder() -> Path:
    """The folder of Ray's session on this machine, for what has to be gone when the session is."""
    import ray

    node: Any = ray._private.worker._global_node
    return Path(node.get_session_dir_path())


def _remove_session(session: Path, process: int) -> None:
    """Stops the local Ray of this process and removes its folder, sockets and logs, which Ray leaves."""
    if os.getpid() != process:  # a copy of the process that started it
        return
    import ray

    ray.shutdown()
    latest = session.with_name("session_latest")
    with suppress(OSError):
        if latest.readlink().name == session.name:
            latest.unlink()
    shutil.rmtree(session, ignore_errors=True)


def check_nodes(*, read: Iterable[str] = (), write: Iterable[str] = ()) -> None:
    """Raises ClusterError where a node of the cluster has other code than this process or misses a path.

    read   absolute paths that workers read; those that are not here are left to the code that reads them
    write  folders that workers write to, created here; URIs are left out of both
    Does nothing for a local Ray. Nodes that join the cluster later are not asked: what runs on them calls
    `check_code` and compares the contents of what it reads. A node that is lost meanwhile does no harm.
    """
    if is_local():
        return
    with ExitStack() as probes:
        shown = {place: place for place in read if os.path.isabs(place) and os.path.exists(place)}
        for folder in (folder for folder in write if "://" not in folder):
            refuse_job_copy(folder)
            os.makedirs(folder, exist_ok=True)
            probe = probes.enter_context(tempfile.NamedTemporaryFile(dir=folder, prefix=".his2lip-"))
            shown[probe.name] = folder  # the folder itself, not another one of its name
        for node, answer in on_nodes(_look, [*shown]).items():
            _check_node(node, answer, shown)


def on_nodes(work: Callable[..., Any], *arguments: object) -> dict[str, Any]:
    """Starts `work(*arguments)` on each node of the cluster: Ray's reference to each answer, by node ID.

    Ray may repeat it, so that the answer of a node that is lost is an error once Ray knows of the loss.
    """
    import ray

    task: Any = ray.remote(num_cpus=0, max_retries=3)(work)
    return {node: task.options(scheduling_strategy=_on(node)).remote(*arguments) for node in _nodes()}


def _nodes() -> dict[str, str]:
    """The addresses of the nodes that are alive, by node ID."""
    import ray

    return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}


def _look(paths: list[str]) -> tuple[str, list[str]]:
    """The version of the code on this node, and those of the paths that it does not see."""
    from his2lip.resources import code_version

    return code_version(), [path for path in paths if not os.path.exists(path)]


def _on(node: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node, soft=False)


def _check_node(node: str, answer: Any, shown: dict[str, str]) -> None:
    """Raises ClusterError for the answer of `_look` on a node, by its ID, unless the node is lost."""
    import ray

    from his2lip.errors import ClusterError, first_line
    from his2lip.resources import code_version

    try:
        version, missing = ray.get(answer, timeout=_LOOK_S)
    except ray.exceptions.RayError as error:
        if (where := _nodes().get(node)) is None:
            _log.info("the node %s of the Ray cluster is lost", node)
            return
        what = f"a node of the Ray cluster cannot run this code: {first_line(getattr(error, 'cause', error))}"
        raise ClusterError(what, where=where, key="code", fix=_same_code()) from None
    where = _nodes().get(node, node)
    if version != code_version():
        what = f"a node of the Ray cluster has other code ({version}) than this command ({code_version()})"
        raise ClusterError(what, where=where, key="code", fix=_same_code())
    if missing:
        folder = shown[missing[0]]
        what = f"the node {where} of the Ray cluster does not see this path"
        fix = "use a folder that all nodes share or a URI, or unset RAY_ADDRESS"
        raise ClusterError(what, where=folder, key="path", fix=fix)


def check_code(expected: str) -> None:
    """Raises ClusterError where this process has other code than `expected`, the driver's `code_version`."""
    from his2lip.errors import ClusterError
    from his2lip.resources import code_version

    if code_version() != expected:
        what = f"this node of the Ray cluster has other code ({code_version()}) than the command ({expected})"
        raise ClusterError(what, where=socket.gethostname(), key="code", fix=_same_code())


def _same_code() -> str:
    from his2lip.resources import root

    return f"install the same his2lip on all nodes, share {root()} with them, or submit with --address"


def refuse_job_copy(
    folder: str, *, key: str = "storage", fix: str = "set storage to an absolute path that all nodes share"
) -> None:
    """Raises ClusterError for a folder in the copy of the checkout that Ray makes for a job and deletes."""
    if _JOB_COPIES not in Path(folder).parts:
        return
    from his2lip.errors import ClusterError

    what = "this folder is in the copy of the checkout that Ray deletes after the job"
    raise ClusterError(what, where=folder, key=key, fix=fix)


def is_local() -> bool:
    """Whether `start_ray` starts a Ray on this machine, or has: RAY_ADDRESS names no cluster."""
    return os.environ.get("RAY_ADDRESS", "") in ("", "local")


def token_path() -> Path:
    """The file of this machine's Ray token, where Ray itself looks for it."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def protect_token(*, create: bool) -> bool:
    """Makes the token readable only by its owner; whether others could read it before.

    With `create`, a token is written where there is none. Ray would write it with the default umask, and
    who can read the token can run any program as the user. Does nothing where the token is in the
    environment, or the user has turned tokens off.
    """
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return False
    path = token_path()
    if create and not path.exists():
        _write_token(path)
    if not path.exists() or not stat.S_IMODE(path.stat().st_mode) & 0o077:
        return False
    path.chmod(0o600)
    _log.info("%s could be read by others; it is now readable only by you", path)
    return True


def _write_token(path: Path) -> None:
    """Writes a new token, complete and private from the first moment; keeps one that appears meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, new = tempfile.mkstemp(dir=path.parent)  # exclusive, with mode 0600
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32))  # as long as Ray's own
        with suppress(FileExistsError):
            os.link(new, path)
    finally:
        os.unlink(new)


def _stay_on_loopback() -> None:
    """Makes a local Ray, and what its workers start, listen on 127.0.0.1 only; by default all interfaces."""
    # Ray's switch for machines without clusters. A user's own setting has precedence.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    if "ray" in sys.modules:  # it read the switch when it was imported
        from ray._private import ray_constants

        switch = os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"].lower()
        ray_constants.ENABLE_RAY_CLUSTER = switch in ("1", "true")
    interface = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
    if interface is not None:  # for torch.distributed, where a run has several workers
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)


def _temporary_folder() -> str | None:
    """The folder for Ray's sessions: Ray's own choice (None), or /tmp where sockets would not fit in it.

    The path of a Unix socket is limited to about 100 bytes, and job schedulers set long values of TMPDIR.
    Raises ClusterError where /tmp cannot be used either.
    """
    chosen = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or str(_SHORT_FOLDER)
    if len(os.fsencode(chosen)) + _RAY_ADDS <= _SOCKET_PATH:
        return None
    if os.access(_SHORT_FOLDER, os.W_OK):
        _log.info(
            "Ray's sessions go to %s, since the paths of sockets below %s are too long", _SHORT_FOLDER, chosen
        )
        return str(_SHORT_FOLDER / "ray")
    from his2lip.errors import ClusterError

    name = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    most = _SOCKET_PATH - _RAY_ADDS
    what = f"Ray cannot put its sockets below {name}, whose path is longer than {most} bytes"
    raise ClusterError(what, where=chosen, key=name, fix="set RAY_TMPDIR to a folder with a short path")


def _check_address(address: str) -> None:
    """Raises ClusterError where nothing answers at RAY_ADDRESS; Ray itself would wait for minutes."""
    if address.startswith(("http://", "https://")):
        from his2lip.errors import ClusterError

        fix = "give it as --address, or set RAY_ADDRESS to HOST:6379 on a machine of the cluster"
        raise ClusterError(
            "this is the address of Ray's job server", where=address, key="RAY_ADDRESS", fix=fix
        )
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():  # unset, `auto` and `local`, which Ray resolves at once
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise _no_answer(address, error) from None


def _no_answer(address: str, error: Exception) -> Exception:
    from his2lip.errors import ClusterError, first_line

    what = f"the Ray cluster at RAY_ADDRESS does not answer: {first_line(error)}"
    return ClusterError(what, where=address, key="RAY_ADDRESS", fix="unset RAY_ADDRESS to use this machine")


def _not_started(error: Exception) -> Exception:
    from his2lip.errors import ClusterError, first_line

    fix = "end other programs or ask for fewer CPUs, and run the same command again"
    return ClusterError(f"Ray did not start on this machine: {first_line(error)}", key="ray", fix=fix)


def quiet_ray() -> None:
    """Turns off the info lines and progress bars of Ray's libraries, unless HIS2LIP_LOG is debug."""
    if terminal_level() <= logging.DEBUG:
        return
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Ray logs at every start that it uses a token; `his2lip doctor` and docs/cluster.md document it.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    for name in ("ray", "ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.WARNING)
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
