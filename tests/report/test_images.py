"""Plots as images: which are drawn, and that they can be opened."""

from __future__ import annotations

from pathlib import Path

from cell_results import cell_result
from PIL import Image

from his2lip.evaluation.results import Compared
from his2lip.report.images import draw_board, draw_model


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


def test_a_model_is_drawn_with_one_matrix_per_dataset(tmp_path: Path) -> None:
    cells = [cell_result(dataset=name) for name in ("hnscc", "bci", "mist", "acrobat")]
    other = cell_result(model="other")
    (four,) = draw_model([*cells, other], "CLIP", tmp_path / "four")
    (one,) = draw_model([*cells, other], "other", tmp_path / "one")
    with Image.open(four) as many, Image.open(one) as single:
        assert many.width > 2 * single.width, "three in a row"
        assert many.height > 1.5 * single.height
