"""Columns, scales and LaTeX of the leaderboard's tables."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from boards import real_size
from cell_results import cell_result
from hypothesis import given
from hypothesis import strategies as st

from his2lip.evaluation.reliability import Fitted, calibrated
from his2lip.evaluation.results import to_csv
from his2lip.report import calibration
from his2lip.report.board import Board
from his2lip.report.columns import WIDEST, Columns, abbreviations, anchors
from his2lip.report.latex import escape
from his2lip.report.notes import notes
from his2lip.report.pages import write_pages
from his2lip.report.section import Inputs
from his2lip.report.table import Figure, Scale

LONG = "biopsies-of-the-left-lung"


@given(st.lists(st.text(min_size=1, max_size=40), unique=True, max_size=20))
def test_abbreviations_are_short_and_tell_names_apart(names: list[str]) -> None:
    short = abbreviations(names)
    assert list(short) == names
    assert len(set(short.values())) == len(names)
    assert all(len(name) <= 14 for name in short.values())


def test_a_long_name_is_abbreviated_with_a_legend_and_a_short_one_is_kept(tmp_path: Path) -> None:
    cells = [cell_result(dataset=name) for name in (LONG, f"{LONG}-2", "her2-ihc-40x")]
    short = Columns(Board(cells)).short
    assert short["her2-ihc-40x"] == "her2-ihc-40x"
    assert len(set(short.values())) == 3
    (tmp_path / "leaderboard.csv").write_text(to_csv(cells))
    out = write_pages(tmp_path / "leaderboard.csv", tmp_path / "out").parent
    assert f"<li>{short[LONG]}: {LONG}</li>" in (out / "index.html").read_text()
    assert f"{escape(short[LONG])}: {LONG}" in (out / "leaderboard.tex").read_text()


def test_no_table_is_wider_than_ten_columns_and_protocols_are_apart() -> None:
    cells = [
        cell_result(dataset=f"d{i}", protocol=p) for p in ("default", "paper") for i in range(WIDEST + 2)
    ]
    blocks = Columns(Board(cells)).blocks()
    assert [(title, len(own)) for title, own in blocks] == [
        ("protocol default", WIDEST),
        ("protocol default", 2),
        ("protocol paper", WIDEST),
        ("protocol paper", 2),
    ]
    assert [column for _, own in blocks for column in own] == Board(cells).columns


def test_a_caveat_names_its_columns_unless_it_is_about_all_of_the_models_columns() -> None:
    cells = [
        cell_result(model=model, dataset=dataset, caveat=f"{model} of {what}")
        for model, dataset, what in (
            ("one", "mist", "train"), ("one", "bci", "folds"), ("two", "mist", "x"), ("two", "bci", "x"),
        )
    ]  # fmt: skip
    found = notes(Board(cells))
    assert "one on mist: one of train." in found
    assert "one on bci: one of folds." in found
    assert "two: two of x." in found


def test_places_on_the_page_have_ids_of_their_own() -> None:
    found = anchors([("a b", "c"), ("a", "b c"), ("ü/<>", "")], "cell")
    assert len(set(found.values())) == 3
    assert all(re.fullmatch(r"cell-[a-z0-9-]*", place) for place in found.values())


def test_a_scale_holds_all_limits_and_the_chance_of_a_coefficient() -> None:
    figures = [Figure(0.5, drawn=(0.31, 0.62)), Figure(None), Figure(0.7)]
    assert Scale.of(figures, "fraction") == Scale(0.3, 0.7)
    assert Scale.of(figures, "fraction").place(0.5) == pytest.approx(50)
    assert Scale.of(figures, "coefficient").low == 0.0
    assert Scale.of([], "fraction").high > Scale.of([], "fraction").low
    assert Scale.around_zero([Figure(0.1, drawn=(-0.2, 0.4))], "fraction") == Scale(-0.4, 0.4)


@given(st.text())
def test_no_text_is_a_command_in_latex(text: str) -> None:
    escaped = escape(text)
    plain = re.sub(
        r"\\(text\w+|dots)\{[^{}]*(\{\})?(\\\w+)?\}|\$(-|\\mu)\$|\\[&%$#_{}]|\{[\[*]\}", "", escaped
    )
    assert not re.search(r"[&%$#_{}\\~^<>|*\[]", plain)
    assert "\n" not in escaped


def test_every_line_of_a_latex_table_has_its_columns_and_every_brace_is_closed(tmp_path: Path) -> None:
    cells = [
        cell_result(model=model, dataset=f"d_{i}", macro_f1=0.1 * i, macro_f1_lo=0.0, macro_f1_hi=0.9)
        for model in ("50 % & more_{x}", "[plain]", "baseline:chance")
        for i in range(8)
    ]
    (tmp_path / "leaderboard.csv").write_text(to_csv(cells))
    tex = (write_pages(tmp_path / "leaderboard.csv", tmp_path / "out").parent / "leaderboard.tex").read_text()
    tables = re.findall(r"\\begin\{tabular\}\{(l(r+))\}(.*?)\\end\{tabular\}", tex, re.DOTALL)
    assert len(tables) == 3, "the mean, macro F1 and chance-corrected balanced accuracy"
    for columns, _, body in tables:
        lines = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert lines
        assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {len(columns) - 1}
    code = "\n".join(line for line in tex.splitlines() if not line.startswith("%"))
    bare = re.sub(r"\\[{}]", "", code)
    assert bare.count("{") == bare.count("}")
    assert code.count(r"\begin{table*}") == code.count(r"\end{table*}") == 3
    assert r"50 \% \& more\_\{x\}" in code


@pytest.mark.skipif(
    shutil.which("pdflatex") is None, reason="needs pdflatex (Debian: texlive-latex-recommended)"
)
@pytest.mark.parametrize("option", ["", "twocolumn"])
def test_latex_compiles_and_fits_on_the_page(tmp_path: Path, option: str) -> None:
    out = write_pages(real_size(tmp_path), tmp_path / "out").parent
    (out / "paper.tex").write_text(
        rf"\documentclass[{option}]{{article}}\usepackage{{booktabs,graphicx}}"
        r"\begin{document}\input{leaderboard}\end{document}"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=out, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
    assert (out / "paper.pdf").stat().st_size > 10_000


def test_a_risk_at_another_coverage_than_its_head_states_the_coverage() -> None:
    """7 of 10 units have the same probability, and are answered together."""
    sure = np.array([2.0] * 7 + [1.0, 0.8, 0.6])
    labels = np.array([0, 1] * 5)
    fit = Fitted(1.0, "select", 40)
    found = calibrated(np.stack([sure, 0 * sure], axis=1), labels, np.arange(10), fit, has_interval=False)
    assert min(point.coverage for point in found.curve) == 0.7
    section = calibration.fill(Inputs(Board([cell_result(calibration=found)])))
    assert section is not None
    everything, most, half = section.tables[0].rows[0].figures[-3:]
    assert everything.beside == ("all answered",)
    assert most.beside == ("from 0.73",)
    assert half.value == pytest.approx(3 / 7)
    assert half.beside == ("70% answered", "from 0.88")
