"""Tables of results that test runs write into pages."""

from __future__ import annotations

from pathlib import Path

import pytest
import results_table
import slow_page

START, END = "<!-- results: written by a test -->", "<!-- end of results -->"


def test_a_row_replaces_the_one_of_the_same_name_and_the_others_stay(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{START}\n\n{END}\n\nafter | {END[4:7]}\n", encoding="utf-8")
    results_table.update(page, START, ("test", "result"), [("a", "failed"), ("b", 2)])
    results_table.update(page, START, ("test", "result"), [("a", "passed"), ("c", "skipped")])
    lines = page.read_text(encoding="utf-8").splitlines()
    table = ["| test | result |", "| --- | --- |", "| a | passed |", "| b | 2 |", "| c | skipped |"]
    assert [line for line in lines if line.startswith("|")] == table
    assert (lines[0], lines[-1]) == ("before", f"after | {END[4:7]}")


@pytest.mark.parametrize(
    ("marker", "when", "written"), [("slow", "call", 1), ("slow", "setup", 0), ("x", "call", 0)]
)
def test_only_the_result_of_a_slow_test_is_written(
    marker: str, when: str, written: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "slow.md"
    page.write_text(f"<!-- results: written by `make test-slow` -->\n{END}\n", encoding="utf-8")
    monkeypatch.setenv(slow_page.PAGE, str(page))
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    slow_page.record(
        pytest.TestReport("a.py::test", ("a.py", 1, "test"), {marker: 1}, "passed", None, when, duration=2.4)
    )
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if "a.py::test" in line]
    assert len(rows) == written
    assert all(row.startswith("| `a.py::test` | passed | 2 | 20") for row in rows)
