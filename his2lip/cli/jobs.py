"""`--address`: runs the same command as a Ray job on a cluster, and follows its log."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

Address = Annotated[
    str | None,
    typer.Option(help="Run as a job on the Ray cluster with this dashboard, such as http://127.0.0.1:8265."),
]


def submit_if_asked(address: str | None) -> None:
    """Where an address is given, submits this command to that cluster and exits with the job's exit code."""
    if address is None:
        return
    from his2lip.jobs import submit

    raise typer.Exit(submit(address, ["python", "-m", "his2lip", *without_address(sys.argv[1:])]))


def without_address(arguments: Sequence[str]) -> list[str]:
    """The arguments without `--address URL` and `--address=URL`."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument == "--address":
            skip = True
        elif not argument.startswith("--address="):
            kept.append(argument)
    return kept
