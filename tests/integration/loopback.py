"""A server of MLflow's on a free loopback port, for as long as a test needs it."""

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
    command: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> Iterator[str]:
    """The URL of `command --host 127.0.0.1 --port …` once it answers at /health; stopped at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        cwd=cwd, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        _await(url, process)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # the workers and shells below it too
        process.wait(timeout=30)


def _await(url: str, process: subprocess.Popen[bytes]) -> None:
    """Until the server answers; it imports for some seconds first."""
    until = monotonic() + 120
    while monotonic() < until:
        assert process.poll() is None, "the server ended by itself"
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            sleep(0.2)
    raise AssertionError("the server did not come up")
