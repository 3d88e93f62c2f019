"""`his2lip train`: one training run on Ray Train, shown on the terminal and recorded in MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from his2lip.cli.console import ProgressBar, percent, say
from his2lip.cli.estimates import show_estimate
from his2lip.cli.jobs import Address, submit_if_asked
from his2lip.cli.options import ConfigFile, Fresh, Options, Overrides, Schema, check_outputs
from his2lip.cli.registry import command
from his2lip.resources import find

if TYPE_CHECKING:
    from his2lip.data.shards import ShardSet
    from his2lip.evaluation import SelectValidator
    from his2lip.tracking import Run
    from his2lip.training import StepReport, TrainConfig, TrainResult

EXPERIMENT = "his2lip-train"


@command("train")
def train(
    config: ConfigFile,
    overrides: Overrides = None,
    address: Address = None,
    fresh: Fresh = False,
    options: Options = False,
    schema: Schema = False,
) -> None:
    """Train a model with the WISE loss; the same command resumes a stopped run."""
    submit_if_asked(address)
    from his2lip.config import load
    from his2lip.training import TrainConfig

    run_train(load(TrainConfig, find(config), overrides or []), fresh=fresh)


def run_train(asked: TrainConfig, *, fresh: bool = False) -> TrainResult:
    """Starts or resumes a training run, or reports a finished one, and records it in MLflow."""
    import ray

    from his2lip.config import digest, recorded
    from his2lip.files import check_writable
    from his2lip.models import is_stored, store_checkpoint
    from his2lip.runtime import quiet_ray, start_ray
    from his2lip.tracking import RUN_ID, Tracker
    from his2lip.training import (
        estimate_run,
        gpus_of_run,
        identity,
        open_data,
        train,
        with_absolute_paths,
    )

    if "://" in asked.storage:
        check_writable(
            f"{asked.storage.rstrip('/')}/train", fix="set storage to a place that you can write to"
        )
    else:
        check_outputs({"storage": Path(asked.storage, "train", asked.name)}, folders=True)
    tracker = Tracker.open(needed=False)
    config, shards, bank = open_data(with_absolute_paths(asked))
    chooses = validator(config)
    run_id = identity(config, shards, bank, validator=chooses)["id"]
    say(f"{config.name}: {config.model.backbone} on {config.data.shards}, run {run_id[:12]}")
    quiet_ray()
    start_ray()
    show_estimate(estimate_run(config, shards), gpus=gpus_of_run(config, ray.cluster_resources()))
    tags = {RUN_ID: digest({"run": run_id, "name": config.name})}  # two names of one run are two records
    beside = f"{config.storage.rstrip('/')}/train"
    with tracker.run(EXPERIMENT, config.name, recorded(config), tags=tags, beside=beside, fresh=fresh) as run:
        run.dataset(shards.info.name, digest=shards.digest, uri=shards.uri, context="training")
        with ProgressBar(config.name) as bar:

            def on_report(report: StepReport) -> None:
                bar.update(_line(report), done=report.step, total=report.steps)
                run.metrics(report.metrics, step=report.step)

            result = train(config, validator=chooses, on_report=on_report, on_note=say, fresh=fresh)
        _record(run, config, result)
    show_limit(result.best, shards, split=config.data.split, select=config.data.select)
    if is_stored(result.address):
        store_checkpoint(result.best, result.address)  # with the limit
    f1 = result.metrics.get("select/macro_f1")
    score = "" if f1 is None else f", macro F1 on select {percent(f1)}"
    say(f"best checkpoint: {result.address} (of {result.steps} steps{score})")
    return result


def show_limit(checkpoint: Path, shards: ShardSet, *, split: str, select: str | None) -> None:
    """Fits and prints how far an image may be from the training patches, unless that was done before.

    split, select  names of splits; without a select split there is no limit
    """
    from his2lip.models import load_model, read_meta
    from his2lip.serving import Familiarity, fit_familiarity

    found = None
    if select is not None:
        found = Familiarity.load(checkpoint, weights=read_meta(checkpoint)["tensor_digest"])
        if found is None:
            found = fit_familiarity(load_model(checkpoint), shards, split=split, select=select)
            if found is not None:
                found.save(checkpoint)
    reason = "there is no select split" if select is None else "the splits have too few patches"
    say(f"images unlike the training patches: {found or f'no limit was fitted, since {reason}'}")


def validator(config: TrainConfig) -> SelectValidator | None:
    """Zero-shot metrics on the select split. Made here, since `training` does not import `evaluation`."""
    data = config.data
    if data.select is None:
        return None
    from his2lip.evaluation import SelectValidator
    from his2lip.training import select_captions

    threads = None if data.decode_threads == "auto" else data.decode_threads
    captions = tuple(select_captions(config))
    made = SelectValidator(
        data.shards, split=data.select, protocol=data.protocol, threads=threads, captions=captions
    )
    return made.check()  # before hours of training


def _record(run: Run, config: TrainConfig, result: TrainResult) -> None:
    """The best checkpoint as a logged model, with the metrics that it was chosen by."""
    from his2lip.models import read_meta

    model = run.checkpoint(result.address, config.name, read_meta(result.best))
    run.model_metrics(model, result.metrics)


def _line(report: StepReport) -> str:
    shown = [f"step {report.step}/{report.steps}", f"epoch {report.epoch}"]
    names = {"train/loss": "loss", "select/excess": "select excess", "train/images_per_second": "images/s"}
    shown += [f"{label} {report.metrics[key]:.3g}" for key, label in names.items() if key in report.metrics]
    if "select/macro_f1" in report.metrics:
        shown.append(f"select F1 {percent(report.metrics['select/macro_f1'])}")
    return ", ".join(shown)
