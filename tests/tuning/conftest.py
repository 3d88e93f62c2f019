"""The folder of the project's files."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def repo() -> Path:
    return Path(__file__).resolve().parents[2]
