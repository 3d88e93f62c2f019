"""The `his2lip` command as a whole: its groups, its version, and one sentence for a user's mistake."""

from __future__ import annotations

import errno
import sys
from typing import Annotated

import typer

from his2lip.cli import data, machine, models, runs, use
from his2lip.runtime import share_cores

app = typer.Typer(
    name="his2lip",
    help="Fine-tune, sweep, benchmark and choose vision-language models for immunohistochemistry (IHC).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(runs.app)
app.add_typer(data.app, name="data")
app.add_typer(models.app, name="models")
app.add_typer(use.app)
app.add_typer(machine.app)

# Errors of the system that say of a place that it cannot be written to: the user's to fix.
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
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and stop."),
    ] = False,
) -> None:
    """Options before the command; `--debug` is read from the arguments by `main`."""


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
