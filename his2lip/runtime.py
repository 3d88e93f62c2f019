"""Starting or joining Ray, quietly and with the cores this process may really use."""

from __future__ import annotations

import logging
import os
import socket
from typing import Any

_KNOCK_S = 5.0


def usable_cpus() -> int:
    """Cores that this process may run on (its affinity), which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share_cores() -> None:
    """Makes threads of torch sleep while they wait for one another; to be called before torch is imported.

    By default they spin. On two cores that Ray's processes share, a spinning thread keeps off the very one
    that it waits for: a step of `tiny` beside three busy processes ran at 70 images/s, and at 470 so.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def start_ray(*, num_cpus: int | None = None, object_store_memory: int | None = None) -> None:
    """Joins the cluster that RAY_ADDRESS names (a submitted job finds it set), else starts a local Ray.

    Does nothing where Ray runs already. Worker processes get `num_cpus` from the affinity of this process,
    no usage statistics are sent, and only warnings reach the terminal.
    """
    share_cores()  # Ray's workers inherit it
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Tasks that ask for no CPU get processes too; below this Ray warns of them on machines of two cores.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "8")
    import ray

    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS", "")
    _check_address(address)
    quiet_ray()
    options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": _verbose()}
    if not address:
        options |= {
            "address": "local",
            "num_cpus": num_cpus or usable_cpus(),
            "object_store_memory": object_store_memory,
            "include_dashboard": False,
        }
    try:
        ray.init(**options)
    except ConnectionError as error:
        raise _no_answer(address, error) from None


def _check_address(address: str) -> None:
    """Knocks at the door that RAY_ADDRESS names: Ray itself would wait for minutes where nobody opens."""
    if address.startswith(("http://", "https://")):
        from his2lip.errors import ClusterError

        fix = "give it as --address, or set RAY_ADDRESS to HOST:6379 on a machine of the cluster"
        raise ClusterError("this is the address of Ray's job server", where=address, fix=fix)
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():  # unset, `auto` and `local`, which Ray resolves at once
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()
    except (OSError, OverflowError) as error:
        raise _no_answer(address, error) from None


def _no_answer(address: str, error: Exception) -> Exception:
    from his2lip.errors import ClusterError, first_line

    said = f"the Ray cluster that RAY_ADDRESS names does not answer: {first_line(error)}"
    return ClusterError(said, where=address, fix="unset RAY_ADDRESS to work on this machine")


def quiet_ray() -> None:
    """Keeps Ray's libraries from writing walls of log lines and progress bars of their own."""
    if _verbose():
        return
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Ray says at every start that it uses a token; `his2lip doctor` and docs/cluster.md say it once.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    for name in ("ray", "ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.WARNING)
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def _verbose() -> bool:
    return os.environ.get("HIS2LIP_VERBOSE", "") not in ("", "0")
