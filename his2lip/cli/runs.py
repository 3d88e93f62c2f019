"""The commands that run something and go on where it stopped: demo, train, tune, benchmark, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from his2lip.cli.options import Address, ConfigFile, Fresh, Overrides, split_names, submit

app = typer.Typer()


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where the demo's shards, runs and pages go.")] = Path(
        "runs/demo"
    ),
    fresh: Fresh = False,
) -> None:
    """Run the whole loop offline on generated IHC patches."""
    from his2lip.commands.demo import run_demo

    run_demo(out, fresh=fresh)


@app.command()
def train(
    config: ConfigFile, overrides: Overrides = None, address: Address = None, fresh: Fresh = False
) -> None:
    """Train a model under WISE; the same command goes on with a stopped run."""
    if address:
        submit(address)
    from his2lip.commands.train import run_train

    run_train(config, overrides or [], fresh=fresh)


@app.command()
def tune(
    config: ConfigFile, overrides: Overrides = None, address: Address = None, fresh: Fresh = False
) -> None:
    """Sweep the loss weights; the same command goes on with a stopped sweep."""
    if address:
        submit(address)
    from his2lip.commands.tune import run_tune

    run_tune(config, overrides or [], fresh=fresh)


@app.command()
def benchmark(
    config: ConfigFile,
    overrides: Overrides = None,
    models: Annotated[str | None, typer.Option(help="Comma-separated, in place of the file's.")] = None,
    datasets: Annotated[str | None, typer.Option(help="Comma-separated, out of the file's.")] = None,
    address: Address = None,
) -> None:
    """Score every model on every dataset; finished cells are not run again."""
    if address:
        submit(address)
    from his2lip.commands.benchmark import run_benchmark

    run_benchmark(config, overrides or [], models=split_names(models), datasets=split_names(datasets))


@app.command()
def report(
    benchmark: Annotated[Path, typer.Argument(help="A benchmark's folder.")] = Path(
        "runs/benchmark/zero-shot"
    ),
    out: Annotated[Path | None, typer.Option(help="Where the pages go; by default, beside it.")] = None,
) -> None:
    """Write the leaderboard as HTML, CSV and Markdown."""
    from his2lip.commands.report import run_report

    run_report(benchmark, out)
