"""The `his2lip` command as a whole: its groups, its version, exit codes, and errors as one sentence."""

from __future__ import annotations

import errno
import importlib
import os
import pkgutil
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from his2lip.cli.registry import COMMANDS
from his2lip.runtime import share_cores

GROUPS = {
    "data": "Datasets: list, prepare, check, synthesize.",
    "captions": "Captions: draft, reword, review, merge, export.",
    "prompts": "Prompts: import.",
    "models": "Models: list, show, convert, blend, export, promote.",
    "track": "MLflow: sync.",
}
# The order on the help pages. Commands that are not named here follow.
ORDER = (
    *("demo", "train", "tune", "benchmark", "report"),
    *("data list", "data prepare", "data check", "data synthesize"),
    *("models list", "models show", "models convert", "models blend", "models export", "models promote"),
    *("captions draft", "captions reword", "captions review", "captions merge", "captions export"),
    "prompts import",
    *("classify", "calibrate", "retrieve", "doctor", "ui", "track sync", "gc"),
)

app = typer.Typer(
    name="his2lip",
    help="Fine-tune, sweep, benchmark and choose vision-language models for immunohistochemistry (IHC).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_STOPPED = "Stopped; the same command resumes from here."
# System errors about a place that cannot be read or written, which the user can fix.
_PLACE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EISDIR),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EFBIG, errno.EBUSY),
)


def _add_commands() -> None:
    """Imports every file of this package and adds the commands that they register."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if module.name != "app":
            importlib.import_module(f"his2lip.cli.{module.name}")
    groups = {name: typer.Typer(help=text, no_args_is_help=True) for name, text in GROUPS.items()}
    for words in sorted(COMMANDS, key=lambda words: ORDER.index(words) if words in ORDER else len(ORDER)):
        group, _, name = words.rpartition(" ")
        (groups[group] if group else app).command(name)(COMMANDS[words])
    for name, commands in groups.items():
        app.add_typer(commands, name=name)


_add_commands()


def _show_version(asked: bool) -> None:
    if asked:
        from his2lip import __version__

        typer.echo(f"his2lip {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            help="Show the log of the command and its workers. HIS2LIP_LOG=debug|info|warning|error does the "
            "same by level. The folder of a run has it in his2lip.log.",
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of a user's mistake too.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Options before the command; `main` reads `--debug` from the arguments."""
    from his2lip.logs import setup

    setup("info" if verbose else None)


def _interrupt(number: int, frame: object) -> None:
    """The first Ctrl-C ends the work in order; a second one, given meanwhile, ends the process at once."""
    signal.signal(signal.SIGINT, _end_at_once)
    raise KeyboardInterrupt


def _end_at_once(number: int, frame: object) -> None:
    os.write(2, f"{_STOPPED}\n".encode())
    os._exit(130)  # a second KeyboardInterrupt would end in a traceback of whatever is cleaning up


def _refuse_empty(words: Sequence[str]) -> None:
    """Raises ConfigError for an empty word: as a place it would mean the present folder."""
    from his2lip.errors import ConfigError

    for before, word in zip(("", *words), words, strict=False):
        if not word or (word.startswith("--") and word.endswith("=")):
            option = word.removesuffix("=") or before
            what = f"the value of {option} is empty" if option.startswith("--") else "an argument is empty"
            raise ConfigError(what, key=option, fix="give it a value; a variable of the shell may be unset")


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 failed, 2 the user's mistake, 130 interrupted."""
    try:
        os.getcwd()
    except FileNotFoundError:  # libraries that are imported later would end the process without a sentence
        typer.echo("his2lip: the present folder does not exist any more; change to another one.", err=True)
        sys.exit(2)
    share_cores()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where Ctrl-C is ignored (nohup)
        signal.signal(signal.SIGINT, _interrupt)
    try:
        _refuse_empty(sys.argv[1:])
        app()
    except SystemExit as end:
        if end.__context__ is not None and isinstance(end.__context__.__cause__, KeyboardInterrupt):
            typer.echo(_STOPPED, err=True)
        raise
    except Exception as error:
        from his2lip.errors import His2lipError, redact
        from his2lip.files import disk_full
        from his2lip.logs import log_failure

        log_failure(error)
        full = disk_full(error, what="what this command writes", where=getattr(error, "filename", None))
        if isinstance(error, OSError) and error.errno in _PLACE and error.filename:
            sentence = (
                f"{(error.strerror or 'this place cannot be used').lower()} ({str(error.filename)[:300]})."
            )
        elif isinstance(error, His2lipError):
            sentence = str(error)
        elif full is not None:
            sentence = str(full)
        else:
            sentence = None
        if sentence is None or "--debug" in sys.argv:
            typer.echo(redact("".join(traceback.format_exception(error))), err=True, nl=False)
            sys.exit(1)
        typer.echo(f"his2lip: {redact(sentence)}", err=True)
        sys.exit(2)
