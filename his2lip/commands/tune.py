"""`his2lip tune`: a sweep on Ray Tune and Optuna, with its trials in MLflow and its plots stored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from his2lip import resources
from his2lip.commands.console import Progress, percent, say, table
from his2lip.commands.train import validator
from his2lip.config import digest, load, resolved
from his2lip.runtime import start_ray
from his2lip.tracking import RUN_ID, Run, Tracker

if TYPE_CHECKING:
    from his2lip.tuning import SweepConfig, SweepResult, TrialRow

EXPERIMENT = "his2lip-tune"


def run_tune(config_file: str, overrides: Sequence[str], *, fresh: bool = False) -> SweepResult:
    """Runs the trials that are still to run; the result holds all of them."""
    from his2lip.training import caption_notes, open_data, terms_of_run
    from his2lip.tuning import SweepConfig, run_sweep, training_objective

    config = load(SweepConfig, resources.find(config_file), overrides)
    tracker = Tracker.open()
    objective = training_objective(config, make_validator=validator)
    base, shards, bank = open_data(objective.base)
    for note in (*terms_of_run(base, shards).notes(), *caption_notes(base, shards, bank)):
        say(note)
    run_id = digest({"config": config.identity(), "inputs": objective.inputs, "name": config.name})
    start_ray()
    tags = {RUN_ID: run_id}
    with tracker.run(EXPERIMENT, config.name, resolved(config), tags=tags, fresh=fresh) as run:
        with Progress(config.name) as bar:

            def on_trial(row: TrialRow) -> None:
                bar.update(_line(config, row))

            result = run_sweep(config, objective, on_trial=on_trial, inputs=objective.inputs, fresh=fresh)
        record(run, config, result)
    say_result(config, result)
    return result


def record(run: Run, config: SweepConfig, result: SweepResult) -> None:
    """Every ended trial as a run below the sweep's, the best checkpoint as a logged model, and the plots."""
    from his2lip.errors import RunError
    from his2lip.models import read_meta
    from his2lip.tuning import DONE, importances, save_plots

    written = run.children()
    for row in result.trials:
        trial_id = f"{result.name}/{row.number}"
        if row.state in DONE and trial_id not in written:
            failed = row.state == "failed"
            run.trial(trial_id, f"trial {row.number}", params=row.params, metrics=row.metrics, failed=failed)
    if result.best is not None and result.best.value is not None:
        run.metrics({f"best/{config.metric}": result.best.value})
        checkpoint = best_checkpoint(result)
        if checkpoint is not None:
            model = run.checkpoint(checkpoint, f"{config.name}-best", read_meta(checkpoint))
            run.model_metrics(model, result.best.metrics)
    study = result.study()
    run.metrics({f"importance/{key}": share for key, share in importances(study).items()})
    try:
        save_plots(study, result.directory, metric=config.metric)
    except RunError as error:
        say(str(error))
    else:
        run.artifact(result.directory / "plots", "plots")


def best_checkpoint(result: SweepResult) -> Path | None:
    """The checkpoint of the best trial, chosen on the select split; None where no trial came to one."""
    if result.best is None:
        return None
    place = result.directory / "trials" / str(result.best.number) / "best"
    return place if place.is_dir() else None


def say_result(config: SweepConfig, result: SweepResult) -> None:
    """All trials with a value, best first, and where plots and checkpoint are."""
    if result.finished_before:
        say(f"{config.name} was finished before; nothing was run (ask for more: trials=N)")
    keys = list(config.space)
    rows = sorted(
        (row for row in result.trials if row.value is not None),
        key=lambda row: (row.value or 0.0) * (-1 if config.mode == "max" else 1),
    )
    short = [key.rpartition(".")[2] for key in keys]
    table(
        ("trial", "state", *short, config.metric),
        [
            (r.number, r.state, *(_value(r.params.get(key)) for key in keys), _score(config, r.value))
            for r in rows[:12]
        ],
    )
    again = {row.retry_of: row.number for row in result.trials}
    for row in (r for r in result.trials if r.state == "error"):
        later = again.get(row.number)
        fate = "the same command runs it again" if later is None else f"tried again as trial {later}"
        say(f"trial {row.number} raised an error: {row.note}; {fate}")
    say(f"plots: {result.directory / 'plots' / 'sweep.html'}")
    checkpoint = best_checkpoint(result)
    if checkpoint is not None:
        say(f"best checkpoint: {checkpoint}")


def _line(config: SweepConfig, row: TrialRow) -> str:
    score = _score(config, row.value)
    return f"trial {row.number} of {config.trials} {row.state}, {config.metric} {score}"


def _score(config: SweepConfig, value: float | None) -> str:
    return percent(value) if "f1" in config.metric or value is None else f"{value:.4f}"


def _value(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
