"""The leaderboard pages: names escaped, twins and in-domain columns marked, and means without them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from cell_results import cell_result
from page_tags import fetched
from typer.testing import CliRunner

from his2lip.cli import app
from his2lip.data.cards.card import load_card
from his2lip.errors import ConfigError
from his2lip.evaluation.grid import _board_rows
from his2lip.evaluation.leaderboard import write_leaderboard
from his2lip.evaluation.results import CellResult, to_csv
from his2lip.files import filesystem, write_file
from his2lip.report.board import Board, read_board
from his2lip.report.pages import write_pages
from his2lip.templates import render

EVIL = "<script>alert('x')</script>|"


def _leaderboard(folder: Path, *, generated: bool = False, **more: object) -> Path:
    cells = [
        cell_result(
            model=model, dataset=dataset, accuracy=value, macro_f1=value, chance_corrected=value,
            generated=generated, in_domain=dataset == "mihic" and model == EVIL, **more,
        )
        for model, scores in {EVIL: (0.9, 0.4, 0.5), "frozen": (0.3, 0.6, 0.7)}.items()
        for dataset, value in zip(("mihic", "mist", "bci"), scores, strict=True)
    ]  # fmt: skip
    path = folder / "leaderboard.csv"
    path.write_text(to_csv(cells))
    return path


def test_means_leave_out_a_column_that_is_in_domain_for_one_model_for_every_model(tmp_path: Path) -> None:
    board = read_board(_leaderboard(tmp_path))
    assert board.zero_shot() == ["mist", "bci"]
    assert board.mean(EVIL) == pytest.approx(0.45)
    assert board.mean("frozen") == pytest.approx(0.65)
    assert board.models == ["frozen", EVIL]


def test_the_name_of_a_model_is_escaped_on_the_pages(tmp_path: Path) -> None:
    page = write_pages(_leaderboard(tmp_path), tmp_path / "out").read_text()
    assert "<script>alert(" not in page
    assert "&lt;script&gt;alert(" in page
    assert "<script>alert(" not in (tmp_path / "out" / "leaderboard.md").read_text()


def test_the_name_of_a_model_is_not_a_format_of_the_markdown_page(tmp_path: Path) -> None:
    path = _leaderboard(tmp_path)
    path.write_text(path.read_text().replace("frozen", "**a_b** `[c]$ __d__"))
    write_pages(path, tmp_path / "out")
    page = (tmp_path / "out" / "leaderboard.md").read_text()
    assert r"| \*\*a_b\*\* \`\[c\]\$ \_\_d\_\_ |" in page


def test_every_page_of_generated_twins_has_a_warning(tmp_path: Path) -> None:
    write_pages(_leaderboard(tmp_path, generated=True), tmp_path / "out")
    for name in ("index.html", "leaderboard.md"):
        assert "generated twins" in (tmp_path / "out" / name).read_text()


def test_the_name_of_a_column_is_escaped_on_the_pages(tmp_path: Path) -> None:
    out = write_pages(_leaderboard(tmp_path, protocol=EVIL), tmp_path / "out").parent
    for name in ("index.html", "leaderboard.md"):
        assert "<script>alert(" not in (out / name).read_text()
    lines = (out / "leaderboard.md").read_text().splitlines()
    counts = {line.replace("\\|", "").count("|") for line in lines if line.startswith("|")}
    assert counts == {5}, "the model and three columns, or mean, rank and share"


def test_a_leaderboard_without_grid_cells_still_has_a_page(tmp_path: Path) -> None:
    path = tmp_path / "leaderboard.csv"
    path.write_text(to_csv([]))
    assert "No grid cell was scored" in write_pages(path, tmp_path / "out").read_text()


def test_the_page_of_real_results_has_no_warning_about_twins(tmp_path: Path) -> None:
    assert "generated twins" not in write_pages(_leaderboard(tmp_path), tmp_path / "out").read_text()


def test_the_page_needs_no_network(tmp_path: Path) -> None:
    page = write_pages(_leaderboard(tmp_path), tmp_path / "out").read_text()
    assert not fetched(page)


def test_a_twin_and_its_real_dataset_are_two_columns(tmp_path: Path) -> None:
    real, twin = tmp_path / "real", tmp_path / "twin"
    real.mkdir()
    twin.mkdir()
    lines = _leaderboard(real).read_text() + _leaderboard(twin, generated=True).read_text().split("\n", 1)[1]
    both = tmp_path / "leaderboard.csv"
    both.write_text(lines)
    assert read_board(both).zero_shot() == ["mist", "bci"]
    assert read_board(both).columns == [
        *("mihic", "mist", "bci"),
        *("mihic (generated)", "mist (generated)", "bci (generated)"),
    ]
    page = write_pages(both, tmp_path / "out").read_text()
    size = "<small>n = 10</small><small>5 cases</small></th>"
    assert f">bci</button>{size}" in page
    assert f">bci</button><small>generated</small>{size}" in page
    assert f">mihic</button><small>generated</small><small>in-domain</small>{size}" in page


def test_a_figure_shows_its_n_its_interval_and_its_difference_from_the_papers(tmp_path: Path) -> None:
    known = {"macro_f1_lo": 0.25, "macro_f1_hi": 0.75, "published_f1": 0.1}
    page = write_pages(_leaderboard(tmp_path, **known), tmp_path / "out").read_text()
    assert 'style="--at:28.6;--low:7.1;--high:78.6"><b></b><u></u></span><small>25.0 to 75.0</small>' in page
    assert "Intervals are drawn from 20 to 90 %." in page
    assert '<small class="beside">paper 10.00</small></td>' in page
    assert "<li>macro F1: paper 10.00, difference +30.00</li>" in page
    assert "40.00 (25.0 to 75.0), paper 10.00" in (tmp_path / "out/leaderboard.md").read_text()
    page = write_pages(_leaderboard(tmp_path, generated=True, **known), tmp_path / "out").read_text()
    assert "difference +" not in page.split("<script")[0], "a twin is not compared with published figures"


def test_a_figure_without_an_interval_shows_the_reason(tmp_path: Path) -> None:
    reason = "each slide has one label, and the dataset does not say which slide a patch is from"
    page = write_pages(_leaderboard(tmp_path, no_interval=reason), tmp_path / "out").read_text()
    assert f"no interval: {reason}" in page
    assert f"bci: no intervals, because {reason}." in page
    assert f"bci: no intervals, because {reason}." in (tmp_path / "out/leaderboard.md").read_text()


def test_chance_does_not_lead_the_board_where_datasets_have_few_classes(tmp_path: Path) -> None:
    """Chance has a higher mean of macro F1 than the model, which is better than chance on both datasets."""
    known = {
        "four": {"chance": (0.25, 0.0), "model": (0.20, 0.1)},
        "two": {"chance": (0.5, 0.0), "model": (0.5, 0.1)},
    }
    cells = [
        cell_result(model=model, dataset=dataset, macro_f1=macro_f1, chance_corrected=corrected)
        for dataset, of in known.items()
        for model, (macro_f1, corrected) in of.items()
    ]
    assert Board(cells).models == ["model", "chance"]


def test_ranks_are_by_points_over_the_zero_shot_columns_and_the_share_counts_all_columns() -> None:
    scores = {"a": (0.9, 0.1, 0.5), "b": (0.0, 0.2, 0.5), "c": (0.0, 0.3, 0.41)}
    cells = [
        cell_result(
            model=model, dataset=dataset, chance_corrected=value, in_domain=model == "a" and dataset == "own"
        )
        for model, values in scores.items()
        for dataset, value in zip(("own", "x", "y"), values, strict=True)
    ]
    board = Board([*cells, cell_result(model="only x", dataset="x", chance_corrected=1.0)])
    # Points over x and y, with half a point for oneself: a 0.5 + 2, b 1.5 + 2, c 2.5 + 0.5.
    assert board.borda() == {"a": 3, "b": 1, "c": 2}
    assert board.models == ["c", "b", "a", "only x"]
    assert [board.zero_shot_share(model) for model in "abc"] == [pytest.approx(2 / 3), 1.0, 1.0]


def several_protocols() -> list[CellResult]:
    """Two models on a dataset that is scored by two protocols, `paper` first, and on two others."""
    columns = [("x", "paper"), ("x", "default"), ("y", "image"), ("y", "paper"), ("z", "default")]
    scores = {"a": (0.9, 0.3, 0.3, 0.9, 0.9), "b": (0.1, 0.4, 0.4, 0.1, 0.1)}
    return [
        cell_result(
            model=model, dataset=dataset, protocol=protocol, chance_corrected=value,
            chance_corrected_lo=value - 0.1, chance_corrected_hi=value + 0.1,
        )
        for model, values in scores.items()
        for (dataset, protocol), value in zip(columns, values, strict=True)
    ]  # fmt: skip


def test_a_dataset_counts_once_by_its_default_protocol_or_else_by_its_first() -> None:
    cells = several_protocols()
    board = Board(cells)
    assert board.zero_shot() == ["x", "y (image)", "z"]
    assert board.mean("a") == pytest.approx(0.5)
    low, high = board.mean_interval("a") or (0.0, 0.0)
    assert 0.4 < low < 0.5 < high < 0.6, "three independent datasets, not five figures"
    seen = [c.model_copy(update={"in_domain": (c.dataset, c.protocol) == ("x", "paper")}) for c in cells]
    assert Board(seen).zero_shot() == ["x", "y (image)", "z"]
    assert Board(seen).zero_shot_share("a") == pytest.approx(2 / 3), "a share of datasets, not of columns"


def test_models_that_mean_and_borda_count_rank_differently_are_named(tmp_path: Path) -> None:
    board = Board(several_protocols())
    assert (board.models, board.borda()) == (["a", "b"], {"a": 2, "b": 1})
    assert board.disagreements() == [("a", "b")]
    path = tmp_path / "leaderboard.csv"
    path.write_text(to_csv(several_protocols()))
    out = write_pages(path, tmp_path / "out").parent
    for name in ("index.html", "leaderboard.md"):
        text = (out / name).read_text()
        assert "a above b" in text
        assert "Not counted again: x (paper), y (paper)." in text


def test_every_row_shows_the_tissue_that_was_seen_and_the_pages_say_what_limits_it(tmp_path: Path) -> None:
    note = "31% of the tissue is seen, less than 50%: at most 512 tiles per image"
    out = write_pages(_leaderboard(tmp_path, coverage=0.3141, seen_note=note), tmp_path / "out").parent
    page, text = (out / "index.html").read_text(), (out / "leaderboard.md").read_text()
    for written in (page, text):
        assert "Tissue seen, %" in written
        assert written.count("31.41") >= 6
        assert f"mist: {note} (" in written
    assert f"<li>{note}</li><li>tissue seen 31.41 %</li>" in page


def test_ties_of_models_are_noted_and_not_those_of_baselines_whose_caveats_tell(tmp_path: Path) -> None:
    path = tmp_path / "leaderboard.csv"
    tied = {"ties": 4, "n": 10, "apart": 1}
    path.write_text(to_csv(cell_result(model=name, **tied) for name in ("a", "b", "baseline:chance")))
    out = write_pages(path, tmp_path / "out").parent
    without = write_pages(_leaderboard(tmp_path), tmp_path / "without").parent
    for name in ("index.html", "leaderboard.md", "leaderboard.tex"):
        text = (out / name).read_text()
        note = "units with several classes at the highest score, the first of which is predicted: "
        assert f"{note}a 4 of 11, b 4 of 11." in text
        assert "several classes" not in (without / name).read_text()


def test_a_column_of_an_older_version_of_its_protocol_is_marked_with_what_has_changed(tmp_path: Path) -> None:
    newest = load_card("mist").protocols["default"]
    old = read_board(_leaderboard(tmp_path, protocol_version=newest.version - 1))
    assert f"mist (version {newest.version - 1} of {newest.version})" in old.columns
    assert "mihic" in old.columns, "its protocol has only one version"
    page = write_pages(tmp_path / "leaderboard.csv", tmp_path / "out").read_text()
    assert newest.changelog[newest.version] in page
    now = read_board(_leaderboard(tmp_path, protocol_version=newest.version))
    assert now.columns == ["mihic", "mist", "bci"]


def test_a_dataset_of_one_s_own_has_no_versions_to_compare(tmp_path: Path) -> None:
    (cell,) = read_board(_own(tmp_path)).columns
    assert cell == "biopsies"


def _own(folder: Path) -> Path:
    path = folder / "leaderboard.csv"
    path.write_text(to_csv([cell_result(dataset="biopsies", protocol_version=1)]))
    return path


def test_no_page_shows_the_secrets_of_an_address(tmp_path: Path) -> None:
    page = render("tuning/sweep.html", title="postgresql://me:SECRET@db/x", plots=[])
    assert "postgresql://me:***@db/x" in page
    assert "SECRET" not in page


def test_a_leaderboard_that_was_changed_after_it_was_written_is_refused(tmp_path: Path) -> None:
    path = Path(write_leaderboard(str(tmp_path), [], []))
    assert read_board(path).cells == []
    path.write_text(path.read_text() + "\n")
    with pytest.raises(ConfigError) as refused:
        read_board(path)
    assert (refused.value.where, refused.value.key) == (path, "sha256.json")


def test_figures_by_biomarker_and_case_are_a_table(tmp_path: Path) -> None:
    of_case = {"n": 3, "clusters": 1, "accuracy": 0.5}
    parts = {
        "biomarker": {"ER": {"n": 7, "clusters": 4, "accuracy": 0.25, "macro_f1": 0.2}},
        "case_id": {"P1": of_case},
    }
    page = write_pages(_leaderboard(tmp_path, breakdown=parts), tmp_path / "out")
    with page.with_name("breakdown.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["model"], row["dataset"]) == ("frozen", "bci")]
    assert [(row["column"], row["value"], row["n"], row["macro_f1"]) for row in rows] == [
        ("biomarker", "ER", "7", "0.2"),
        ("case_id", "P1", "3", ""),
    ]
    write_pages(_leaderboard(tmp_path), tmp_path / "out")
    assert not page.with_name("breakdown.csv").exists(), "that of an earlier call is removed"


def test_the_pages_of_a_board_on_an_object_store_are_written_beside_it() -> None:
    folder = "memory://pages/benchmark/zoo"
    system, root = filesystem(folder)
    cells = [cell_result(model="CLIP"), cell_result(model="PLIP")]
    write_file(system, f"{root}/leaderboard.csv", to_csv(cells).encode())
    assert [row.model for row in _board_rows(folder)] == ["CLIP", "PLIP"]
    done = CliRunner().invoke(app, ["report", folder])
    assert done.exit_code == 0, done.output
    assert "memory://pages/benchmark/zoo/report/index.html" in done.output.replace("\n", "")
    with system.open_input_stream(f"{root}/report/index.html") as page:
        assert b"PLIP" in page.read()
