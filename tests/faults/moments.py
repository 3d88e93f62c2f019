"""Seeded moments of a fault: two of each in `make test`, 20 in `make faults`."""

from __future__ import annotations

import random

import pytest

FAULTS = [pytest.mark.faults, pytest.mark.timeout(3000)]
MANY = pytest.mark.parametrize("count", [2, pytest.param(20, marks=FAULTS)])


def moments(kind: str, count: int) -> list[float]:
    """`count` numbers from 0.02 to 0.98, spread over that range; the same for each run."""
    rng = random.Random(kind)
    found = [0.02 + 0.96 * (i + rng.random()) / count for i in range(count)]
    rng.shuffle(found)
    return found
