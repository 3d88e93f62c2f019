"""Verification of a board: it is computed again from what is stored, and what was changed is named."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cell_results import plan_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from real_tiles import tiles
from typer.testing import CliRunner

from his2lip.cli.app import app, main
from his2lip.config import digest
from his2lip.data.shards.reader import ShardSet
from his2lip.errors import ConfigError
from his2lip.evaluation.baselines import BaselineScorer
from his2lip.evaluation.cell_files import cell_folder
from his2lip.evaluation.config import ModelEntry
from his2lip.evaluation.controls import ControlScorer
from his2lip.evaluation.embeddings import EmbeddingCache
from his2lip.evaluation.grid_cell import CellPlan, run_cell
from his2lip.evaluation.leaderboard import (
    with_differences,
    with_prompt_order,
    with_seeds,
    write_leaderboard,
)
from his2lip.evaluation.merge import merge_boards
from his2lip.evaluation.prompts import PromptSet
from his2lip.evaluation.protocols import groups_digest
from his2lip.evaluation.results import CellResult, read_results
from his2lip.evaluation.scorers import ModelScorer
from his2lip.evaluation.statistics import Clusters
from his2lip.evaluation.stored_cell import read_predictions
from his2lip.evaluation.verify import verify_board
from his2lip.models.load import load_model
from his2lip.report.page import writer
from his2lip.report.verification import verify_pages

Write = Callable[..., ShardSet]
CLASSES = ("negative", "positive")


def board_plan(shards: ShardSet) -> CellPlan:
    """Two classes with prompts that differ in number, a further pool, and figures by biomarker."""
    own = PromptSet.build("own", {c: [f"{c} {i}" for i in range(5)] for c in CLASSES})
    further = PromptSet.build("further", {c: [f"a {c} patch"] for c in CLASSES})
    plan = plan_of(shards)
    ids = [f"case {i % 6}" for i in range(len(plan.selection.labels))]
    clusters, breakdown = Clusters(ids, "case"), {"case_id": ids}
    digest_of_groups = groups_digest(plan.selection.unit_ids, clusters, breakdown)
    selection = replace(
        plan.selection, clusters=clusters, breakdown=breakdown, groups_sha256=digest_of_groups
    )
    return replace(plan, selection=selection, prompts=own, pools={"further": further})


def write_board(
    folder: str, plan: CellPlan, cache: EmbeddingCache, *, seeds: Sequence[int] = (1, 2)
) -> list[CellResult]:
    """A board of trainings of `tiny`, called by their number, a negative control and two baselines."""
    models = [ModelScorer(f"m seed {i}", load_model("tiny", seed=s), cache) for i, s in enumerate(seeds, 1)]
    control = ControlScorer("control", models[0], "shuffled-labels")
    runs = [run_cell(scorer, plan, folder) for scorer in models]
    runs.append(run_cell(control, control.plan(plan), folder))
    runs += [run_cell(BaselineScorer(f"baseline:{b}", cache), plan, folder) for b in ("chance", "majority")]
    cells = [run.result for run in runs]
    of_draws = {(r.result.model, r.result.dataset, r.result.protocol): r.prompt_f1 for r in runs}
    entries = [ModelEntry(name=m.name, path="tiny", seeds_of="m") for m in models]
    cells = with_seeds(folder, with_prompt_order(cells, of_draws), entries)
    cells = with_differences(folder, cells, reference="baseline:chance", margin=0.1)
    write_leaderboard(folder, cells, [])
    return cells


@pytest.fixture
def board(write_shards: Write, real_ihc: np.ndarray, tmp_path: Path) -> tuple[str, list[CellResult]]:
    """(folder, rows) of `write_board`, on 18 real tiles of six cases."""
    shards = write_shards(images=tiles(real_ihc)[:54])
    folder = str(tmp_path / "board")
    return folder, write_board(folder, board_plan(shards), EmbeddingCache(str(tmp_path / "cache")))


def test_a_board_follows_from_its_stored_predictions_to_the_byte(board: tuple[str, list[CellResult]]) -> None:
    folder, cells = board
    found = verify_board(folder)
    assert (list(found.mismatches), list(found.notes)) == ([], [])
    assert list(found.cells) == cells
    assert {"leaderboard.csv", "leaderboard.parquet", "predictions.parquet", "board.json"} <= {*found.files}
    assert "resolved" not in json.loads(Path(folder, "board.json").read_text()), "as of earlier versions"
    first = cells[0]
    assert all([first.compared, first.over_seeds, first.prompt_order, first.prompt_pools, first.breakdown])


def test_two_names_of_one_model_share_a_grid_cell_and_are_verified(
    write_shards: Write, real_ihc: np.ndarray, tmp_path: Path
) -> None:
    plan = board_plan(write_shards(images=tiles(real_ihc)[:54]))
    folder, cache = str(tmp_path / "board"), EmbeddingCache(str(tmp_path / "cache"))
    cells = write_board(folder, plan, cache, seeds=(1, 2, 1))
    assert cells[0].cell == cells[2].cell != cells[1].cell
    found = verify_board(folder)
    assert (list(found.mismatches), list(found.cells)) == ([], cells)
    assert read_results(Path(merge_boards([folder, folder], str(tmp_path / "merged")).leaderboard)) == cells


def test_changed_digits_of_a_leaderboard_are_named_by_file_row_and_column(
    board: tuple[str, list[CellResult]],
) -> None:
    folder, cells = board
    path = Path(folder, "leaderboard.csv")
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    lines[2] = lines[2].replace(repr(cells[1].macro_f1), "0.987", 1)
    path.write_text("".join(lines), encoding="utf-8", newline="")
    found = verify_board(folder).mismatches
    assert {(m.file, m.column) for m in found} == {("leaderboard.csv", ""), ("leaderboard.csv", "macro_f1")}
    digests = Path(folder, "sha256.json")
    tree = json.loads(digests.read_text()) | {
        "leaderboard.csv": hashlib.sha256(path.read_bytes()).hexdigest()
    }
    digests.write_text(json.dumps(tree, indent=1) + "\n")
    found = verify_board(folder).mismatches
    assert {(m.file, m.column) for m in found} == {("leaderboard.csv", "macro_f1"), ("sha256.json", "")}
    assert any("row 2 (m seed 2 on toy (default))" in m.row for m in found)


def test_changed_predictions_that_pass_their_digests_are_named_by_the_figures_that_they_give(
    board: tuple[str, list[CellResult]],
) -> None:
    """A person who changes a prediction and writes all digests anew still has figures that do not follow."""
    folder, cells = board
    place = Path(cell_folder(folder, cells[0].cell))
    table = read_predictions(folder, cells[0])
    column = table["predicted"].to_pylist()
    column[0] = next(name for name in CLASSES if name != column[0])
    table = table.set_column(table.column_names.index("predicted"), "predicted", pa.array(column))
    pq.write_table(table, place / "predictions.parquet", compression="zstd")
    assert [m.file for m in verify_board(folder).mismatches] == [f"cells/{cells[0].cell}"]
    tree = json.loads((place / "cell.json").read_text())
    tree["predictions_sha256"] = hashlib.sha256((place / "predictions.parquet").read_bytes()).hexdigest()
    tree["sha256"] = digest({key: value for key, value in tree.items() if key != "sha256"})
    (place / "cell.json").write_text(json.dumps(tree))
    found = verify_board(folder).mismatches
    assert {"accuracy", "confusion"} <= {m.column for m in found if m.file.endswith("cell.json")}
    assert {"accuracy", "confusion"} <= {m.column for m in found if m.file == "leaderboard.csv"}


@pytest.mark.parametrize("name", ["leaderboard.parquet", "predictions.parquet", "failures.json"])
def test_a_file_that_is_gone_or_cut_is_named(board: tuple[str, list[CellResult]], name: str) -> None:
    folder, _ = board
    path = Path(folder, name)
    whole = path.read_bytes()
    path.write_bytes(whole[:-2])
    assert {m.file for m in verify_board(folder).mismatches} == {name}
    path.unlink()
    assert {m.file for m in verify_board(folder).mismatches} == {name}


def test_the_command_prints_what_is_different_and_exits_with_1(board: tuple[str, list[CellResult]]) -> None:
    folder, cells = board
    run = CliRunner().invoke(app, ["report", folder, "--verify"])
    assert run.exit_code == 0, run.output
    assert not Path(folder, "report").exists()
    path = Path(cell_folder(folder, cells[0].cell), "predictions.parquet")
    path.write_bytes(path.read_bytes()[:-1])
    run = CliRunner().invoke(app, ["report", folder, "--verify"])
    assert run.exit_code == 1
    assert cells[0].cell in run.output.replace("\n", "")


def test_pages_are_compared_with_the_board_too(board: tuple[str, list[CellResult]]) -> None:
    folder, _ = board
    assert CliRunner().invoke(app, ["report", folder, "--baseline", "baseline:majority"]).exit_code == 0
    pages = verify_pages(Path(folder), Path(folder, "report"))
    assert (pages.mismatches, pages.notes) == ([], [])
    assert {"index.html", "leaderboard.md", "differences.csv"} <= {*pages.files}
    page = Path(folder, "report/leaderboard.md")
    page.write_text(page.read_text(encoding="utf-8").replace("majority", "minority", 1), encoding="utf-8")
    table = Path(folder, "report/differences.csv")
    lines = table.read_text(encoding="utf-8").splitlines(keepends=True)
    table.write_text("".join([lines[0], lines[1].replace("toy", "boy"), *lines[2:]]), encoding="utf-8")
    run = CliRunner().invoke(app, ["report", folder, "--verify"])
    assert run.exit_code == 1
    found = verify_pages(Path(folder), Path(folder, "report")).mismatches
    in_table = [(m.file, m.row, m.column) for m in found if m.column]
    assert in_table == [("report/differences.csv", "row 1", "dataset")]
    assert "report/leaderboard.md" in {m.file for m in found}


def test_of_pages_of_another_version_the_values_are_compared_and_the_version_is_named(
    board: tuple[str, list[CellResult]],
) -> None:
    folder, _ = board
    assert CliRunner().invoke(app, ["report", folder, "--baseline", "baseline:majority"]).exit_code == 0
    page, table = (Path(folder, "report", name) for name in ("index.html", "differences.csv"))
    text, values = page.read_text(encoding="utf-8"), table.read_text(encoding="utf-8")
    assert text.count(writer()) == 1
    for other in ("his2lip 0.0.1+abc.def", None):
        changed = text.replace(writer(), other) if other else text.replace('name="generator"', 'name="x"')
        page.write_text(changed.replace("majority", "minority"), encoding="utf-8")
        run = CliRunner().invoke(app, ["report", folder, "--verify"])
        assert run.exit_code == 0, run.output
        said = " ".join(run.output.split())
        assert (other or "does not name itself") in said
        assert writer() in said
    head, first, *rest = values.splitlines(keepends=True)
    table.write_text("".join([head, first.replace("toy", "boy"), *rest]), encoding="utf-8")
    (found,) = verify_pages(Path(folder), Path(folder, "report")).mismatches
    assert (found.file, found.row, found.column) == ("report/differences.csv", "row 1", "dataset")


def test_samples_have_a_line_for_each_unit_from_which_the_figures_follow(
    board: tuple[str, list[CellResult]], tmp_path: Path
) -> None:
    folder, cells = board
    run = CliRunner().invoke(app, ["report", folder, "--samples", str(tmp_path / "samples")])
    assert run.exit_code == 0, run.output
    files = sorted((tmp_path / "samples").iterdir())
    assert len(files) == len(cells)
    first = next(f for f in files if f.name == f"m_seed_1.toy.default.{cells[0].cell[:8]}.jsonl")
    lines = [json.loads(line) for line in first.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == cells[0].n
    assert np.mean([line["right"] for line in lines]) == pytest.approx(cells[0].accuracy)
    for line in lines:
        assert line["predicted"] == max(line["scores"], key=line["scores"].get)
        assert (line["split"], len(line["rows"]), line["prompt"][:8]) == ("test", 1, line["predicted"])
    assert len({(line["patch_id"], *line["rows"]) for line in lines}) == len(lines)


def test_a_folder_without_a_board_cannot_be_verified(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        verify_board(str(tmp_path))
    assert caught.value.key == "board.json"


def edit(folder: str, **changes: object) -> None:
    """Changes the first row of a board as a person would who writes its files and digests anew."""
    rows = read_results(Path(folder, "leaderboard.csv"))
    write_leaderboard(folder, [rows[0].model_copy(update=changes), *rows[1:]], [])


@pytest.mark.parametrize(
    ("field", "value"), [("in_domain", True), ("overlap_units", 3), ("generated", True), ("role", "select")]
)
def test_what_decides_whether_a_row_is_zero_shot_is_named_where_it_is_not_as_it_was_scored(
    board: tuple[str, list[CellResult]], field: str, value: object
) -> None:
    folder, _ = board
    assert list(verify_board(folder).notes) == []
    edit(folder, **{field: value})
    found = verify_board(folder)
    assert list(found.mismatches) == [], "it may have changed since"
    (note,) = found.notes
    assert note.startswith("not checked")
    assert field in note
    assert "m seed 1 on toy (default)" in note


def test_a_probe_under_the_name_of_a_model_is_named(board: tuple[str, list[CellResult]]) -> None:
    folder, _ = board
    edit(folder, model="probe:knn of m")
    assert ("board.json", "model") in {(m.file, m.column) for m in verify_board(folder).mismatches}
    edit(folder, model="another")
    assert "board.json" not in {m.file for m in verify_board(folder).mismatches}


PARTS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats()
    | st.sampled_from(["", "toy", "default", "../x", "\0", "\ud800", "m"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["model", "dataset", "cell", "x"]), inner, max_size=2)
    ),
    max_leaves=4,
)


def test_a_board_of_another_shape_is_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fields that name a row are missing, its rows are none, or it is no mapping."""
    (tmp_path / "leaderboard.csv").touch()
    (tmp_path / "sha256.json").write_text("{}")
    for text in (
        '{"rows": [{"cell": "a"}], "failed": []}',
        '{"rows": null, "failed": []}',
        '{"rows": [], "failed": [{}]}',
        "[]",
    ):
        (tmp_path / "board.json").write_text(text)
        for use in ([str(tmp_path), "--verify"], [str(tmp_path)] * 2 + ["--out", str(tmp_path / "out")]):
            monkeypatch.setattr("sys.argv", ["his2lip", "report", *use])
            with pytest.raises(SystemExit) as end:
                main()
            said = capsys.readouterr().err
            assert (end.value.code, len(said.strip().splitlines())) == (2, 1), (text, said)
            assert "board.json cannot be read" in said


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_change_of_board_json_is_named_or_refused(
    board: tuple[str, list[CellResult]], data: st.DataObject
) -> None:
    """Verification and merging compute from it, or raise ConfigError; they never end by another error."""
    path = Path(board[0], "board.json")
    whole = path.read_text(encoding="utf-8")
    tree = json.loads(whole)
    inner = data.draw(st.sampled_from([tree, tree, *tree["rows"]]))
    key = data.draw(st.sampled_from([*inner, "other"]))
    how = data.draw(st.sampled_from(["value", "gone", "of another row"]))
    if how == "gone":
        inner.pop(key, None)
    else:
        values = st.sampled_from(tree["rows"]).map(lambda row: row.get(key)) if how != "value" else PARTS
        inner[key] = data.draw(values)
    try:
        path.write_text(json.dumps(tree, indent=1, ensure_ascii=True) + "\n", encoding="utf-8")
        for use in (verify_board, lambda folder: merge_boards([folder], f"{folder} merged")):
            with suppress(ConfigError):
                use(board[0])
    finally:
        path.write_text(whole, encoding="utf-8")
