"""The record of a grid cell: equal after it is written and read, complete, and extended in one place."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pydantic
import pytest
from cell_results import cell_result
from hypothesis import given, settings
from hypothesis import strategies as st

from his2lip.errors import ConfigError
from his2lip.evaluation import results
from his2lip.evaluation.leaderboard import write_leaderboard
from his2lip.evaluation.metrics import METRICS, Counts, Predictions, measure, metric
from his2lip.evaluation.results import (
    CellResult,
    fields,
    figures,
    metric_fields,
    read_results,
    to_csv,
    to_tables,
)
from his2lip.report.pages import write_pages

fractions = st.floats(0, 1)
text = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1)
records = st.builds(
    cell_result,
    model=text,
    dataset=text,
    n=st.integers(1, 10**9),
    accuracy=fractions,
    macro_f1_lo=st.none() | fractions,
    quadratic_kappa=st.none() | st.floats(-1, 1),
    blend=st.none() | text,
    in_domain=st.booleans(),
    classes=st.lists(text),
    no_interval=st.none() | text,
    breakdown=st.dictionaries(
        text,
        st.dictionaries(text, st.fixed_dictionaries({"n": st.integers(0, 9), "accuracy": fractions})),
        max_size=2,
    ),
)


def write_parquet(path: Path, cells: list[CellResult]) -> None:
    pq.write_table(to_tables(cells)[1], path)


@settings(max_examples=15, deadline=None)
@given(st.lists(records, max_size=3))
def test_records_are_equal_after_a_round_trip(
    tmp_path_factory: pytest.TempPathFactory, cells: list[CellResult]
) -> None:
    folder = tmp_path_factory.mktemp("tables")
    (folder / "leaderboard.csv").write_text(to_csv(cells), encoding="utf-8", newline="")
    write_parquet(folder / "leaderboard.parquet", cells)
    assert read_results(folder / "leaderboard.csv") == cells
    assert read_results(folder / "leaderboard.parquet") == cells


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("change", ["unknown", "missing"])
def test_an_unknown_or_missing_column_is_refused_by_its_name(tmp_path: Path, kind: str, change: str) -> None:
    path = tmp_path / f"leaderboard.{kind}"
    table = to_tables([cell_result()])[1]
    table = table.drop_columns("ties") if change == "missing" else table.append_column("tyes", table["ties"])
    if kind == "parquet":
        pq.write_table(table, path)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, table.column_names)
            writer.writeheader()
            writer.writerows(table.to_pylist())
    with pytest.raises(ConfigError) as refused:
        read_results(path)
    assert refused.value.where == path
    assert refused.value.key == {"unknown": "tyes", "missing": "ties"}[change]


def test_a_value_of_another_type_is_refused_by_row_and_column(tmp_path: Path) -> None:
    path = tmp_path / "leaderboard.csv"
    path.write_text(to_csv([cell_result(), cell_result(n=77)]).replace(",77,", ",many,"))
    with pytest.raises(ConfigError) as refused:
        read_results(path)
    assert (refused.value.where, refused.value.key) == (f"{path}, row 2", "n")


@pytest.mark.parametrize("name", ["leaderboard.csv", "leaderboard.parquet"])
@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n", b"\xff\xfe\x00", None])
def test_a_file_that_is_not_a_leaderboard_is_refused(
    tmp_path: Path, name: str, content: bytes | None
) -> None:
    path = tmp_path / name
    header = to_csv([]).encode()
    path.write_bytes(header + b"CLIP,mist,default\n" if content is None else content)
    with pytest.raises(ConfigError) as refused:
        read_results(path)
    assert str(refused.value.where).startswith(str(path))


def test_every_metric_has_a_field_and_every_field_has_a_description() -> None:
    assert set(metric_fields()) == set(METRICS)
    assert all(field.description for field in fields().values())
    assert set(fields()) == set(CellResult.model_fields)


def test_a_metric_that_is_added_in_one_place_is_in_every_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    @metric("Error rate")
    def error_rate(counts: Counts) -> np.ndarray:
        """Share of the units whose predicted class is not the true one."""
        return 1 - counts.right.sum(axis=-1) / counts.total

    class Extended(CellResult):
        error_rate: float

    try:
        monkeypatch.setattr(results, "CellResult", Extended)
        found = measure(Predictions(np.array([0, 1, 1, 1]), np.array([0, 0, 1, 1]), ["a", "b"]))
        assert found["error_rate"] == 0.25
        cells = [cell_result(**found, n=4)]
        assert figures(cells[0])["error_rate"] == 0.25, "logged to MLflow"
        (tmp_path / "leaderboard.csv").write_text(to_csv(cells))
        write_parquet(tmp_path / "leaderboard.parquet", cells)
        with (tmp_path / "leaderboard.csv").open(newline="") as file:
            assert [row["error_rate"] for row in csv.DictReader(file)] == ["0.25"]
        for name in ("leaderboard.csv", "leaderboard.parquet"):
            assert read_results(tmp_path / name) == cells
        page = write_pages(tmp_path / "leaderboard.csv", tmp_path / "pages").read_text()
        assert "<h3>Error rate, %</h3>" in page
        assert ">25.00</a>" in page
    finally:
        del METRICS["error_rate"]


def test_a_metric_without_a_field_is_refused() -> None:
    with pytest.raises(pydantic.ValidationError) as refused:
        cell_result(forgotten=0.5)
    assert [error["loc"] for error in refused.value.errors()] == [("forgotten",)]


def test_figures_are_the_metrics_and_interval_limits_that_have_values() -> None:
    cell = cell_result(macro_f1_lo=0.3, macro_f1_hi=0.5, published_f1=0.2)
    known = {"accuracy", "macro_f1", "balanced_accuracy", "chance_corrected", "kappa", "coverage"}
    assert set(figures(cell)) == known | {"macro_f1_lo", "macro_f1_hi"}


def test_the_grid_writes_the_records_as_csv_and_as_parquet(tmp_path: Path) -> None:
    path = Path(write_leaderboard(str(tmp_path), [], []))
    assert read_results(path) == read_results(path.with_suffix(".parquet")) == []
