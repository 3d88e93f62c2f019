"""Runs commands of his2lip in this process, within bounds of time and memory, and tells how each ended."""

from __future__ import annotations

import io
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

import his2lip.runtime
from his2lip.cli import main

SLOWEST_S = 60.0  # a command that is refused ends within this time, also on a busy machine
MEMORY = 3 << 30  # bytes that one command may allocate beyond what this process has
_UNENDED = "traceback"

Ended = Literal["done", "problems", "refused", "accepted", "traceback"]


class Accepted(SystemExit):
    """Raised in place of starting Ray: the command has found no fault in what it was given."""


@dataclass(frozen=True)
class Attempt:
    """How a command ended.

    ended  done (0), problems (1, which `data check` and `benchmark` document), refused (2, with one
           sentence), accepted (it was about to start Ray), or traceback (anything else)
    said   its output, or the traceback
    """

    ended: Ended
    seconds: float
    said: str

    @property
    def fault(self) -> str | None:
        """What must not happen to any input, or None."""
        if self.ended == _UNENDED:
            return self.said
        return f"took {self.seconds:.0f} s" if self.seconds > SLOWEST_S else None


def attempt(*arguments: str) -> Attempt:
    """Runs `his2lip ARGUMENTS` in this process, up to the start of Ray."""
    out, err, start = io.StringIO(), io.StringIO(), time.monotonic()
    ended: Ended = "traceback"
    trace = ""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err), bounded_memory():
        patch.setattr(sys, "argv", ["his2lip", *arguments])
        patch.setattr(his2lip.runtime, "start_ray", _accept)
        before = signal.getsignal(signal.SIGINT)
        try:
            main()
        except Accepted:
            ended = "accepted"
        except SystemExit as end:
            ended, trace = _by_code(end.code, err.getvalue())
        except BaseException as error:
            trace = "".join(traceback.format_exception(error))
        finally:
            signal.signal(signal.SIGINT, before)
    return Attempt(ended, time.monotonic() - start, trace or out.getvalue() + err.getvalue())


def _accept(**_: object) -> None:
    raise Accepted


def _by_code(code: object, said: str) -> tuple[Ended, str]:
    """The ending, and the reason where an exit code 2 comes without its one sentence."""
    if code == 2:
        sentences = [line for line in said.splitlines() if line.startswith(("his2lip: ", "Error: "))]
        if len(sentences) == 1 and said.endswith(sentences[0] + "\n"):
            return "refused", ""
        return "traceback", f"exit 2 with other than one sentence: {said!r}"
    if code in (0, None):
        return "done", ""
    return (
        ("problems", "") if code == 1 and "Traceback" not in said else ("traceback", f"exit {code}: {said}")
    )


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Allocations beyond MEMORY more than this process has now fail with MemoryError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def check(faults: Iterable[tuple[str, str | None]]) -> None:
    """Fails with the first five of the (input, fault) whose fault is not None."""
    found = [f"{name}:\n{fault}" for name, fault in faults if fault is not None]
    assert not found, f"{len(found)} faults, such as\n" + "\n".join(found[:5])
