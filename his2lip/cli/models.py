"""`his2lip models`: what is known by name, and what is in a checkpoint."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="Models: what is known by name, and what is in a checkpoint.", no_args_is_help=True)


@app.command("list")
def models_list() -> None:
    """List the backbones known by name: where their weights come from, and their licence."""
    from his2lip.commands.models import list_models

    list_models()


@app.command("show")
def models_show(model: Annotated[str, typer.Argument(help="A checkpoint's folder.")]) -> None:
    """Show what a checkpoint was made from: configuration, data, step, metrics, digests."""
    from his2lip.commands.models import show_model

    show_model(model)
