"""The leaderboard pages: escaped, honest about twins and training distributions, right in their means."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from his2lip.errors import ConfigError
from his2lip.evaluation.leaderboard import COLUMNS
from his2lip.report import read_board, write_pages

EVIL = "<script>alert('x')</script>|"


def _leaderboard(folder: Path, *, generated: bool = False) -> Path:
    rows = []
    for model, scores in {EVIL: (0.9, 0.4, 0.5), "frozen": (0.3, 0.6, 0.7)}.items():
        for dataset, value in zip(("mihic", "mist", "bci"), scores, strict=True):
            rows.append(
                {
                    "model": model, "dataset": dataset, "protocol": "default", "n": 10, "accuracy": value,
                    "macro_f1": value, "balanced_accuracy": value, "generated": generated, "basis": "ours",
                    "in_domain": dataset == "mihic" and model == EVIL,
                }
            )  # fmt: skip
    path = folder / "leaderboard.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_means_leave_out_a_training_distribution_for_every_model_alike(tmp_path: Path) -> None:
    board = read_board(_leaderboard(tmp_path))
    assert board.zero_shot() == ["mist", "bci"]
    assert board.mean(EVIL) == pytest.approx(0.45)
    assert board.mean("frozen") == pytest.approx(0.65)
    assert board.models == ["frozen", EVIL]


def test_a_models_name_cannot_write_into_the_page(tmp_path: Path) -> None:
    page = write_pages(_leaderboard(tmp_path), tmp_path / "out").read_text()
    assert "<script>alert(" not in page
    assert "&lt;script&gt;alert(" in page
    assert "<script>alert(" not in (tmp_path / "out" / "leaderboard.md").read_text()


def test_generated_twins_are_called_so_at_the_top_of_every_page(tmp_path: Path) -> None:
    write_pages(_leaderboard(tmp_path, generated=True), tmp_path / "out")
    for name in ("index.html", "leaderboard.md"):
        assert "generated twins" in (tmp_path / "out" / name).read_text()


def test_real_results_carry_no_such_warning(tmp_path: Path) -> None:
    assert "generated twins" not in write_pages(_leaderboard(tmp_path), tmp_path / "out").read_text()


def test_the_page_needs_no_network(tmp_path: Path) -> None:
    page = write_pages(_leaderboard(tmp_path), tmp_path / "out").read_text()
    assert 'src="http' not in page
    assert "<link" not in page


def test_a_file_that_is_no_leaderboard_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "leaderboard.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="not a leaderboard"):
        read_board(path)
