"""A value that is made at most once, such as a model that is slow to load or cannot be loaded."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Once(Generic[T]):
    """Calls `make` at the first call. Each call returns what it returned, or raises what it raised."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make: Callable[[], T] | None = make
        self._made: T
        self._failed: tuple[Exception, TracebackType | None] | None = None

    def __call__(self) -> T:
        if self._make is not None:
            make, self._make = self._make, None
            try:
                self._made = make()
            except Exception as error:
                self._failed = error, error.__traceback__
        if self._failed is not None:
            failure, trace = self._failed
            raise failure.with_traceback(trace)  # not with the frames of earlier calls
        return self._made
