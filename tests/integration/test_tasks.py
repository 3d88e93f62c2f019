"""Retrieval and robustness as a user runs them: Ray, MLflow, the board's files, and a second call."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from his2lip.cli.benchmark import run_benchmark
from his2lip.config import validate
from his2lip.data.captions import CaptionBank
from his2lip.evaluation.config import BenchmarkConfig
from his2lip.evaluation.task_results import read_tasks
from his2lip.synthetic import write_twin
from his2lip.taxonomy import TISSUES


@pytest.mark.slow
def test_tasks_are_on_the_board_and_in_mlflow_and_are_not_scored_twice(
    ray_local: None, mlflow_store: str, tmp_path: Path
) -> None:
    write_twin("mihic", tmp_path / "shards/mihic", scale=0.25)
    for tissue in TISSUES:
        (tmp_path / "captions" / tissue).mkdir(parents=True)
        lines = "\n\n".join(f"{word} {word} of {tissue.lower()} on CD3" for word in ("one", "two", "three"))
        (tmp_path / "captions" / tissue / "CD3.txt").write_text(lines)
    CaptionBank.from_folder(tmp_path / "captions")[0].save(tmp_path / "bank.json")
    tree = {
        "name": "tasks",
        "models": ["tiny"],
        "datasets": ["mihic"],
        "shards": str(tmp_path / "shards"),
        "baselines": ["chance"],
        "retrieval": {"captions": str(tmp_path / "bank.json")},
        "robustness": {"most_units": 30, "perturbations": {"JPEG": [10], "stain-hue": [20]}, "errors": 3},
        "cache": str(tmp_path / "cache"),
        "storage": str(tmp_path / "runs"),
    }
    config = validate(BenchmarkConfig, tree)
    first = run_benchmark(config)
    assert (first.failed, len(first.cells), first.ran) == ([], 2, 5)
    places = [(cell.model, cell.task) for cell in first.tasks]
    assert places == [("tiny", "retrieval"), ("tiny", "robustness"), ("baseline:chance", "retrieval")]
    assert read_tasks(config.folder) == first.tasks

    client = MlflowClient(mlflow_store)
    experiment = client.get_experiment_by_name("his2lip-benchmark")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    for cell in first.tasks:
        logged = runs[f"{cell.model} on mihic-generated.{cell.task}"].data.metrics
        for name, value in cell.metrics().items():
            assert logged[name] == round(value, 4), name
        assert cell.all_sizes().items() <= logged.items()
    parent = runs["tasks"].info.run_id
    plots = [item.path for item in client.list_artifacts(parent, "plots")]
    assert "plots/robustness_mihic-generated.png" in plots
    assert "errors.html" not in [item.path for item in client.list_artifacts(parent)], "it has thumbnails"

    report = Path(config.folder, "report")
    assert (report / "errors.html").is_file()
    text = (report / "leaderboard.md").read_text(encoding="utf-8")
    assert "mihic (generated): text-to-image, same tissue" in text
    assert "mihic (generated), JPEG" in text
    again = run_benchmark(config)
    assert (again.ran, again.counts.images, again.tasks) == (0, 0, first.tasks)
