"""`his2lip doctor` and `his2lip ui`: this machine, and the page where a team chooses."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer()


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
