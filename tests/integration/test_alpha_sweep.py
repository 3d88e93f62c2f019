"""A benchmark that sweeps alpha between a model and its tuned version: one row per alpha, and their curve."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from test_grid import write_dataset

from his2lip.cli.benchmark import write_report
from his2lip.config import resolved, validate
from his2lip.errors import ConfigError
from his2lip.evaluation.config import BenchmarkConfig
from his2lip.evaluation.grid import run_grid
from his2lip.models.checkpoint import save_checkpoint
from his2lip.models.load import load_model
from his2lip.models.provenance import read_meta
from his2lip.report.plots import PLOTS, frozen_to_tuned

ALPHAS = [0, 0.5, 1]


def benchmark(*models: object, **settings: object) -> BenchmarkConfig:
    return validate(BenchmarkConfig, {"models": list(models), "datasets": ["mihic"]} | settings)


def test_every_alpha_is_a_row_and_the_curve_is_in_the_report_of_the_benchmark(
    ray_local: None, tmp_path: Path, real_ihc: np.ndarray
) -> None:
    for name in ("alpha", "gamma"):
        write_dataset(tmp_path / "shards", name, real_ihc)
    tuned = save_checkpoint(tmp_path / "best", load_model("tiny", seed=1), meta={"data_digest": "another"})
    config = benchmark(
        {"blend": ["tiny", str(tuned)], "alphas": ALPHAS, "name": "mine"},
        datasets=["alpha", "gamma"], shards=f"{tmp_path}/shards", storage=f"{tmp_path}/runs",
        cache=f"{tmp_path}/cache", baselines=[],
    )  # fmt: skip
    result = run_grid(config)

    assert not result.failed
    cells = {(c.model, c.dataset): c for c in result.cells}
    assert {model for model, _ in cells} == {"mine alpha=0", "mine alpha=0.5", "mine alpha=1"}
    weights = {a: cells[f"mine alpha={a}", "alpha"].weights_sha256 for a in ALPHAS}
    assert weights[0] == load_model("tiny").tensor_digest()
    assert weights[1] == read_meta(tuned)["tensor_digest"]
    assert weights[0.5] not in (weights[0], weights[1])
    in_domain = {a: cells[f"mine alpha={a}", "alpha"].in_domain for a in ALPHAS}
    assert in_domain == {0: False, 0.5: True, 1: True}, "alpha 0 is the model that was not tuned"

    page = write_report(Path(config.folder))
    (title,) = [title for title, plot in PLOTS.items() if plot is frozen_to_tuned]
    assert f"<h3>{title}</h3>" in page.read_text()
    with page.with_name("alpha.csv").open(newline="") as file:
        curve = list(csv.DictReader(file))
    assert [(row["sweep"], float(row["alpha"])) for row in curve] == [("mine", a) for a in ALPHAS]
    for row, alpha in zip(curve, ALPHAS, strict=True):
        for column, dataset in (("in_domain", "alpha"), ("out_of_domain", "gamma")):
            wanted = cells[f"mine alpha={alpha}", dataset].chance_corrected
            assert float(row[f"{column}_chance_corrected"]) == wanted

    plain = benchmark({"name": "tuned", "path": str(tuned)}).models
    again = run_grid(config.model_copy(update={"models": [*config.models, *plain]}))
    assert (again.ran, again.counts.images) == (0, 0), "the same weights under another name are not run again"


def test_a_sweep_of_alpha_is_one_entry_that_becomes_one_model_per_alpha() -> None:
    tree = {
        "models": ["clip", {"blend": ["clip", "runs/train/first/best"], "alphas": [0.25]}],
        "datasets": ["a"],
    }
    config = validate(BenchmarkConfig, tree)
    clip, quarter = config.models
    assert (clip.name, clip.blend) == ("clip", None)
    assert (quarter.name, quarter.path) == ("first alpha=0.25", "runs/train/first/best")
    assert quarter.blend is not None
    assert (quarter.blend.sweep, quarter.blend.base, quarter.blend.alpha) == ("first", "clip", 0.25)
    assert validate(BenchmarkConfig, resolved(config)) == config


@pytest.mark.parametrize(
    ("entry", "key"),
    [
        ({"blend": ["clip"], "alphas": [0.5]}, "models.alphas"),
        ({"blend": ["clip", "a"], "alphas": []}, "models.alphas"),
        ({"blend": ["clip", "a"], "alphas": 0.5}, "models.alphas"),
        ({"blend": ["clip", "a"], "alphas": [0.5], "path": "b"}, "models.alphas"),
        ({"blend": ["clip", "a"], "alphas": [1.5]}, "models.0.blend.alpha"),
        ({"blend": ["clip", "a"], "alphas": [0.5, 0.5]}, "models"),
    ],
)
def test_an_invalid_sweep_of_alpha_is_refused_by_its_key(entry: dict, key: str) -> None:
    with pytest.raises(ConfigError) as refused:
        benchmark(entry)
    assert refused.value.key == key
