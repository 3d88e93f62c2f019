"""`his2lip models`: list, show, convert, blend, export, promote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(help="Models: list, show, convert, blend, export, promote.", no_args_is_help=True)

Model = Annotated[str, typer.Argument(help="A checkpoint's folder, a name or an MLflow URI.")]
Out = Annotated[Path, typer.Option(help="The folder to write; it must not exist, or be empty.")]


@app.command("list")
def models_list() -> None:
    """List models: known by name, in this machine's caches, and in MLflow with their scores."""
    from his2lip.commands.catalogue import list_models

    list_models()


@app.command("show")
def models_show(model: Model) -> None:
    """Show what a checkpoint was made from: configuration, data, step, metrics, digests, terms of use."""
    from his2lip.commands.catalogue import show_model

    show_model(model)


@app.command("convert")
def models_convert(
    file: Annotated[Path, typer.Argument(help="The file or folder as its authors publish it.")],
    out: Out,
    source: Annotated[
        Literal["released", "plip", "transformers", "open_clip"],
        typer.Option(
            "--from",
            help="released: one state dict of the HIS2LIP authors' training code. plip, transformers: a "
            "CLIPModel's folder. open_clip: a hub layout's folder, or a state dict of its training.",
        ),
    ],
    backbone: Annotated[
        str | None,
        typer.Option(help="released: clip or plip. open_clip's state dict: its architecture."),
    ] = None,
    tokenizer: Annotated[
        Literal["clip", "bert"],
        typer.Option(help="Whose ids a released text tower was trained on (bert: bert-base-uncased)."),
    ] = "clip",
) -> None:
    """Turn weights that others publish into a checkpoint; pickled programs are refused, not run."""
    from his2lip.commands.models import convert_model

    convert_model(file, out, source=source, backbone=backbone, tokenizer=tokenizer)


@app.command("blend")
def models_blend(
    base: Annotated[str, typer.Argument(help="The model that the other was tuned from.")],
    tuned: Annotated[str, typer.Argument(help="The fine-tuned model.")],
    alpha: Annotated[float, typer.Option(help="0 is BASE, 1 is TUNED.")],
    out: Out,
) -> None:
    """Interpolate the weights of a model and its fine-tuned self (WiSE-FT, Wortsman et al. 2022)."""
    from his2lip.commands.models import blend_models

    blend_models(base, tuned, out, alpha=alpha)


@app.command("export")
def models_export(
    model: Model,
    out: Out,
    format: Annotated[
        Literal["open_clip", "transformers"],
        typer.Option(help="open_clip: any model, as local-dir:. transformers: CLIPModel, B/32's kin alone."),
    ] = "open_clip",
) -> None:
    """Write a model for another tool, and say the terms of use that it inherited."""
    from his2lip.commands.models import export_model

    export_model(model, out, format=format)


@app.command("promote")
def models_promote(
    model: Annotated[
        str,
        typer.Argument(help="A checkpoint, a run, a name on the leaderboard, or a model's name."),
    ],
    alias: Annotated[str, typer.Option(help="The alias, such as champion.")],
    name: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="The registered name; the run's by default.")
    ] = None,
) -> None:
    """Register a model in MLflow; models:/NAME@ALIAS then works wherever a model's name does."""
    from his2lip.commands.promote import promote_model

    promote_model(model, alias=alias, name=name)
