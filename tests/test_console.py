"""What the commands print and write: no secrets of addresses, and tables that fit the terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from his2lip.cli import console
from his2lip.cli.benchmark import _show_result
from his2lip.cli.options import write_csv
from his2lip.config import validate
from his2lip.evaluation.config import BenchmarkConfig
from his2lip.evaluation.grid import GridResult
from his2lip.evaluation.results import CellFailure

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


def test_a_failure_of_all_models_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    reason = "no image has the tissue type of another image or of a held-out caption"
    failed = [
        CellFailure(model=model, dataset="mihic", protocol=protocol, reason=why)
        for protocol, why in (("retrieval", reason), ("default", "no memory"))
        for model in (("a", "b") if why == reason else ("b",))
    ]
    config = validate(BenchmarkConfig, {"models": ["tiny"], "datasets": ["mihic"]})
    console.console.cache_clear()
    _show_result(config, GridResult([], failed, "board"), has_curve=False)
    console.console.cache_clear()
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("failed")]
    assert told == [f"failed: a, b on mihic (retrieval): {reason}", "failed: b on mihic (default): no memory"]
