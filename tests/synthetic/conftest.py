"""One thread of linear algebra: the matrix products of one patch are too small for several."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from threadpoolctl import threadpool_limits


@pytest.fixture(autouse=True, scope="session")
def one_thread_of_linear_algebra() -> Iterator[None]:
    with threadpool_limits(1):
        yield
