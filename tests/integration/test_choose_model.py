"""Choosing a model in MLflow's own pages: `his2lip ui`, its link, and a real browser on a real store."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import mlflow
import pytest
from browser import browser_page
from cell_results import cell_result
from loopback import on_loopback
from mlflow_stores import new_store

from his2lip.cli.benchmark import EXPERIMENT
from his2lip.cli.benchmark_record import record_benchmark
from his2lip.config import validate
from his2lip.evaluation import BenchmarkConfig, CellResult, Compared, GridResult
from his2lip.models.checkpoint import save_checkpoint
from his2lip.models.load import load_model
from his2lip.models.provenance import read_meta
from his2lip.report import MEAN
from his2lip.tracking import RUN_ID, Tracker
from his2lip.tracking.store_run import BENCHMARK_RUN, NOTE, TRAINING_RUN, WEIGHTS
from his2lip.tracking.table import KIND

if TYPE_CHECKING:
    from playwright.sync_api import Page

# Chance-corrected balanced accuracy and macro F1 on three datasets. The model with the best mean is neither
# the one that is written first nor the one with the best macro F1 on BCData.
FIGURES = {
    "first": ((0.10, 0.20, 0.30), (0.41, 0.42, 0.43)),
    "strongest": ((0.71, 0.52, 0.63), (0.81, 0.62, 0.73)),
    "specialist": ((0.05, 0.90, 0.02), (0.31, 0.9512345678, 0.33)),
    "baseline:chance": ((0.0, 0.0, 0.0), (0.33, 0.32, 0.33)),
}
DATASETS = ("hnscc", "bcdata", "acrobat")


@dataclass(frozen=True)
class Store:
    """A store with one training and a benchmark, and the link that `his2lip ui` printed."""

    tracker: Tracker
    link: str


def cells(weights: dict[str, str]) -> list[CellResult]:
    return [
        cell_result(
            model=model, dataset=dataset, weights_sha256=weights.get(model, model), chance_corrected=mean,
            macro_f1=f1, macro_f1_lo=f1 - 0.05, macro_f1_hi=f1 + 0.04, chance_corrected_lo=mean - 0.1,
            chance_corrected_hi=mean + 0.1, cell=f"{model} on {dataset}", confusion=[[4, 1], [2, 3]],
            prompt_f1_median=f1, prompt_f1_lo=f1 - 0.02, prompt_f1_hi=f1 + 0.02, reference="first",
            compared={"macro_f1": Compared(top=False, detectable=None, difference=f1 - scores[0])},
        )
        for model, (means, scores) in FIGURES.items()
        for dataset, mean, f1 in zip(DATASETS, means, scores, strict=True)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A SQLite store in which a training and a benchmark were recorded, served by `his2lip ui`."""
    folder = tmp_path_factory.mktemp("choose")
    uri = new_store(folder)
    tracker = Tracker.open(uri)
    best = save_checkpoint(
        folder / "train/strongest/best", load_model("tiny", seed=1), meta={"config": {"optim": {"lr": 1e-3}}}
    )
    meta = read_meta(best)
    with tracker.run("his2lip-train", "strongest", {}, tags={RUN_ID: "t"}, beside=folder) as run:
        run.checkpoint(best, "strongest", meta)
    models = [{"name": name, "path": str(best)} for name in FIGURES if not name.startswith("baseline")]
    tree = {"name": "zoo", "models": models, "datasets": list(DATASETS), "storage": str(folder)}
    config = validate(BenchmarkConfig, tree)
    result = GridResult(cells({"strongest": meta["tensor_digest"]}), [], "")
    with tracker.run(EXPERIMENT, "zoo", {}, tags={RUN_ID: "b"}, beside=folder) as run:
        record_benchmark(run, config, result, Path(config.folder))
    printed = folder / "ui.txt"
    command = [sys.executable, "-m", "his2lip", "ui", "--store", uri, "--no-browser"]
    with on_loopback(command, host=(), output=printed, env=os.environ | {"PYTHONUNBUFFERED": ""}) as url:
        (link,) = re.findall(rf"benchmark zoo.*({url}/\S+)", printed.read_text())
        yield Store(tracker, link)
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # the process's own default again


def test_scoring_one_dataset_again_leaves_the_runs_of_the_others_and_the_means_over_all(
    tmp_path: Path,
) -> None:
    tracker = Tracker.open(new_store(tmp_path))
    tree = {"name": "zoo", "models": [], "datasets": list(DATASETS), "storage": str(tmp_path)}
    config = validate(BenchmarkConfig, tree)
    every = cells({})
    whole = GridResult(every, [], "")
    scored = [cell for cell in every if cell.dataset == "bcdata"]
    part = GridResult(scored, [], "", kept=[cell for cell in every if cell.dataset != "bcdata"])
    found = []
    for result in (whole, part):
        with tracker.run(EXPERIMENT, "zoo", {}, tags={RUN_ID: "b"}, beside=tmp_path) as run:
            record_benchmark(run, config, result, Path(config.folder))
        runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
        found.append({run.info.run_id: run.data.metrics for run in runs})
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # the process's own default again
    assert len(found[0]) > len(every)
    assert found[0] == found[1]


@dataclass
class Table:
    """MLflow's table of runs in a browser, and how often its user has clicked."""

    page: Page
    clicks: int = 0

    def sort_by(self, metric: str) -> None:
        """Sorts as a user does who does not see the column: through the list of columns."""
        for control in ("sort-select-dropdown", f"sort-select-{metric}"):
            self.page.get_by_test_id(control).click()
            self.clicks += 1

    def rows(self, *, first: str) -> list[str]:
        """The names of the runs from top to bottom, once `first` is the first."""
        pinned = self.page.locator(".ag-pinned-left-cols-container [role=row]")
        pinned.and_(self.page.locator("[row-index='0']")).get_by_text(first, exact=True).wait_for()
        rows = {int(row.get_attribute("row-index") or 0): row for row in pinned.all()}
        return [rows[i].get_by_role("link").first.inner_text() for i in sorted(rows)]


def by_figure(figures: dict[str, float]) -> list[str]:
    return sorted(figures, key=lambda model: -figures[model])


def test_the_link_of_ui_shows_the_best_model_first_and_two_clicks_sort_by_a_dataset(store: Store) -> None:
    on_mean = by_figure({model: fmean(means) for model, (means, _) in FIGURES.items()})
    on_bcdata = by_figure({model: scores[1] for model, (_, scores) in FIGURES.items()})
    with browser_page(width=1500) as page:
        page.goto(store.link)
        table = Table(page)
        assert table.rows(first="strongest") == on_mean, "the models alone, sorted by their mean"
        assert page.get_by_text("0.5747 to 0.6653; 3 datasets").is_visible(), "of the best one"
        table.sort_by("bcdata/macro_f1")
        assert table.rows(first="specialist") == on_bcdata
        table.sort_by(MEAN)
        assert table.rows(first="strongest") == on_mean
        assert table.clicks == 4, "two for each column"
        page.get_by_role("link", name="strongest").first.click()
        page.get_by_role("link", name="training run").click()
        page.get_by_text("optim.lr").wait_for()


def test_a_model_run_its_training_run_and_its_logged_models_name_each_other(store: Store) -> None:
    client = store.tracker.client
    (benchmark,) = (e for e in client.search_experiments() if e.name == EXPERIMENT)
    runs = client.search_runs([benchmark.experiment_id], f"tags.`{KIND}` = 'model'")
    found = {run.info.run_name: run for run in runs}
    assert found.keys() == FIGURES.keys()
    strongest = client.get_run(found["strongest"].info.run_id)  # with its inputs
    training = client.get_run(strongest.data.tags[TRAINING_RUN])
    assert training.info.run_name == "strongest"
    assert training.data.tags[BENCHMARK_RUN] == strongest.info.run_id
    inputs = [client.get_logged_model(model.model_id) for model in strongest.inputs.model_inputs]
    assert {model.source_run_id for model in inputs} >= {training.info.run_id}
    for model in inputs:
        assert model.tags[WEIGHTS] == strongest.data.params["weights_sha256"]
        assert model.tags[BENCHMARK_RUN] == strongest.info.run_id
        assert {m.run_id for m in model.metrics if m.key == MEAN} == {strongest.info.run_id}
    assert TRAINING_RUN not in found["first"].data.tags, "its weights were not trained here"


def test_a_model_run_has_rounded_figures_with_their_base_and_the_parameters_of_its_training(
    store: Store,
) -> None:
    client = store.tracker.client
    (benchmark,) = (e for e in client.search_experiments() if e.name == EXPERIMENT)
    (run,) = client.search_runs([benchmark.experiment_id], "attributes.run_name = 'specialist'")
    shown = {key: run.data.metrics[f"bcdata/{key}"] for key in ("macro_f1", "macro_f1_lo", "n", "clusters")}
    assert shown == {"macro_f1": 0.9512, "macro_f1_lo": 0.9012, "n": 10, "clusters": 5}
    assert run.data.params["bcdata/macro_f1/interval"] == "0.9012 to 0.9912; n = 10, 5 cases"
    assert run.data.params["optim.lr"] == "0.001"
    assert Path(run.data.params["model_path"]).is_dir()
    assert "| bcdata | 0.9512 | 0.9012 to 0.9912; n = 10, 5 cases |" in run.data.tags[NOTE]


def test_the_runs_have_their_plots_as_images(store: Store) -> None:
    client = store.tracker.client
    (benchmark,) = (e for e in client.search_experiments() if e.name == EXPERIMENT)

    def images(run_name: str) -> set[str]:
        (run,) = client.search_runs([benchmark.experiment_id], f"attributes.run_name = '{run_name}'")
        return {Path(file.path).name for file in client.list_artifacts(run.info.run_id, "plots")}

    assert images("zoo") == {"models_by_datasets.png", "differences.png", "prompt_bands.png"}
    assert images("specialist") == {"confusion.png"}
