"""`his2lip demo`: the whole loop on generated patches, with the functions behind the other commands."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from his2lip.cli.benchmark import run_benchmark
from his2lip.cli.console import heading, percent, say, table
from his2lip.cli.data import write_twins
from his2lip.cli.options import Fresh, check_outputs
from his2lip.cli.registry import command
from his2lip.cli.train import run_train
from his2lip.cli.tune import run_tune
from his2lip.resources import STORAGE, find

FOLDER = Path(STORAGE, "demo")  # default of `--out`
TRAIN, SWEEP, GRID = "train/demo_train.yaml", "tune/demo_sweep.yaml", "benchmarks/demo.yaml"
COLOUR = "baseline:mean-colour"
LEARNT, COLOUR_BELOW = 0.80, 0.50  # macro F1 on held-out cases that the demo has to show


@command("demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the demo's shards, runs and pages.")] = FOLDER,
    fresh: Fresh = False,
) -> None:
    """Run the whole loop offline on generated IHC patches; a second call runs only what is unfinished.

    The exit code is 1 where a grid cell failed, or where the model did not learn.
    """
    from his2lip.config import load
    from his2lip.evaluation import BenchmarkConfig
    from his2lip.training import TrainConfig
    from his2lip.tuning import SweepConfig

    check_outputs({"--out": out}, folders=True)
    out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{out}/mlflow.db")
    shards, storage = f"{out}/shards", {"storage": str(out)}
    mihic = f"{shards}/mihic"

    heading("1/4  Generated IHC patches: a training set, and a small twin of each of the ten datasets")
    write_twins(shards)

    heading("2/4  Training the tiny backbone under WISE, with Ray Data and Ray Train")
    recipe = load(TrainConfig, find(TRAIN), {**storage, "data.shards": mihic})
    trained = run_train(recipe, fresh=fresh)

    heading("3/4  Sweeping the loss weights with Optuna, on Ray Tune")
    sweep = load(SweepConfig, find(SWEEP), {**storage, "train.data.shards": mihic})
    swept = run_tune(sweep, fresh=fresh)

    heading("4/4  Every model on every dataset, zero-shot, on Ray")
    models = [
        {"name": "untrained", "path": "tiny"},
        {"name": "trained", "path": str(trained.best)},
        {"name": "best of sweep", "path": str(swept.best_checkpoint)},
    ]
    places = {**storage, "shards": shards, "cache": f"{out}/cache"}
    result = run_benchmark(load(BenchmarkConfig, find(GRID), {**places, "models": models}))

    if result.failed:  # the reasons are printed above
        raise typer.Exit(1)
    heading("What was learnt (held-out cases of the generated MIHIC twin, 7 tissue types)")
    scores = {c.model: c for c in result.cells if c.dataset == "mihic"}
    rows = [("untrained", "untrained"), (COLOUR, "k-NN on mean colour"), ("trained", "trained")]
    table(
        ("model", "macro F1, %", "accuracy, %"),
        [(label, percent(scores[key].macro_f1), percent(scores[key].accuracy)) for key, label in rows],
    )
    if scores["trained"].macro_f1 < LEARNT or scores[COLOUR].macro_f1 >= COLOUR_BELOW:
        say(f"The demo should show {LEARNT:.0%} or more for the trained model, and less than")
        say(f"{COLOUR_BELOW:.0%} for colour. It did not.")
        raise typer.Exit(1)
    say("")
    say(f"leaderboard page   {Path(result.leaderboard).parent}/report/index.html")
    say(f"MLflow             his2lip ui --store {os.environ['MLFLOW_TRACKING_URI']}")
    say(f"your own images    his2lip classify IMAGE --model {trained.best}; then README.md, 'Your own run'")
    say("                   (trained on generated patches only, this model does not answer on real images)")
