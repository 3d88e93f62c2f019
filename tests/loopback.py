"""Starts a server of MLflow on a free loopback port, and stops it after the tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep


@contextmanager
def on_loopback(
    command: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    host: Sequence[str] = ("--host", "127.0.0.1"),
    output: Path | None = None,
    port: str = "--port",
    health: str = "/health",
    stop: signal.Signals = signal.SIGTERM,
) -> Iterator[str]:
    """Runs `command --host 127.0.0.1 --port …`, and gives its URL once it answers at `health`.

    host    how the command is told the address; empty for one that always takes this one
    output  a file for what it prints
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = probe.getsockname()[1]
    with Path(output or os.devnull).open("wb") as printed:
        process = subprocess.Popen(
            [*command, *host, port, str(number)],
            cwd=cwd, env=env, stdout=printed, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    url = f"http://127.0.0.1:{number}"
    try:
        _await(url + health, process)
        yield url
    finally:
        os.killpg(process.pid, stop)  # also its workers and shells
        process.wait(timeout=30)


def _await(url: str, process: subprocess.Popen[bytes]) -> None:
    """Waits until the server answers, which takes some seconds."""
    until = monotonic() + 120
    while monotonic() < until:
        assert process.poll() is None, "the server exited"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            sleep(0.2)
    raise AssertionError("the server did not start in time")
