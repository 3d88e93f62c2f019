"""What the commands print and write: no secrets of addresses in lines, tables, progress and CSV files."""

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
