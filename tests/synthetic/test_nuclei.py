"""Generated patches around nuclei: every case has its own scanner, scale and stain, and captions are true."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from his2lip.data.images.codec import decode
from his2lip.data.shards.reader import open_shards
from his2lip.errors import DatasetError
from his2lip.synthetic.rows import TwinRow, pixels
from his2lip.synthetic.twins import twin_names, twin_rows, write_twin

SCALE = 0.02  # three cases to train on, one to select by and one to report


@pytest.fixture(scope="module")
def rows() -> list[TwinRow]:
    return twin_rows("nuclei", scale=SCALE)


def test_every_case_has_its_own_scanner_scale_and_stain(rows: list[TwinRow]) -> None:
    cases = {row.case: row for row in rows}
    assert len(cases) == 5
    assert len({row.scanner.white for row in cases.values() if row.scanner}) == 5
    assert len({row.mpp for row in cases.values()}) == 5
    assert len({dict(row.staining)["chromogen"] for row in cases.values()}) == 5
    for case, first in cases.items():
        own = [row for row in rows if row.case == case]
        assert {row.scanner for row in own} == {first.scanner}
        assert {row.split for row in own} == {first.split}, "a case is in one split"


def test_hues_of_the_select_split_are_further_from_the_published_ones() -> None:
    many = twin_rows("nuclei", scale=1.0)
    away: dict[str, list[float]] = {"train": [], "select": [], "test": []}
    for row in {row.case: row for row in many}.values():
        away[row.split].append(float(np.abs(dict(row.staining)["tilts"]).mean()))
    assert np.mean(away["select"]) > 1.3 * np.mean(away["train"])


def test_the_nucleus_in_the_middle_is_as_brown_as_the_class_says(rows: list[TwinRow]) -> None:
    def middle(row: TwinRow) -> float:
        part = pixels(row)[28:36, 28:36].astype(float)
        return float(part[..., 0].mean() - part[..., 2].mean())

    for case in {row.case for row in rows}:
        of_case = [row for row in rows if row.case == case]
        brown, blue = (
            np.mean([middle(row) for row in of_case if row.columns["label"] == f"{colour}-nucleus"])
            for colour in ("brown", "blue")
        )
        assert brown > blue + 15


def test_it_is_written_as_a_dataset_to_train_on_and_is_none_of_the_twins(tmp_path: Path) -> None:
    info = write_twin("nuclei", tmp_path / "nuclei", scale=SCALE)
    assert info.generated
    rows = {split: sum(counts.values()) for split, counts in info.counts.items()}
    assert rows == {"train": 72, "select": 24, "test": 24}
    shards = open_shards(tmp_path / "nuclei")
    assert set(shards.table("train")["label"].to_pylist()) == {"brown-nucleus", "blue-nucleus", "no-tumour"}
    group = shards.row_groups("train")[0]
    assert decode(shards.read(group, ["image"])["image"][0].as_py()).shape == (64, 64, 3)
    assert "nuclei" not in twin_names()
    with pytest.raises(DatasetError) as refused:
        twin_rows("nucleii")
    assert "'nuclei'" in str(refused.value.fix)
