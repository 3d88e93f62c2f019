"""`his2lip tune`: a sweep on Ray Tune and Optuna; its trials go to MLflow and its plots to files."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from his2lip.cli.console import ProgressBar, percent, say, table
from his2lip.cli.estimates import show_estimate
from his2lip.cli.jobs import Address, submit_if_asked
from his2lip.cli.options import ConfigFile, Fresh, Options, Overrides, Schema, check_outputs
from his2lip.cli.registry import command
from his2lip.cli.train import show_limit, validator
from his2lip.resources import find

if TYPE_CHECKING:
    from his2lip.tracking import Run
    from his2lip.tuning import SweepConfig, SweepResult, TrialRow

EXPERIMENT = "his2lip-tune"
_SHOWN = 12  # trials in the table at the end, best first


@command("tune")
def tune(
    config: ConfigFile,
    overrides: Overrides = None,
    address: Address = None,
    fresh: Fresh = False,
    options: Options = False,
    schema: Schema = False,
) -> None:
    """Sweep training options, such as the loss weights; the same command resumes a stopped sweep."""
    submit_if_asked(address)
    from his2lip.config import load
    from his2lip.tuning import SweepConfig

    run_tune(load(SweepConfig, find(config), overrides or []), fresh=fresh)


def run_tune(config: SweepConfig, *, fresh: bool = False) -> SweepResult:
    """Runs the trials that remain, and records all of them in MLflow; the result holds all trials."""
    import ray

    from his2lip.config import digest, recorded
    from his2lip.files import check_writable
    from his2lip.models import is_stored, store_checkpoint
    from his2lip.runtime import start_ray
    from his2lip.tracking import RUN_ID, Tracker
    from his2lip.training import caption_notes, estimate_run, open_data, terms_of_run
    from his2lip.tuning import gpus_of_sweep, run_sweep, training_objective

    if "://" in config.storage:
        check_writable(
            f"{config.storage.rstrip('/')}/tune", fix="set storage to a place that you can write to"
        )
    else:
        check_outputs({"storage": Path(config.storage, "tune", config.name)}, folders=True)
    tracker = Tracker.open(needed=False)
    objective = training_objective(config, make_validator=validator)
    base, shards, bank = open_data(objective.base)
    for note in (*terms_of_run(base, shards).notes(), *caption_notes(base, shards, bank)):
        say(note)
    if "://" in config.storage:
        say("an object store has no locks: run this command once at a time")
    run_id = digest({"config": config.identity(), "inputs": objective.inputs, "name": config.name})
    start_ray()
    trial = base.model_copy(update={"storage": config.storage, "name": f"{config.name}.trial"})
    show_estimate(
        estimate_run(trial, shards),
        gpus=gpus_of_sweep(config, base, ray.cluster_resources()),
        trials=config.trials,
        at_once=config.max_concurrent,
        kept=config.trials  # all may be on the Pareto front of two metrics
        if len(config.metrics) > 1
        else min(config.trials, config.keep + config.max_concurrent),
    )
    tags = {RUN_ID: run_id}
    beside = f"{config.storage.rstrip('/')}/tune"
    with tracker.run(EXPERIMENT, config.name, recorded(config), tags=tags, beside=beside, fresh=fresh) as run:
        with ProgressBar(config.name) as bar:
            ended = itertools.count(1)  # a trial that is repeated counts again

            def on_trial(row: TrialRow) -> None:
                scores = ", ".join(map(" ".join, zip(config.metrics, _scores(config, row), strict=True)))
                count = f"{next(ended)} ended, {config.trials} planned"
                bar.update(f"trial {row.number} {row.state}, {scores}; {count}")

            result = run_sweep(
                config,
                objective,
                on_trial=on_trial,
                inputs=objective.inputs,
                places=objective.places,
                fresh=fresh,
            )
        record_sweep(run, config, result)
    show_result(config, result)
    best, address = result.best_checkpoint, result.best_address
    if best is not None:
        show_limit(best, shards, split=base.data.split, select=base.data.select)
        if address is not None and is_stored(address):
            store_checkpoint(best, address)  # with the limit
    result.sweep.store()  # with the plots
    return result


def record_sweep(run: Run, config: SweepConfig, result: SweepResult) -> None:
    """Every ended trial as a run below the sweep's, the best checkpoint as a logged model, and the plots."""
    from his2lip.errors import RunError
    from his2lip.models import read_meta
    from his2lip.tuning import BAD, DONE, importances, save_plots

    ended = {_trial_id(result.name, row): row for row in result.trials if row.state in DONE}
    run.keep_children(ended)  # without those of a sweep whose folder was removed
    for trial_id, row in ended.items():
        run.trial(
            trial_id,
            f"trial {row.number}",
            params=row.params,
            metrics=row.metrics,
            code_version=row.code_version,
            failed=row.state in BAD,
        )
    if result.best is not None and result.best.value is not None:
        run.metrics({f"best/{name}": result.best.metrics[name] for name in config.metrics})
        checkpoint, address = result.best_checkpoint, result.best_address
        if checkpoint is not None and address is not None:
            model = run.checkpoint(address, f"{config.name}-best", read_meta(checkpoint))
            run.model_metrics(model, result.best.metrics)
    study = result.study()
    run.metrics({f"importance/{key}": share for key, share in importances(study).items()})
    try:
        save_plots(study, result.directory, metrics=config.metrics)
    except RunError as error:
        say(str(error))
    else:
        run.artifact(result.directory / "plots", "plots")


def _trial_id(sweep: str, row: TrialRow) -> str:
    """Identifies a trial by its content: one of the same number in a repeated sweep has another id."""
    from his2lip.config import digest

    return f"{sweep}/{row.number}/{digest(row.to_json())[:16]}"


def show_result(config: SweepConfig, result: SweepResult) -> None:
    """The best trials, the trials that raised an error, and where plots and checkpoint are."""
    from his2lip.tuning import BAD, best_rows

    if result.finished_before:
        say(f"{config.name} was finished before; nothing was run (add trials with trials=N)")
    versions = result.code_versions
    if len(versions) > 1:
        counts = ", ".join(f"{count} with {version}" for version, count in versions.items())
        say(f"trials of different versions of the code are compared here: {counts} (--fresh starts again)")
    keys, front = list(config.dimensions), {row.number for row in result.front}
    rows = best_rows(result.trials, config.mode, len(result.trials))
    table(
        ("trial", "state", *(key.rpartition(".")[2] for key in keys), *config.metrics),
        [
            (r.number, r.state, *(_value(r.params.get(key)) for key in keys), *_scores(config, r))
            for r in sorted(rows, key=lambda r: r.number not in front)[: max(_SHOWN, len(front))]
        ],
    )
    if "seed" in config.cross:
        _show_arms(config, result)
    if front:
        numbers = ", ".join(str(row.number) for row in result.front)
        say(f"Pareto front of {' and '.join(config.metrics)}: trials {numbers}, the first {len(front)} rows")
    retries = {row.retry_of: row.number for row in result.trials}
    for row in (r for r in result.trials if r.state in BAD):
        say(f"trial {row.number} {row.state}: {row.note}; it is not run again")
    for row in (r for r in result.trials if r.state == "error"):
        retry = retries.get(row.number)
        outcome = "the same command runs it again" if retry is None else f"repeated as trial {retry}"
        say(f"trial {row.number} raised an error: {row.note}; {outcome}")
    say(f"plots: {result.sweep.shared}/plots/sweep.html")
    if result.best_checkpoint is not None:
        say(f"best checkpoint: {result.best_address}")
    elif result.best is not None:
        say(f"the checkpoint of the best trial, {result.best.number}, is not in {result.sweep.shared}")


def _show_arms(config: SweepConfig, result: SweepResult) -> None:
    """The points of `cross` over their seeds, each beside the first point with the same other values."""
    from his2lip.tuning import compare_arms

    other_keys = [key for key in config.cross if key != "seed"]
    with_value = [row for row in result.trials if row.value is not None]
    groups = {json.dumps([row.params.get(key) for key in other_keys]): row.params for row in with_value}
    for name, group in groups.items():
        shared = {key: group[key] for key in other_keys}
        runs = [
            (row.params, row.value or 0.0)
            for row in with_value
            if json.dumps([row.params.get(key) for key in other_keys]) == name
        ]
        say(f"{config.metrics[0]} over seeds" + (f", {_settings(shared)}" if shared else ""))
        arms = compare_arms(runs, {**config.points[0], **shared})
        if not any(arm.reference for arm in arms):
            say("the first point has no value yet, so there are no differences to it")
        table(
            ("point", "seeds", "mean", "spread", "difference to the first", "95 % interval"),
            [
                (
                    _settings({key: value for key, value in arm.params.items() if key not in shared}),
                    arm.seeds,
                    percent(arm.mean),
                    "-" if arm.spread is None else percent(arm.spread),
                    "-" if arm.difference is None else percent(arm.difference),
                    "-"
                    if arm.low is None or arm.high is None
                    else f"{percent(arm.low)} to {percent(arm.high)}",
                )
                for arm in arms
            ],
        )


def _settings(params: Mapping[str, object]) -> str:
    return ", ".join(f"{key.rpartition('.')[2]}={_value(value)}" for key, value in params.items())


def _scores(config: SweepConfig, row: TrialRow) -> list[str]:
    """Each metric of a trial's best report; - where it has none."""
    if row.value is None:
        return ["-"] * len(config.metrics)
    values = {name: row.metrics[name] for name in config.metrics}
    return [f"{v:.4f}" if name.endswith("loss") else percent(v) for name, v in values.items()]


def _value(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
