"""The real `his2lip captions review` in a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Server:
    """A running review page and the address that it printed."""

    process: subprocess.Popen[str]
    address: str

    def kill(self) -> None:
        """SIGKILL: what a power cut or the out-of-memory killer does."""
        self.process.kill()
        self.process.wait(30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def review_server(
    folder: Path, *options: str, reviewer: str = "ann", port: int | None = None
) -> Iterator[Server]:
    """Runs until the block ends. Fails with the process's output where it does not start."""
    command = [sys.executable, "-m", "his2lip", "captions", "review", str(folder), "--no-browser"]
    command += ["--reviewer", reviewer, "--port", str(port or free_port()), *options]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder.parent,
        env=os.environ | {"PYTHONUNBUFFERED": "1", "MPLBACKEND": "agg"},
    )
    try:
        assert process.stdout is not None
        told: list[str] = []
        for line in process.stdout:
            told.append(line)
            if "http://" in line:
                break
        else:
            raise AssertionError(f"the page did not start: {''.join(told)}")
        address = next(word for word in told[-1].split() if word.startswith("http://")).rstrip(";")
        yield Server(process, address)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
        if process.stdout is not None:
            process.stdout.close()
