"""What the commands print and write: no secrets of addresses, and tables that fit the terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from his2lip.cli import console
from his2lip.cli.options import write_csv

ADDRESS, SHOWN = "s3://KEY:SECRET@bucket/x", "s3://KEY:***@bucket/x"


def test_lines_tables_and_progress_have_no_secrets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    console.console.cache_clear()
    monkeypatch.setattr(console, "LINES_EVERY_S", 0.0)
    console.say(ADDRESS)
    console.table(("model", "macro F1"), [(ADDRESS, "12.00"), (Path(ADDRESS), 3)])
    with console.ProgressBar("work") as bar:
        bar.update(ADDRESS)
    console.console.cache_clear()
    said = capsys.readouterr().out
    assert said.count(SHOWN) == 4
    assert said.count("s3:/KEY:***@bucket/x") == 1
    assert "SECRET" not in said


def test_csv_files_have_no_secrets(tmp_path: Path) -> None:
    write_csv(tmp_path / "rows.csv", ("image", "answer"), [(ADDRESS, 0.5)])
    assert (tmp_path / "rows.csv").read_text() == f"image,answer\n{SHOWN},0.5\n"


@pytest.mark.parametrize("width", [30, 60, 200])
def test_a_wide_table_breaks_no_figure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    console.console.cache_clear()
    monkeypatch.setattr(console, "_WIDE", width)
    datasets = ["mihic", "pantumor", "her2-ihc-40x", "bci"]
    rows = [[model, *(f"87.{i}5\n84.4 to 91.4" for i in range(4))] for model in ("untrained", "trained")]
    console.wide_table(["model", *datasets], rows)
    console.console.cache_clear()
    lines = capsys.readouterr().out.splitlines()
    words = [word for line in lines for word in line.split()]
    assert [word for word in words if word in datasets] == datasets
    assert words.count("91.4") == words.count("84.4") == 8
    assert all(words.count(f"87.{i}5") == 2 for i in range(4))
    assert words.count("trained") == words.count("model") == {30: 4, 60: 2, 200: 1}[width]
    assert max(map(len, lines)) <= width
