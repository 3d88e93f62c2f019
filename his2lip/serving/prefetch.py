"""Reads the next images on all cores while the present ones are encoded."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from his2lip.runtime import usable_cpus

S = TypeVar("S")
T = TypeVar("T")


def prefetched(read: Callable[[S], T], places: Sequence[S], *, batch: int) -> Generator[list[T], None, None]:
    """Batches of what `read` returns, in order; one thread per core reads the next batch meanwhile.

    Raises what `read` raises. Closing the generator stops the threads.
    """
    with ThreadPoolExecutor(usable_cpus()) as pool:
        waiting: list[Future[T]] = []
        try:
            for start in range(0, len(places), batch):
                coming = [pool.submit(read, place) for place in places[start : start + batch]]
                waiting, ready = coming, waiting
                if ready:
                    yield [image.result() for image in ready]
            yield [image.result() for image in waiting]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
