"""A real PostgreSQL on loopback in a temporary folder, from Debian's packages."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

import pytest

USER, PASSWORD, DATABASE = "his2lip", "s3cret", "mlflow"


def _binaries() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    beside = shutil.which("initdb")
    return found[-1].parent if found else Path(beside).parent if beside else None


needs_postgres = pytest.mark.skipif(_binaries() is None, reason="PostgreSQL's server is not installed")


@contextmanager
def postgres() -> Iterator[int]:
    """The port of a server on 127.0.0.1 with the empty database DATABASE, owned by USER with PASSWORD."""
    import psycopg2

    binaries = _binaries()
    assert binaries is not None
    with tempfile.TemporaryDirectory(prefix="his2lip-pg-", dir="/tmp") as made, socket.socket() as probe:
        folder = Path(made)
        (folder / "password").write_text(PASSWORD)
        # PostgreSQL refuses to run as root.
        unprivileged = {"user": "nobody", "group": "nogroup"} if os.geteuid() == 0 else {}
        if unprivileged:
            for path in (folder, folder / "password"):
                shutil.chown(path, **unprivileged)
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        options = {"cwd": folder, "env": {"LC_ALL": "C", "PATH": os.environ["PATH"]}, **unprivileged}
        data = str(folder / "data")
        words = [
            f"--username={USER}",
            "--pwfile=password",
            "--auth=scram-sha-256",
            "--no-sync",
            "--encoding=UTF8",
        ]
        subprocess.run(
            [binaries / "initdb", "-D", data, *words], check=True, stdout=subprocess.DEVNULL, **options
        )
        probe.close()
        settings = [
            f"port={port}",
            "listen_addresses=127.0.0.1",
            f"unix_socket_directories={folder}",
            "fsync=off",
        ]
        flags = [word for setting in settings for word in ("-c", setting)]
        server = subprocess.Popen(
            [binaries / "postgres", "-D", data, *flags],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options,
        )  # fmt: skip
        try:
            until = monotonic() + 60
            while True:
                try:
                    admin = psycopg2.connect(
                        host="127.0.0.1", port=port, user=USER, password=PASSWORD, dbname="postgres"
                    )
                    break
                except psycopg2.OperationalError:
                    assert server.poll() is None, "PostgreSQL ended"
                    assert monotonic() < until, "PostgreSQL did not start in time"
                    sleep(0.1)
            admin.autocommit = True
            admin.cursor().execute(f"CREATE DATABASE {DATABASE}")
            admin.close()
            yield port
        finally:
            server.send_signal(signal.SIGINT)  # a fast shutdown
            server.wait(timeout=60)
