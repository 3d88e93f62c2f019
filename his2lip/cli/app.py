"""The `his2lip` command as a whole: its groups, its version, exit codes, and errors as one sentence."""

from __future__ import annotations

import errno
import sys
from typing import Annotated

import typer

from his2lip.cli import (
    benchmark,
    check,
    classify,
    convert,
    data,
    demo,
    doctor,
    models,
    promote,
    retrieve,
    train,
    tune,
    ui,
)
from his2lip.runtime import share_cores

app = typer.Typer(
    name="his2lip",
    help="Fine-tune, sweep, benchmark and choose vision-language models for immunohistochemistry (IHC).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(demo.demo)
app.command()(train.train)
app.command()(tune.tune)
app.command()(benchmark.benchmark)
app.command()(benchmark.report)

_data = typer.Typer(help="Datasets: list, prepare, check, synthesize.", no_args_is_help=True)
_data.command("list")(data.list_datasets)
_data.command("prepare")(data.prepare_dataset)
_data.command("check")(check.check_dataset)
_data.command("synthesize")(data.synthesize)
app.add_typer(_data, name="data")

_models = typer.Typer(help="Models: list, show, convert, blend, export, promote.", no_args_is_help=True)
_models.command("list")(models.list_models)
_models.command("show")(models.show_model)
_models.command("convert")(convert.convert_model)
_models.command("blend")(convert.blend_models)
_models.command("export")(convert.export_model)
_models.command("promote")(promote.promote_model)
app.add_typer(_models, name="models")

app.command()(classify.classify)
app.command()(classify.calibrate)
app.command()(retrieve.retrieve)
app.command()(doctor.doctor)
app.command()(ui.ui)

# System errors about a place that cannot be written to, which the user can fix.
_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EISDIR)


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
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Options before the command; `main` reads `--debug` from the arguments."""


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 failed, 2 the user's mistake, 130 interrupted."""
    share_cores()
    try:
        app()
    except SystemExit as end:
        if end.__context__ is not None and isinstance(end.__context__.__cause__, KeyboardInterrupt):
            typer.echo("Stopped; the same command resumes from here.", err=True)
        raise
    except Exception as error:
        from his2lip.errors import His2lipError

        if isinstance(error, OSError) and error.errno in _PLACE and error.filename:
            sentence = f"{(error.strerror or 'this place cannot be used').lower()} ({error.filename})."
        elif isinstance(error, His2lipError):
            sentence = str(error)
        else:
            raise
        if "--debug" in sys.argv:
            raise
        typer.echo(f"his2lip: {sentence}", err=True)
        sys.exit(2)
