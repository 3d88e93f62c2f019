"""Plots as images: which are drawn, and that they can be opened."""

from __future__ import annotations

from pathlib import Path

from cell_results import cell_result
from PIL import Image

from his2lip.evaluation.results import Compared
from his2lip.evaluation.task_results import Estimate, TaskCell, TaskRow
from his2lip.report.images import draw_board, draw_model
from his2lip.report.task_images import draw_retrieval


def names(paths: list[Path]) -> list[str]:
    for path in paths:
        with Image.open(path) as image:
            image.verify()
    return [path.name for path in paths]


def test_a_board_is_drawn_with_what_it_has(tmp_path: Path) -> None:
    plain = [cell_result(model=model) for model in ("one", "two")]
    assert names(draw_board(plain, tmp_path)) == ["models_by_datasets.png"]
    found = Compared(top=False, detectable=None, difference=0.1)
    compared = [plain[0], plain[1].model_copy(update={"reference": "one", "compared": {"macro_f1": found}})]
    assert names(draw_board(compared, tmp_path)) == ["models_by_datasets.png", "differences.png"]
    band = {"prompt_f1_median": 0.4, "prompt_f1_lo": 0.3, "prompt_f1_hi": 0.5}
    banded = [cell.model_copy(update=band) for cell in plain]
    assert names(draw_board(banded, tmp_path)) == ["models_by_datasets.png", "prompt_bands.png"]
    left = {path.name for path in tmp_path.iterdir()}
    assert "differences.png" not in left, "of the board before"
    assert draw_board([], tmp_path) == []


def test_dollar_signs_in_names_are_no_formula(tmp_path: Path) -> None:
    names_of_models = ["$\\frac{$", "a$b$c"]
    classes = ["$\\frac{$", "b"]
    cells = [cell_result(model=name, classes=classes) for name in names_of_models]
    assert names(draw_board(cells, tmp_path)) == ["models_by_datasets.png"]
    assert names(draw_model(cells, cells[0].model, tmp_path)) == ["confusion.png"]
    assert names(draw_retrieval([retrieval(name, 0.5) for name in names_of_models], tmp_path))


def test_a_model_is_drawn_with_one_matrix_per_dataset(tmp_path: Path) -> None:
    cells = [cell_result(dataset=name) for name in ("hnscc", "bci", "mist", "acrobat")]
    other = cell_result(model="other")
    (four,) = draw_model([*cells, other], "CLIP", tmp_path / "four")
    (one,) = draw_model([*cells, other], "other", tmp_path / "one")
    with Image.open(four) as many, Image.open(one) as single:
        assert many.width > 2 * single.width, "three in a row"
        assert many.height > 1.5 * single.height


def retrieval(model: str, recall: float) -> TaskCell:
    """The record of retrieval on one dataset in two settings."""
    found = Estimate(value=recall, lo=recall - 0.1, hi=recall + 0.1)
    rows = [
        TaskRow(
            setting={"direction": direction, "relevance": "tissue"}, sizes={"queries": 40, "gallery": 90},
            clusters=6, cluster_kind="case", no_interval=None,
            figures=dict.fromkeys(("recall_at_1", "recall_at_5", "recall_at_10"), found)
            | {"recall_at_5_chance": Estimate(value=0.2)},
        )
        for direction in ("image-to-text", "text-to-image")
    ]  # fmt: skip
    return TaskCell(
        task="retrieval", model=model, dataset="mihic", generated=True, in_domain=False, overlap_units=None,
        overlap_images=None, overlap_cases=None, split="test", role="report", weights_sha256="w", encoder="e",
        split_sha256="s", images_sha256="i", settings_sha256="t", caveat=None, cell=model, rows=rows,
    )  # fmt: skip


def test_retrieval_is_drawn_with_one_panel_per_setting(tmp_path: Path) -> None:
    drawn = draw_retrieval([retrieval("one", 0.3), retrieval("two", 0.6)], tmp_path)
    assert names(drawn) == ["retrieval_mihic-generated.png"]
    assert draw_retrieval([], tmp_path) == []
    assert not list(tmp_path.iterdir()), "of the benchmark before"
