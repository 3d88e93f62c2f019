"""Commands as Ray jobs: submitted to a cluster, their log followed here, their exit code handed back."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from his2lip import __version__, resources
from his2lip.errors import ClusterError, first_line

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_EXAMPLE = "give the dashboard's address, such as http://127.0.0.1:8265"
_POLL_S = 1.0  # between two looks at a job whose log has ended, or whose connection was lost
_PATIENCE_S = 60.0  # for which a cluster may be out of reach before a followed job is given up on
# Loggers of Ray that name every file which stays behind, and every connection.
_TALKATIVE = (
    "ray._private.runtime_env.packaging",
    "ray._private.runtime_env.working_dir",
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
)
INTERRUPTED = 130  # exit code after Ctrl-C; the job itself goes on
# What a job does not need of the working directory, besides what .gitignore names.
_EXCLUDES = ["/.git/", "/.venv/", "/runs/", "/tests/", "/docs/"]


def submit(
    address: str,
    argv: Sequence[str],
    *,
    working_dir: str | Path | None = None,
    follow: bool = True,
    env: Mapping[str, str] | None = None,
    write: Callable[[str], object] = sys.stdout.write,
) -> int:
    """Runs the command `argv` on the cluster's head node as a Ray job; its exit code.

    The working directory (by default, this one) travels with the job, less what .gitignore names, so that
    the cluster runs this very code and finds the configuration files. With `follow`, the job's log is given
    to `write` until it ends; without, the exit code is 0 once the job was accepted. Ctrl-C ends the
    following, not the job. Raises ClusterError where the cluster cannot be reached, or refuses.
    """
    client = _client(_dashboard(address))
    folder = Path(working_dir) if working_dir is not None else _checkout()
    runtime_env = {
        "working_dir": str(folder),
        "excludes": _EXCLUDES,
        "env_vars": {"PYTHONUNBUFFERED": "1", **(env or {})},
    }
    with _in_our_words(address):
        job = client.submit_job(
            entrypoint=shlex.join(argv), runtime_env=runtime_env, metadata={"his2lip": __version__}
        )
    print(f"job {job} on {address}", file=sys.stderr)
    if not follow:
        return 0
    try:
        return _exit_code(_follow(client, job, address, write))
    except KeyboardInterrupt:
        print(f"\nThe job goes on; to end it: ray job stop {job} --address {address}", file=sys.stderr)
        return INTERRUPTED


class _Log:
    """A job's log, written as it comes; over a new connection it goes on after what is written already."""

    def __init__(self, client: JobSubmissionClient, job: str, write: Callable[[str], object]) -> None:
        self._client, self._job, self._write = client, job, write
        self.written = 0  # characters

    async def tail(self) -> None:
        """Until the job ends, or the connection does."""
        seen = 0
        async for chunk in self._client.tail_job_logs(self._job):
            fresh = chunk[max(0, self.written - seen) :]
            seen += len(chunk)
            if fresh:
                self._write(fresh)
                self.written = seen


def _follow(client: JobSubmissionClient, job: str, address: str, write: Callable[[str], object]) -> Any:
    """Writes the job's log, over lost connections too; the job's details at its end."""
    log = _Log(client, job, write)
    lost: float | None = None
    while True:
        before = log.written
        try:
            with _in_our_words(address):
                asyncio.run(log.tail())
                details = client.get_job_info(job)
        except ClusterError:
            lost = lost if lost is not None and log.written == before else time.monotonic()
            if time.monotonic() - lost > _PATIENCE_S:
                raise
        else:
            lost = None
            if details.status.is_terminal():
                return details
        time.sleep(_POLL_S)


def _exit_code(details: Any) -> int:
    """The command's own exit code; 1 where it has none, such as when its node died or the job was stopped."""
    if details.status == "SUCCEEDED":
        return 0
    if details.driver_exit_code is None:
        message = (details.message or "no reason given").strip().splitlines()[0]
        print(f"job {details.submission_id} {details.status.lower()}: {message}", file=sys.stderr)
    return details.driver_exit_code or 1


def _client(url: str) -> JobSubmissionClient:
    """A client of the cluster's job server, with the token where this machine has one."""
    # These would win over the address that was asked for.
    names = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
    hidden = {key: os.environ.pop(key) for key in names if key in os.environ}
    try:
        from ray.job_submission import JobSubmissionClient

        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.ERROR)
        with _in_our_words(url):
            return JobSubmissionClient(url, headers=_authorization())
    finally:
        os.environ.update(hidden)


def _authorization() -> dict[str, str]:
    """The header that shows this machine's token, found where Ray itself looks for it; none without one.

    Ray would send it by itself in token mode, but reads the mode once in a process, when it is imported.
    """
    token = os.environ.get("RAY_AUTH_TOKEN")
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if not token and path.is_file():
        token = path.read_text(encoding="ascii").strip()
    return {"Authorization": f"Bearer {token}"} if token else {}


@contextmanager
def _in_our_words(address: str) -> Iterator[None]:
    """Ray's errors, of many types, as one sentence each."""
    import aiohttp
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError:
        raise ClusterError(
            "this cluster wants a token that this machine does not have",
            where=address,
            fix="copy the cluster's ~/.ray/auth_token here, with mode 0600",
        ) from None
    except (ConnectionError, requests.RequestException, aiohttp.ClientError):
        raise ClusterError(
            "no Ray cluster answers at this address",
            where=address,
            fix="is it up, and its dashboard's port forwarded (ray dashboard cluster.yaml)?",
        ) from None
    except (RuntimeError, ValueError) as error:
        raise ClusterError(f"the cluster refused the job: {first_line(error)}", where=address) from None


def _dashboard(address: str) -> str:
    """The address of a cluster's dashboard as a URL. Raises ClusterError for what cannot be one."""
    url = address if "://" in address else f"http://{address}"
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ClusterError("this is not the address of a Ray dashboard", where=address, fix=_EXAMPLE)
    return url.rstrip("/")


def _checkout() -> Path:
    """The folder to send: this one, from which the job must be able to import his2lip."""
    here, root = Path.cwd(), resources.root()
    if (root / "pyproject.toml").exists() and here != root:
        raise ClusterError(
            "a job is submitted from the checkout, which travels with it", where=here, fix=f"cd {root}"
        )
    return here
