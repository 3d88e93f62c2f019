"""Writes the result of each slow test into the table of docs/slow_tests.md, as soon as it has one."""

from __future__ import annotations

import datetime
import os
import subprocess
from pathlib import Path

import pytest
import results_table

PAGE = "HIS2LIP_SLOW_PAGE"  # the page whose table gets the results; unset: they are not written


def record(report: pytest.TestReport) -> None:
    """One row: the test, its result, its seconds, the date and the commit; only for slow tests."""
    page = os.environ.get(PAGE)
    final = report.when == "call" or report.outcome != "passed"
    if not page or not final or "slow" not in report.keywords or "PYTEST_XDIST_WORKER" in os.environ:
        return
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    row = (f"`{report.nodeid}`", _result(report), f"{report.duration:.0f}", today, _commit(Path(page)))
    start = "<!-- results: written by `make test-slow` -->"
    results_table.update(Path(page), start, ("test", "result", "seconds", "date", "commit"), [row])


def _result(report: pytest.TestReport) -> str:
    if report.skipped and isinstance(report.longrepr, tuple):
        return report.longrepr[2].replace("|", "/").replace("\n", " ")
    return report.outcome


def _commit(page: Path) -> str:
    """The commit of the working tree, with a plus sign if any file but the page differs from it."""
    changed = [line for line in _git("status", "--porcelain").splitlines() if not line.endswith(page.name)]
    return _git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def _git(*arguments: str) -> str:
    here = Path(__file__).parents[1]
    return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True).stdout.strip()
