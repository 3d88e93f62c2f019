"""Fixtures shared by all tests: one local Ray, one MLflow store a test, real pixels, ../shared."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

# Before any import of these libraries: no telemetry, one thread per test process (there are two cores).
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import numpy as np
import pytest
import slow_page
from mlflow_stores import new_store

# The first example of a property imports what it uses, which takes longer than hypothesis allows an example.
hypothesis.settings.register_profile("his2lip", deadline=None)
hypothesis.settings.load_profile("his2lip")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images and captions beside the project; the test skips where it is absent."""
    if not (SHARED / "real_ihc").is_dir():
        pytest.skip("../shared (real images and captions) is not beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def real_ihc() -> np.ndarray:
    """The real IHC image that scikit-image carries everywhere: FHL2 in colon, uint8 (512, 512, 3)."""
    from skimage.data import immunohistochemistry

    return np.asarray(immunohistochemistry())


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """One real local Ray of two logical CPUs for the whole session."""
    import ray

    from his2lip.runtime import start_ray

    start_ray(num_cpus=2, object_store_memory=400 << 20)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def by_value(request: pytest.FixtureRequest) -> Iterator[None]:
    """Pickles the functions of the test's file by value, because Ray's processes cannot import it."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(request.module)
    yield
    cloudpickle.unregister_pickle_by_value(request.module)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    slow_page.record(report)


def pytest_collection_finish() -> None:
    """Exempts what is imported by now from garbage collection, which would look at all of it each time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """At the end all of it is collected, so that native libraries report no leaks."""
    gc.unfreeze()


@contextmanager
def _logger_as_before() -> Iterator[None]:
    """A command that a test runs in this process sets up the log, which hides lines from later tests."""
    logger = logging.getLogger("his2lip")
    handlers, level, propagates = list(logger.handlers), logger.level, logger.propagate
    yield
    for handler in set(logger.handlers) - set(handlers):
        handler.close()
    logger.handlers, logger.propagate = handlers, propagates
    logger.setLevel(level)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """What a test leaves in its process does not decide how the next one ends: the log, and a running Ray.

    `prepare` uses a Ray that runs. Another test may have started it, so only tests with `ray_local` do.
    Fixtures of a module are covered too: they are set up within the first test that uses them.
    """
    with pytest.MonkeyPatch.context() as patch, _logger_as_before():
        patch.setenv("HIS2LIP_LOG", "")
        started = "ray" in sys.modules and sys.modules["ray"].is_initialized()
        if started and "ray_local" not in getattr(item, "fixturenames", ()):
            patch.setattr("his2lip.data.prepare.dataset.ray_runs", lambda: False)
        return (yield)


@pytest.fixture
def mlflow_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh MLflow SQLite store of its own; the URI."""
    uri = new_store(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri
