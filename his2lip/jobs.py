"""Runs a command as a Ray job on a cluster, follows its log, and returns its exit code."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from his2lip import __version__, resources
from his2lip.errors import ClusterError, first_line, redact
from his2lip.runtime import protect_token, token_path

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_EXAMPLE = "give the dashboard's address, such as http://127.0.0.1:8265"
_POLL_S = 1.0  # between two requests for the state of a job whose log has ended or whose connection was lost
_TRIES = 5  # requests for the rest of an ended job's log
_UNREACHABLE_S = 60.0  # a followed job is given up after its cluster was unreachable for this time
# Loggers of Ray that name every excluded file and every connection.
_VERBOSE_LOGGERS = (
    "ray._private.runtime_env.packaging",
    "ray._private.runtime_env.working_dir",
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
)
INTERRUPTED = 130  # exit code after Ctrl-C; the job itself continues
# What is not sent with a job, besides what .gitignore names: folders that it does not need, and secrets.
_EXCLUDES = [
    *("/.git/", "/.venv*/", "/runs/", "/tests/", "/docs/"),
    *(".env", ".env.*", "*.env", ".netrc", ".git-credentials", ".npmrc", ".pypirc", "auth_token"),
    *(".ssh/", ".aws/", ".ray/", ".config/", ".kube/", ".docker/", ".azure/", ".kaggle/", ".huggingface/"),
    *("*.pem", "*.key", "*.p12", "*.pfx", "*.ppk", "*.keyfile", "id_rsa*", "id_dsa*", "id_ecdsa*"),
    *("id_ed25519*", "kaggle.json", "*service-account*.json", "*service_account*.json"),
    *("*credentials*", "*secret*", "*token", "*.token"),
]


def submit(
    address: str,
    argv: Sequence[str],
    *,
    working_dir: str | Path | None = None,
    follow: bool = True,
    env: Mapping[str, str] | None = None,
    write: Callable[[str], object] = sys.stdout.write,
) -> int:
    """Runs the command `argv` as a Ray job on the cluster's head node, and returns its exit code.

    working_dir  the folder that is sent with the job, without the files that .gitignore names, so that the
                 cluster runs the same code and finds the configuration files; default: the current folder
    follow       pass the job's log to `write` until the job ends; otherwise return 0 once it is accepted
    env          environment variables of the job
    Ctrl-C stops following; the job continues. Raises ClusterError where the cluster cannot be reached or
    refuses the job.
    """
    client = _client(_dashboard(address))
    folder = Path(working_dir) if working_dir is not None else _checkout()
    runtime_env = {
        "working_dir": str(folder),
        "excludes": _EXCLUDES,
        "env_vars": {"PYTHONUNBUFFERED": "1", **(env or {})},
    }
    with _as_cluster_errors(address):
        job = client.submit_job(
            entrypoint=shlex.join(argv), runtime_env=runtime_env, metadata={"his2lip": __version__}
        )
    shown = redact(address)
    print(f"job {job} on {shown}", file=sys.stderr)
    if not follow:
        return 0
    try:
        return _exit_code(_follow(client, job, address, write))
    except KeyboardInterrupt:
        print(f"\nThe job continues; to stop it: ray job stop {job} --address {shown}", file=sys.stderr)
        return INTERRUPTED


class _Log:
    """A job's log, written as it arrives; after a reconnection it continues behind what was written."""

    def __init__(self, client: JobSubmissionClient, job: str, write: Callable[[str], object]) -> None:
        self._client, self._job, self._write = client, job, write
        self.written = 0  # characters

    async def tail(self) -> None:
        """Writes the log until the job or the connection ends."""
        seen = 0
        async for chunk in self._client.tail_job_logs(self._job):
            fresh = chunk[max(0, self.written - seen) :]
            seen += len(chunk)
            if fresh:
                self._write(fresh)
                self.written = seen

    def complete(self) -> bool:
        """Writes the rest of an ended job's log, since Ray ends a broken stream without an error.

        Returns whether the log was read; it is empty where the job's node does not answer.
        """
        log = self._client.get_job_logs(self._job)
        if rest := log[self.written :]:
            self._write(rest)
            self.written += len(rest)
        return bool(log)


def _follow(client: JobSubmissionClient, job: str, address: str, write: Callable[[str], object]) -> Any:
    """Writes the job's log, reconnecting where needed, and returns the job's details at its end."""
    log = _Log(client, job, write)
    lost: float | None = None
    while True:
        before = log.written
        try:
            with _as_cluster_errors(address):
                asyncio.run(log.tail())
                details = client.get_job_info(job)
        except ClusterError:
            lost = lost if lost is not None and log.written == before else time.monotonic()
            if time.monotonic() - lost > _UNREACHABLE_S:
                raise
        else:
            lost = None
            if details.status.is_terminal():
                started = bool(log.written) or details.driver_exit_code is not None
                _write_rest(log, address, started=started)
                return details
        time.sleep(_POLL_S)


def _write_rest(log: _Log, address: str, *, started: bool) -> None:
    """Writes the rest of an ended job's log; says so where it cannot be read, as without the job's node.

    A job that has not started has no log.
    """
    for _ in range(_TRIES):
        with suppress(ClusterError), _as_cluster_errors(address):
            if log.complete() or not started:
                return
        time.sleep(_POLL_S)
    print("the end of this job's log cannot be read, and may be missing above", file=sys.stderr)


def _exit_code(details: Any) -> int:
    """The command's own exit code; 1 where it has none, for example because its node died."""
    if details.status == "SUCCEEDED":
        return 0
    if details.driver_exit_code is None:
        message = redact((details.message or "no reason given").strip().splitlines()[0])
        print(f"job {details.submission_id} {details.status.lower()}: {message}", file=sys.stderr)
    return details.driver_exit_code or 1


def _client(url: str) -> JobSubmissionClient:
    """A client of the cluster's job server, with this machine's token if it has one."""
    # Ray would use these instead of the address that is given.
    names = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
    hidden = {key: os.environ.pop(key) for key in names if key in os.environ}
    try:
        from ray.job_submission import JobSubmissionClient

        for name in _VERBOSE_LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
        with _as_cluster_errors(url):
            return JobSubmissionClient(url, headers=_authorization())
    finally:
        os.environ.update(hidden)


def _authorization() -> dict[str, str]:
    """The HTTP header with this machine's token, read from where Ray reads it; empty without a token.

    In token mode Ray sends the token by itself, but it reads the mode only once, when it is imported.
    """
    token = os.environ.get("RAY_AUTH_TOKEN")
    protect_token(create=False)
    if not token and token_path().is_file():
        token = token_path().read_text(encoding="ascii").strip()
    return {"Authorization": f"Bearer {token}"} if token else {}


@contextmanager
def _as_cluster_errors(address: str) -> Iterator[None]:
    """Turns the errors of Ray's client, which have many types, into ClusterErrors of one sentence."""
    import aiohttp
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError:
        raise ClusterError(
            "this cluster requires a token that this machine does not have",
            where=address,
            key="token",
            fix="copy the cluster's ~/.ray/auth_token here, with mode 0600",
        ) from None
    except (ConnectionError, requests.RequestException, aiohttp.ClientError):
        raise ClusterError(
            "no Ray cluster answers at this address",
            where=address,
            key="--address",
            fix="check that it is up and its dashboard's port is forwarded (ray dashboard cluster.yaml)",
        ) from None
    except (RuntimeError, ValueError) as error:
        what = f"the cluster refused the job: {first_line(error)}"
        raise ClusterError(what, where=address, key="--address") from None


def _dashboard(address: str) -> str:
    """The address of a cluster's dashboard as a URL. Raises ClusterError where it cannot be one."""
    url = address if "://" in address else f"http://{address}"
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        what = "this is not the address of a Ray dashboard"
        raise ClusterError(what, where=address, key="--address", fix=_EXAMPLE)
    return url.rstrip("/")


def _checkout() -> Path:
    """The current folder. Raises ClusterError where it is not the checkout that the job has to import."""
    here, root = Path.cwd(), resources.root()
    if (root / "pyproject.toml").exists() and here != root:
        raise ClusterError(
            "a job must be submitted from the checkout, which is sent with it",
            where=here,
            key="--address",
            fix=f"cd {root}",
        )
    return here
