"""Starts a local Ray or joins a cluster, without Ray's own log lines, on the cores of this process."""

from __future__ import annotations

import logging
import os
import socket
from typing import Any

from his2lip.logs import LEVEL, terminal_level

_CONNECT_S = 5.0  # to wait for an answer from the cluster's address


def usable_cpus() -> int:
    """Cores that this process may run on (its affinity), which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
    `num_cpus` is given; `object_store_memory` is in bytes. No usage statistics are sent, and the output of
    workers is shown only with --verbose. Raises ClusterError where the cluster does not answer.
    """
    share_cores()  # Ray's workers inherit it
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Tasks that request no CPU get processes too. With a lower limit, Ray warns about them on two cores.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "8")
    import ray

    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS", "")
    _check_address(address)
    quiet_ray()
    options: dict[str, Any] = {
        "logging_level": logging.WARNING,
        "log_to_driver": terminal_level() <= logging.INFO,
    }
    if address and LEVEL in os.environ:  # workers of a local Ray inherit it
        options["runtime_env"] = {"env_vars": {LEVEL: os.environ[LEVEL]}}
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
