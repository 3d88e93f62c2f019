"""The demo, run twice as a user runs it."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from page_tags import dead_links


def _demo(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")}
    return subprocess.run(
        [sys.executable, "-m", "his2lip", "demo"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_demo_learns_more_than_colour_and_a_second_call_runs_nothing(tmp_path: Path) -> None:
    first = _demo(tmp_path)
    assert first.returncode == 0, first.stderr[-2000:]
    with (tmp_path / "runs/demo/benchmark/demo/leaderboard.csv").open(newline="") as file:
        rows = {(r["model"], r["dataset"]): float(r["macro_f1"]) for r in csv.DictReader(file)}
    assert rows["trained", "mihic"] >= 0.80
    assert rows["untrained", "mihic"] < 0.25  # chance is 1/7
    assert rows["baseline:mean-colour", "mihic"] < 0.50
    assert len({dataset for _, dataset in rows}) == 10
    page = tmp_path / "runs/demo/benchmark/demo/report/index.html"
    assert page.stat().st_size > 10_000
    assert dead_links(page) == []
    assert len(first.stdout.splitlines()) < 120  # short enough to read
    assert not re.search(r"Traceback|WARNING|\(pid=", first.stdout + first.stderr)

    second = _demo(tmp_path)
    assert second.returncode == 0, second.stderr[-2000:]
    assert second.stdout.count("nothing was run") == 2
    assert "0 grid cells scored now" in second.stdout
