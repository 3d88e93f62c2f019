"""Starting or joining Ray: a cluster that is not there is said at once."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

START = "from his2lip.runtime import start_ray\nstart_ray()"


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", "does not answer"),
        ("ray://127.0.0.1:1", "does not answer"),
        ("127.0.0.1:99999", "does not answer"),
        ("http://127.0.0.1:8265", "job server"),
    ],
)
def test_a_cluster_that_is_not_there_is_one_sentence_within_seconds(address: str, said: str) -> None:
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", START],
        capture_output=True,
        text=True,
        env=os.environ | {"RAY_ADDRESS": address},
        check=False,
    )
    assert time.monotonic() - start < 30
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("his2lip.errors.ClusterError: ")
    assert said in last
    assert address in last
