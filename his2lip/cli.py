"""The `his2lip` command: options and help only; each command's work is imported when it is asked for."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Annotated

import typer

from his2lip.runtime import share_cores

app = typer.Typer(
    name="his2lip",
    help="Fine-tune, sweep, benchmark and choose vision-language models for immunohistochemistry (IHC).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Datasets: list, prepare, check, synthesize.", no_args_is_help=True)
models_app = typer.Typer(
    help="Models: what is known by name, and what is in a checkpoint.", no_args_is_help=True
)
app.add_typer(data_app, name="data")
app.add_typer(models_app, name="models")

ConfigFile = Annotated[
    str, typer.Argument(metavar="CONFIG", help="A YAML file, yours or one the project carries.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[a.b=value]...", help="Settings that win over the file's.")
]
Address = Annotated[
    str | None,
    typer.Option(help="Run as a job on a Ray cluster, such as http://127.0.0.1:8265."),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start anew where a run of this name exists.")]

# Errors of the system that say of a place that it cannot be written to: the user's to mend.
_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR)


def _show_version(asked: bool) -> None:
    if asked:
        from his2lip import __version__

        typer.echo(f"his2lip {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of a user's mistake too.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and stop."),
    ] = False,
) -> None:
    """Options before the command; `--debug` is read from the arguments by `main`."""


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


@data_app.command("list")
def data_list() -> None:
    """List the dataset cards: what each holds, its licence, and its protocols."""
    from his2lip.commands.data import list_datasets

    list_datasets()


@data_app.command("prepare")
def data_prepare(
    card: Annotated[str, typer.Argument(help="A dataset card's name or file, or `captions`.")],
    root: Annotated[Path, typer.Option(help="The folder as its authors publish it.")],
    out: Annotated[str, typer.Option(help="Where the shards go: a folder or an object-store URI.")],
    view: Annotated[
        str | None,
        typer.Option(help="Derive patches: tiles(size=256), tiles(mpp=0.5, size=224)."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after so many images.")] = None,
) -> None:
    """Turn a published dataset (or caption corpus) into shards, quarantining what cannot be read."""
    from his2lip.commands.data import prepare_dataset

    prepare_dataset(card, root, out, view=view, limit=limit)


@data_app.command("check")
def data_check(uri: Annotated[str, typer.Argument(help="A folder or URI of shards.")]) -> None:
    """Check shards: schema, digests, counts, splits; exit code 1 where something is wrong."""
    from his2lip.commands.data import check_dataset

    if not check_dataset(uri):
        raise typer.Exit(1)


@data_app.command("synthesize")
def data_synthesize(
    out: Annotated[str, typer.Option(help="Where the shards go, one folder a dataset.")],
    datasets: Annotated[
        str | None, typer.Option(help="Comma-separated names; all ten where left out.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The generator's seed.")] = 0,
    scale: Annotated[float, typer.Option(min=0.01, help="1 is the demo's size.")] = 1.0,
) -> None:
    """Write generated IHC twins of the datasets as shards (they are marked as generated)."""
    from his2lip.commands.data import synthesize

    synthesize(out, datasets=datasets.split(",") if datasets else None, seed=seed, scale=scale)


@app.command()
def train(
    config: ConfigFile, overrides: Overrides = None, address: Address = None, fresh: Fresh = False
) -> None:
    """Train a model under WISE; the same command goes on with a stopped run."""
    if address:
        _submit(address)
    from his2lip.commands.train import run_train

    run_train(config, overrides or [], fresh=fresh)


@app.command()
def tune(
    config: ConfigFile, overrides: Overrides = None, address: Address = None, fresh: Fresh = False
) -> None:
    """Sweep the loss weights; the same command goes on with a stopped sweep."""
    if address:
        _submit(address)
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
        _submit(address)
    from his2lip.commands.benchmark import run_benchmark

    run_benchmark(config, overrides or [], models=_split(models), datasets=_split(datasets))


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


@models_app.command("list")
def models_list() -> None:
    """List the backbones known by name: where their weights come from, and their licence."""
    from his2lip.commands.models import list_models

    list_models()


@models_app.command("show")
def models_show(model: Annotated[str, typer.Argument(help="A checkpoint's folder.")]) -> None:
    """Show what a checkpoint was made from: configuration, data, step, metrics, digests."""
    from his2lip.commands.models import show_model

    show_model(model)


@app.command()
def classify(
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    model: Annotated[str, typer.Option(help="A checkpoint, a backbone's name or an MLflow URI.")],
    prompts: Annotated[str, typer.Option(help="A prompt set's name or file.")] = "tissue",
    csv: Annotated[Path | None, typer.Option(help="Write the rows here as CSV too.")] = None,
) -> None:
    """Say which tissue type each image shows, by cosine with the prompts, with margin and winning prompt."""
    from his2lip.commands.use import run_classify

    run_classify(images, model=model, prompts=prompts, csv=csv)


@app.command()
def retrieve(
    query: Annotated[str, typer.Argument(help="An image file, or a sentence.")],
    model: Annotated[str, typer.Option(help="A checkpoint, a backbone's name or an MLflow URI.")],
    index: Annotated[str, typer.Option(help="A folder or URI of shards to search in.")],
    top: Annotated[int, typer.Option(min=1, help="How many patches to return.")] = 10,
) -> None:
    """Find the patches most like an image or a sentence.

    Embeddings are kept for the next query.
    """
    from his2lip.commands.use import run_retrieve

    run_retrieve(query, model=model, index=index, top=top)


@app.command()
def doctor() -> None:
    """Say what this machine has, what is missing, and what to type."""
    from his2lip.commands.doctor import run_doctor

    if not run_doctor():
        raise typer.Exit(1)


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port on 127.0.0.1.")] = 5000,
    store: Annotated[str | None, typer.Option(help="An MLflow store; the current one by default.")] = None,
) -> None:
    """Open MLflow's UI on the current store, on this machine only."""
    from his2lip.commands.ui import run_ui

    raise typer.Exit(run_ui(port=port, store=store))


def _split(names: str | None) -> list[str] | None:
    return [n.strip() for n in names.split(",") if n.strip()] if names else None


def _submit(address: str) -> None:
    """Sends this very command, less `--address`, to a cluster, and ends with its exit code."""
    from his2lip.commands.remote import submit_command

    raise typer.Exit(submit_command(address, sys.argv[1:]))


def main() -> None:
    """Entry point: 0 done, 1 failed, 2 the user's mistake, 130 interrupted."""
    share_cores()
    try:
        app()
    except SystemExit as end:
        if end.__context__ is not None and isinstance(end.__context__.__cause__, KeyboardInterrupt):
            typer.echo("Stopped; the same command goes on from here.", err=True)
        raise
    except Exception as error:
        from his2lip.errors import His2lipError

        if isinstance(error, OSError) and error.errno in _PLACE and error.filename:
            said = f"{(error.strerror or 'this place cannot be used').lower()} ({error.filename})."
        elif isinstance(error, His2lipError):
            said = str(error)
        else:
            raise
        if "--debug" in sys.argv:
            raise
        typer.echo(f"his2lip: {said}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
