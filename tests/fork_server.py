"""Processes to kill and ranks, forked from one that has imported what they need: each starts at once."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["warm"])
PATIENCE_S = 120.0


class Child:
    """A process that runs `work(tell, *arguments)`; `told` gets what it tells, in order."""

    def __init__(self, work: Callable[..., object], *arguments: Any) -> None:
        _start_server()
        self._pipe, theirs = _CONTEXT.Pipe(duplex=False)
        self.process = _CONTEXT.Process(target=_work, args=(work, theirs, arguments), daemon=True)
        self.process.start()
        theirs.close()

    def wait_for(self, wanted: object) -> None:
        """Returns once the process has told `wanted`. Raises EOFError where it ends before."""
        while self.told() != wanted:
            pass

    def told(self) -> Any:
        assert self._pipe.poll(PATIENCE_S), "the process tells nothing"
        return self._pipe.recv()

    def kill(self) -> None:
        """kill -9, and waits for its end."""
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join(PATIENCE_S)

    def end(self) -> None:
        """Waits for its own end, which has to be a good one."""
        while True:
            try:
                self.told()
            except EOFError:
                break
        self.process.join(PATIENCE_S)
        assert self.process.exitcode == 0, self.process.exitcode


@contextmanager
def child(work: Callable[..., object], *arguments: Any) -> Iterator[Child]:
    """A child that is killed at the end of the block where it still runs."""
    made = Child(work, *arguments)
    try:
        yield made
    finally:
        if made.process.is_alive():
            made.kill()


@contextmanager
def other_ranks(work: Callable[..., object], *arguments: Any, count: int = 1) -> Iterator[None]:
    """Runs `work(rank, *arguments)` for the ranks from 1 to `count`, beside a body that is rank 0."""
    ranks = [Child(_as_rank, work, 1 + i, arguments) for i in range(count)]
    try:
        yield
        for rank in ranks:
            rank.end()
    finally:
        for rank in ranks:
            if rank.process.is_alive():
                rank.kill()


def _as_rank(
    tell: Callable[[object], object], work: Callable[..., object], rank: int, arguments: tuple[Any, ...]
) -> None:
    work(rank, *arguments)


@functools.cache
def _start_server() -> None:
    """Starts the process that children are forked from, whose imports need the path of this one."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def until(reached: Callable[[], bool], *, patience_s: float = PATIENCE_S) -> None:
    """Returns at the first moment at which `reached` is true; looks without a pause."""
    end = time.monotonic() + patience_s
    while not reached():
        assert time.monotonic() < end, "waited in vain"


def _work(work: Callable[..., object], pipe: Connection, arguments: tuple[Any, ...]) -> None:
    work(pipe.send, *arguments)
