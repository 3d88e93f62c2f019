"""Arguments and options that several commands take, and what they turn into."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

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


def split_names(names: str | None) -> list[str] | None:
    return [n.strip() for n in names.split(",") if n.strip()] if names else None


def submit(address: str) -> None:
    """Sends this very command, less `--address`, to a cluster, and ends with its exit code."""
    from his2lip.commands.remote import submit_command

    raise typer.Exit(submit_command(address, sys.argv[1:]))
