"""`his2lip train`: Ray Train over the loop, with its progress on the terminal and its record in MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from his2lip import resources
from his2lip.commands.console import Progress, percent, say
from his2lip.config import digest, load, resolved
from his2lip.runtime import quiet_ray, start_ray
from his2lip.tracking import RUN_ID, Run, Tracker

if TYPE_CHECKING:
    from his2lip.evaluation import SelectValidator
    from his2lip.training import Progress as Report
    from his2lip.training import TrainConfig, TrainResult

EXPERIMENT = "his2lip-train"


def run_train(config_file: str, overrides: Sequence[str], *, fresh: bool = False) -> TrainResult:
    """Trains, or goes on, or says that the run is finished; the result says where the checkpoints are."""
    from his2lip.training import TrainConfig, identity, open_data, train, with_absolute_paths

    asked = load(TrainConfig, resources.find(config_file), overrides)
    tracker = Tracker.open()
    config, shards, bank = open_data(with_absolute_paths(asked))
    run_id = identity(config, shards, bank)["id"]
    say(f"{config.name}: {config.model.backbone} on {config.data.shards}, run {run_id[:12]}")
    quiet_ray()
    start_ray()
    tags = {RUN_ID: digest({"run": run_id, "name": config.name})}  # two names of one run are two records
    with tracker.run(EXPERIMENT, config.name, resolved(config), tags=tags, fresh=fresh) as run:
        run.dataset(shards.info.name, digest=shards.digest, uri=shards.uri, context="training")
        with Progress(config.name) as bar:

            def on_report(report: Report) -> None:
                bar.update(_line(report))
                run.metrics(report.metrics, step=report.step)

            result = train(config, validator=validator(config), on_report=on_report, on_note=say, fresh=fresh)
        record(run, config, result)
    say_result(config, result)
    return result


def validator(config: TrainConfig) -> SelectValidator | None:
    """Zero-shot metrics on the select split; handed in from here, for training imports no evaluation."""
    if config.data.select is None:
        return None
    from his2lip.evaluation import SelectValidator

    return SelectValidator(config.data.shards, split=config.data.select, threads=config.data.decode_threads)


def record(run: Run, config: TrainConfig, result: TrainResult) -> None:
    """The best checkpoint as a logged model, with the metrics it was chosen by."""
    from his2lip.models import read_meta

    model = run.checkpoint(result.best, config.name, read_meta(result.best))
    run.model_metrics(model, result.metrics)


def say_result(config: TrainConfig, result: TrainResult) -> None:
    """Where the checkpoints are, and how the best one did."""
    f1 = result.metrics.get("select/macro_f1")
    score = f", macro F1 on select {percent(f1)}" if f1 is not None else ""
    say(f"best checkpoint: {result.best} (of {result.steps} steps{score})")


def _line(report: Report) -> str:
    shown = [f"step {report.step}/{report.steps}", f"epoch {report.epoch}"]
    names = {"train/loss": "loss", "select/excess": "select excess", "train/images_per_second": "images/s"}
    shown += [f"{label} {report.metrics[key]:.3g}" for key, label in names.items() if key in report.metrics]
    if "select/macro_f1" in report.metrics:
        shown.append(f"select F1 {percent(report.metrics['select/macro_f1'])}")
    return ", ".join(shown)
