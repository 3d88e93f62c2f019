"""The paper's figures beside ours: differences with our intervals, impossible pairs, and what differs."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from cell_results import cell_result

from his2lip.evaluation.leaderboard import with_published
from his2lip.evaluation.prompts import PromptSet
from his2lip.evaluation.results import to_csv
from his2lip.report.board import Board
from his2lip.report.pages import write_pages
from his2lip.report.paper import against_paper_csv, differences_of, pairs


def board(**changes: object) -> Board:
    """CLIP on HNSCC by the protocol `paper`: F1 40 against 21.19, accuracy 50 against 26.42."""
    known = {"protocol": "paper", "macro_f1_lo": 0.3, "macro_f1_hi": 0.5, "classes": ["a", "b", "c"]}
    return Board(with_published([cell_result(**known | changes)], {"hnscc": "hnscc", "bcdata": "bcdata"}))


def lines(of: Board) -> list[dict[str, str]]:
    return [row for row in csv.DictReader(io.StringIO(against_paper_csv(of))) if row["ours"]]


def test_a_difference_is_ours_minus_the_published_one_with_the_interval_of_ours() -> None:
    f1, accuracy = lines(board())
    assert (f1["model"], f1["dataset"], f1["figure"]) == ("CLIP", "HNSCC-mIF-mIHC", "macro_f1")
    assert float(f1["difference"]) == pytest.approx(0.4 - 0.2119)
    assert float(f1["difference_lo"]) == pytest.approx(0.3 - 0.2119)
    assert float(f1["difference_hi"]) == pytest.approx(0.5 - 0.2119)
    assert float(accuracy["difference"]) == pytest.approx(0.5 - 0.2642)
    assert accuracy["difference_lo"] == "", "ours has no interval"
    assert (f1["n"], f1["clusters"], f1["not_comparable"]) == ("10", "5", "")


def test_an_impossible_published_pair_has_no_difference_anywhere(tmp_path: Path) -> None:
    of = board(dataset="bcdata", classes=["a", "b"])
    f1, _ = lines(of)
    assert (f1["published"], f1["difference"], f1["difference_lo"]) == ("0.18", "", "")
    assert f1["not_comparable"]
    (tmp_path / "leaderboard.csv").write_text(to_csv(of.cells))
    page = write_pages(tmp_path / "leaderboard.csv", tmp_path / "out").read_text()
    assert '–</span><span class="marks">*</span><small class="beside">paper 18.00</small>' in page
    assert '<small class="beside">paper 18.00*</small>' in page, "by dataset too"
    assert "<li>macro F1: paper 18.00, not comparable" in page
    assert "difference +22.00" not in page


@pytest.mark.parametrize("changes", [{"generated": True}, {"protocol": "default"}, {"model": "other"}])
def test_only_the_papers_models_by_its_protocol_on_real_images_are_compared(
    changes: dict[str, object],
) -> None:
    assert against_paper_csv(board(**changes)) == ""


def test_without_a_scored_model_the_page_has_the_published_values(tmp_path: Path) -> None:
    (tmp_path / "leaderboard.csv").write_text(to_csv(board(protocol="default").cells))
    out = write_pages(tmp_path / "leaderboard.csv", tmp_path / "out").parent
    page = (out / "index.html").read_text()
    assert "Macro F1 in the paper, %" in page
    assert '<td data-value="0.18">18.00<span class="marks">*</span></td>' in page, "CLIP on BCData"
    assert '<td data-value="0.2119">21.19</td>' in page
    assert "in the paper" not in (out / "leaderboard.md").read_text()
    assert not (out / "against_paper.csv").exists()


def test_trainings_of_several_seeds_are_compared_as_one_row() -> None:
    (pair,) = (p for p in pairs(board(model="CLIP seed 1", seeds_of="CLIP")) if p.cell is not None)
    assert pair.published.model == "CLIP"


def test_a_row_names_what_differs_from_the_paper() -> None:
    prompts = PromptSet.load("tumour").narrow(["tumour", "non-tumour"]).digest
    of = board(dataset="bcdata", classes=["tumour", "non-tumour"], prompts_sha256=prompts, n=402)
    told = differences_of("BCData", pairs(of))
    assert "prompts: ours (tumour), not the authors'" in told
    assert "n: 402 patches; the paper's Table 1 counts 1,338 images" in told
    assert "size: patches of 64 px around annotated cells, resized whole, as in the released code" in told
    assert "classes: 2, inferred" in told
    assert lines(of)[0]["protocol_differences"] == "; ".join(told)
    others = differences_of("BCData", pairs(board(dataset="bcdata", prompts_sha256="of the benchmark")))
    assert "prompts: those that the benchmark names" in others
    assert differences_of("MIST", pairs(of)) == [], "it was not scored"


def test_the_tables_are_in_markdown_and_latex_with_what_differs(tmp_path: Path) -> None:
    (tmp_path / "leaderboard.csv").write_text(to_csv(board().cells))
    out = write_pages(tmp_path / "leaderboard.csv", tmp_path / "out").parent
    text, tex = (out / "leaderboard.md").read_text(), (out / "leaderboard.tex").read_text()
    assert "| HNSCC-mIF-mIHC | +18.81 (8.8 to 28.8), paper 21.19, ours 40.00 |" in text
    assert (
        "HNSCC-mIF-mIHC: prompts: those that the benchmark names; split: test, made by this project" in text
    )
    assert r"HNSCC-mIF-mIHC & +18.81" in tex
    assert (out / "against_paper.csv").is_file()
