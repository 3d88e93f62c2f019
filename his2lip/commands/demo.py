"""`his2lip demo`: the whole loop on generated patches, through the drivers that the other commands use."""

from __future__ import annotations

import os
from pathlib import Path

import typer

from his2lip.commands.console import heading, percent, say, table

TRAIN, SWEEP, GRID = "train/demo_train.yaml", "tune/demo_sweep.yaml", "benchmarks/demo.yaml"
COLOUR = "baseline:mean-colour"
LEARNT, COLOUR_BELOW = 0.80, 0.50  # macro F1 on held-out cases that the demo has to show


def run_demo(out: Path, *, fresh: bool = False) -> None:
    """Shards, training, sweep, grid and leaderboard below `out`; a second call goes on, or finds all done.

    Exits with 1 where cells failed or the model did not learn: a demo that shows nothing must not pass.
    """
    from his2lip.commands.benchmark import configure, run_configured
    from his2lip.commands.data import synthesize
    from his2lip.commands.train import run_train
    from his2lip.commands.tune import best_checkpoint, run_tune

    out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{out}/mlflow.db")
    shards, storage = f"{out}/shards", f"storage={out}"
    mihic = f"{shards}/mihic"

    heading("1/4  Generated IHC patches: a training set, and a small twin of each of the ten datasets")
    synthesize(shards, datasets=None, seed=0, scale=1.0)

    heading("2/4  Training the tiny backbone under WISE, with Ray Data and Ray Train")
    trained = run_train(TRAIN, [storage, f"data.shards={mihic}"], fresh=fresh)

    heading("3/4  Sweeping the loss weights with Optuna, on Ray Tune")
    swept = run_tune(SWEEP, [storage, f"train.data.shards={mihic}"], fresh=fresh)

    heading("4/4  Every model on every dataset, zero-shot, on Ray")
    models = [
        {"name": "untrained", "path": "tiny"},
        {"name": "trained", "path": str(trained.best)},
        {"name": "best of sweep", "path": str(best_checkpoint(swept))},
    ]
    places = [storage, f"shards={shards}", f"cache={out}/cache", f"models={models}"]
    grid = run_configured(configure(GRID, places, models=None, datasets=None))

    if grid.failed:  # said above, with the reasons
        raise typer.Exit(1)
    heading("What was learnt (held-out cases of the generated MIHIC twin, 7 tissue types)")
    scores = {c.model: c for c in grid.cells if c.dataset == "mihic"}
    rows = [("untrained", "untrained"), (COLOUR, "k-NN on mean colour"), ("trained", "trained")]
    table(
        ("model", "macro F1, %", "accuracy, %"),
        [(label, percent(scores[key].macro_f1), percent(scores[key].accuracy)) for key, label in rows],
    )
    if not learnt(scores["trained"].macro_f1, colour=scores[COLOUR].macro_f1):
        say(f"This is not what the demo should show: {LEARNT:.0%} or more, colour below {COLOUR_BELOW:.0%}.")
        raise typer.Exit(1)
    say("")
    say(f"leaderboard page   {Path(grid.leaderboard).parent}/report/index.html")
    say(f"MLflow             his2lip ui --store {os.environ['MLFLOW_TRACKING_URI']}")
    say(f"your own images    his2lip classify IMAGE --model {trained.best}; then README.md, 'Your own run'")


def learnt(macro_f1: float, *, colour: float) -> bool:
    """Whether the demo shows learning, and of more than colour."""
    return macro_f1 >= LEARNT and colour < COLOUR_BELOW
