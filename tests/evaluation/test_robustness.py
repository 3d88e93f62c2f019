"""Robustness in the grid, on real tiles with a real model: drops, intervals, cache, curves and errors."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
from browser import browser_page
from PIL import Image
from test_retrieval_task import Ward, cell_of, ward
from typer.testing import CliRunner

from his2lip.cli.app import app
from his2lip.errors import ConfigError
from his2lip.evaluation.cell_files import cell_folder, read_tree, write_cell
from his2lip.evaluation.config import BenchmarkConfig
from his2lip.evaluation.leaderboard import Frame, write_leaderboard
from his2lip.evaluation.merge import merge_boards
from his2lip.evaluation.metrics import METRICS, Predictions
from his2lip.evaluation.perturbations import LEVELS, PERTURBATIONS, Perturbation
from his2lip.evaluation.results import CellFailure
from his2lip.evaluation.task_results import TaskCell, read_tasks, write_tasks
from his2lip.evaluation.tasks import read_evidence
from his2lip.evaluation.verify import verify_board
from his2lip.report import draw_robustness, write_pages
from his2lip.report.errors import errors
from his2lip.report.images import _curves

__all__ = ["ward"]

FEW = {"JPEG": [50, 5], "stain-hue": [20]}


def config_of(ward: Ward, places: dict[str, object] | None = None, **section: object) -> BenchmarkConfig:
    return ward.config(retrieval=None, robustness={"perturbations": FEW} | section, **(places or {}))


def predictions(ward: Ward, config: BenchmarkConfig, cell: TaskCell, kind: str, level: str) -> Predictions:
    table = read_evidence(config.folder, cell)
    own = table.filter(pc.and_(pc.equal(table["perturbation"], kind), pc.equal(table["level"], level)))
    classes = ("Stroma", "Tumor")
    labels, predicted = (
        np.array([classes.index(name) for name in own[column].to_pylist()])
        for column in ("label", "predicted")
    )
    return Predictions(labels, predicted, classes)


def test_drops_follow_from_the_stored_predictions_with_intervals_by_case(ward: Ward) -> None:
    config = config_of(ward)
    outcomes = ward.score(config)
    assert [o.cell.model for o in outcomes] == ["tiny"], "no baseline takes part"
    cell = cell_of(outcomes[0])
    settings = [tuple(row.setting.values()) for row in cell.rows]
    assert settings == [("none", "0"), ("JPEG", "50"), ("JPEG", "5"), ("stain-hue", "20")]
    metric = METRICS["macro_f1"]
    before = metric.compute(predictions(ward, config, cell, "none", "0"))
    for row, setting in zip(cell.rows, settings, strict=True):
        value = metric.compute(predictions(ward, config, cell, *setting))
        assert row.figures["macro_f1"].value == value
        assert (row.sizes["units"], row.clusters, row.cluster_kind) == (48, 8, "case")
        if setting[0] != "none":
            assert row.figures["drop"].value == before - value
            drop = row.figures["relative_drop"]
            assert drop.value == 1 - value / before
            assert drop.lo is None or drop.lo <= drop.value <= drop.hi
    assert any(row.figures["macro_f1"].lo is not None for row in cell.rows)
    assert any(r.figures["drop"].value != 0 for r in cell.rows[1:]), "something changes"


def test_each_level_is_embedded_once_and_never_taken_from_another(ward: Ward, tmp_path: Path) -> None:
    places: dict[str, object] = {"cache": str(tmp_path / "cache"), "storage": str(tmp_path)}
    first = ward.score(config_of(ward, places, most_units=12))[0]
    assert first.counts.images == 12 * 4
    used = {cell_of(first).encoder, *cell_of(first).further_encoders}
    assert used == {path.name for path in (tmp_path / "cache/images").iterdir()}, "what gc keeps"
    assert ward.score(config_of(ward, places, most_units=12))[0].reused
    levels = FEW | {"blur": [2]}
    more = ward.score(config_of(ward, places, perturbations=levels, most_units=12))[0]
    assert (more.reused, more.counts.images) == (False, 12), "one further level"
    assert cell_of(more).rows[:4] == cell_of(first).rows[:4]
    assert cell_of(more).rows[0].sizes["units"] == 12


def test_the_most_confident_errors_have_thumbnails_of_their_images(ward: Ward) -> None:
    config = config_of(ward, errors=3)
    cell = cell_of(ward.score(config)[0])
    found, count = errors(Path(config.folder), cell)
    table = read_evidence(config.folder, cell).to_pylist()
    wrong = [r for r in table if r["perturbation"] == "none" and r["label"] != r["predicted"]]
    assert count == len(wrong) > 3
    largest = sorted(wrong, key=lambda r: -r["margin"])[:3]
    assert [e.patch_id for e in found] == [r["patch_id"] for r in largest]
    assert all(e.margin >= 0 for e in found)
    with Image.open(io.BytesIO(base64.b64decode(found[0].thumbnail))) as picture:
        assert picture.size == (64, 64)
    assert errors(Path(config.folder), cell_of(ward.score(config_of(ward, errors=0))[0]))[0] == []


def test_page_curves_errors_and_images_are_made_from_the_cells(ward: Ward) -> None:
    """The pages open in a browser without network; thumbnails are only on the page of errors."""
    config = config_of(ward)
    cells = [cell_of(o) for o in ward.score(config)]
    write_leaderboard(config.folder, [], [], config)
    write_tasks(config.folder, cells)
    page = write_pages(Path(config.folder, "leaderboard.csv"), ward.folder / "report")
    text = page.read_text()
    assert "ward, JPEG: macro F1" in text
    assert f">{100 * cells[0].rows[1].figures['macro_f1'].value:.2f}<" in text
    assert "image/jpeg;base64,/9j" not in text
    gallery = page.with_name("errors.html").read_text()
    assert gallery.count("data:image/jpeg;base64,") == len(errors(Path(config.folder), cells[0])[0]) > 0
    images = draw_robustness(cells, ward.folder / "plots")
    hidden = _curves("ward", [cell.model_copy(update={"model": f"_{cell.model}"}) for cell in cells])
    legend = hidden.axes[0].get_legend()
    assert legend
    assert [text.get_text() for text in legend.get_texts()] == [f"_{c.model}" for c in cells]
    with Image.open(images[0]) as drawn:
        assert drawn.size[0] > 300
    assert [image.name for image in images] == ["robustness_ward.png"]
    write_tasks(config.folder, [])
    write_pages(Path(config.folder, "leaderboard.csv"), ward.folder / "report")
    assert not page.with_name("errors.html").exists()


def test_a_forged_figure_of_a_task_is_found_though_its_record_is_sealed_again(
    ward: Ward, tmp_path: Path
) -> None:
    config = config_of(ward, {"storage": str(tmp_path)}, most_units=12)
    both = config.model_copy(update={"retrieval": ward.config().retrieval})
    cells = [cell_of(o) for o in ward.score(both)]
    write_leaderboard(config.folder, [], [], config)
    write_tasks(config.folder, cells)
    assert verify_board(config.folder).mismatches == []
    for cell, name in zip(cells, ("recall_at_1", "drop"), strict=False):
        place = cell_folder(config.folder, cell.cell)
        tree, evidence = read_tree(place), read_evidence(config.folder, cell)
        assert tree is not None
        honest = [dict(row) for row in tree["record"]["rows"]]
        row = next(row for row in tree["record"]["rows"] if name in row["figures"])
        row["figures"] = row["figures"] | {
            name: row["figures"][name] | {"value": 0.987, "lo": None, "hi": None}
        }
        forged = {key: value for key, value in tree.items() if key != "sha256"}
        write_cell(place, forged, evidence, name="evidence.parquet", key="evidence")
        record = TaskCell.model_validate(tree["record"])
        write_tasks(config.folder, [record if c.cell == cell.cell else c for c in cells])
        (found,) = verify_board(config.folder).mismatches
        assert (found.file, found.column.rpartition(", ")[2]) == (f"cells/{cell.cell}/cell.json", name)
        tree["record"]["rows"] = honest
        write_cell(place, forged, evidence, name="evidence.parquet", key="evidence")
    write_tasks(config.folder, cells)
    assert verify_board(config.folder).mismatches == []


def test_figures_that_cannot_be_computed_again_are_named(ward: Ward, tmp_path: Path) -> None:
    """Evidence of an earlier version does not name all classes."""
    config = config_of(ward, {"storage": str(tmp_path)}, most_units=12)
    cells = [cell_of(o) for o in ward.score(config)]
    write_leaderboard(config.folder, [], [], config)
    write_tasks(config.folder, cells)
    place = cell_folder(config.folder, cells[0].cell)
    tree, evidence = read_tree(place), read_evidence(config.folder, cells[0])
    assert tree is not None
    tree = {key: value for key, value in tree.items() if key != "sha256"}
    earlier = evidence.replace_schema_metadata(None)
    write_cell(place, tree, earlier, name="evidence.parquet", key="evidence")
    found = verify_board(config.folder)
    assert found.mismatches == []
    (note,) = found.notes
    assert note.startswith("not computed again: ")
    assert "tiny on ward (robustness)" in note


def test_boards_of_two_machines_have_the_curves_and_errors_of_both(ward: Ward, tmp_path: Path) -> None:
    def board(
        machine: str, seed: int, failed: Sequence[CellFailure] = (), **section: object
    ) -> tuple[str, list[TaskCell]]:
        places: dict[str, object] = {
            "cache": str(tmp_path / f"cache {seed}"),
            "storage": str(tmp_path / machine),
        }
        models: dict[str, object] = {"models": [{"name": f"seed {seed}", "path": "tiny"}], "seed": seed}
        config = config_of(ward, places | models, most_units=12, **section)
        cells = [cell_of(o) for o in ward.score(config)]
        write_leaderboard(config.folder, [], failed, config)
        write_tasks(config.folder, cells)
        return config.folder, cells

    scored_in_a = CellFailure(model="seed 0", dataset="ward", protocol="robustness", reason="no memory")
    in_both = scored_in_a.model_copy(update={"model": "seed 2", "trace": "a"})
    failed = [scored_in_a, in_both.model_copy(update={"trace": "b"})]
    (a, of_a), (b, of_b) = board("a", 0, [in_both]), board("b", 1, failed)
    out = tmp_path / "merged"
    run = CliRunner().invoke(app, ["report", a, b, "--out", str(out)])
    assert run.exit_code == 0, run.output
    assert read_tasks(out) == [*of_a, *of_b]
    assert [f.model for f in Frame.read(str(out)).failed] == ["seed 2"]
    assert of_a[0].rows != of_b[0].rows
    assert verify_board(str(out)).mismatches == []
    page, gallery = ((out / "report" / name).read_text() for name in ("index.html", "errors.html"))
    assert "ward, JPEG: macro F1" in page
    assert all(model in text for model in ("seed 0", "seed 1") for text in (page, gallery))
    other, _ = board("c", 1, errors=1)
    with pytest.raises(ConfigError) as refused:
        merge_boards([b, other], str(tmp_path / "refused"))
    assert refused.value.key == "settings_sha256"
    assert not (tmp_path / "refused").exists()


@pytest.mark.slow
def test_curves_and_errors_are_seen_in_a_browser(ward: Ward) -> None:
    config = config_of(ward, errors=4)
    cells = [cell_of(o) for o in ward.score(config)]
    write_leaderboard(config.folder, [], [], config)
    write_tasks(config.folder, cells)
    path = write_pages(Path(config.folder, "leaderboard.csv"), ward.folder / "report")
    with browser_page() as page:
        page.goto(path.as_uri())
        page.locator("#plots").scroll_into_view_if_needed()
        page.wait_for_selector("#plots .scatterlayer .point")
        assert page.locator("#plots .scatterlayer .trace").count() == len(FEW)
        assert page.evaluate("document.documentElement.scrollWidth") <= 1280
        page.locator("#robustness a[href='errors.html']").click()
        page.wait_for_selector("img")
        sizes = page.eval_on_selector_all("img", "all => all.map(one => one.naturalWidth)")
        assert sizes == [64] * len(sizes)
        assert len(sizes) == 4


@pytest.mark.parametrize("levels", [{"JPEG": [0]}, {"blur": [2, 2]}, {"noise": [1]}, {"AEC": [2]}])
def test_levels_that_do_not_exist_are_refused(ward: Ward, levels: dict[str, list[float]]) -> None:
    with pytest.raises(ConfigError) as refused:
        config_of(ward, perturbations=levels)
    assert str(refused.value.key).startswith("robustness.perturbations")


def test_the_default_has_every_kind_and_a_name_for_each_level(ward: Ward) -> None:
    section = ward.config(retrieval=None, robustness={}).robustness
    assert section is not None
    assert {k: tuple(v) for k, v in section.perturbations.items()} == LEVELS
    assert list(section.perturbations) == list(PERTURBATIONS)
    keys = [str(Perturbation(kind, level).key) for kind, levels in LEVELS.items() for level in levels]
    assert len(set(keys)) == len(keys)
