"""`his2lip data`: list, prepare, check, synthesize."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Datasets: list, prepare, check, synthesize.", no_args_is_help=True)


@app.command("list")
def data_list() -> None:
    """List the dataset cards: what each holds, its licence, and its protocols."""
    from his2lip.commands.data import list_datasets

    list_datasets()


@app.command("prepare")
def data_prepare(
    card: Annotated[str, typer.Argument(help="A dataset card's name or file, or `captions`.")],
    root: Annotated[
        Path,
        typer.Option(
            help="The folder as its authors publish it, its archives as downloaded, or one archive."
        ),
    ],
    out: Annotated[str, typer.Option(help="Where the shards go: a folder or an object-store URI.")],
    view: Annotated[
        str | None,
        typer.Option(help="Derive patches: tiles(size=256), tiles(mpp=0.5, size=224)."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after so many images.")] = None,
    unpack_to: Annotated[
        Path | None, typer.Option(help="Where archives are unpacked; ROOT.unpacked where left out.")
    ] = None,
    pseudonymise: Annotated[
        Path | None, typer.Option(help="Hash all names with the key in this file; needs --names.")
    ] = None,
    names: Annotated[
        Path | None, typer.Option(help="Where the map of pseudonyms to names is kept, outside of --out.")
    ] = None,
) -> None:
    """Turn a published dataset (or caption corpus) into shards, quarantining what cannot be read."""
    from his2lip.commands.data import prepare_dataset

    prepare_dataset(
        card, root, out, view=view, limit=limit, unpack_to=unpack_to, key_file=pseudonymise, names=names
    )


@app.command("check")
def data_check(
    what: Annotated[str, typer.Argument(help="A folder or URI of shards, or a card's name or file.")],
    page: Annotated[
        Path | None, typer.Option(help="Write a page with pictures: FILE.html, or a folder for it.")
    ] = None,
) -> None:
    """Check shards (content, counts, leaks, colours, stains) or a card; exit code 1 for any problem."""
    from his2lip.commands.check import check_dataset

    if not check_dataset(what, page=page):
        raise typer.Exit(1)


@app.command("synthesize")
def data_synthesize(
    out: Annotated[str, typer.Option(help="Where they go, one folder a dataset.")],
    layout: Annotated[
        bool, typer.Option("--layout", help="Write folders and files as published instead, for `prepare`.")
    ] = False,
    datasets: Annotated[
        str | None, typer.Option(help="Comma-separated names; all ten where left out.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The generator's seed.")] = 0,
    scale: Annotated[float, typer.Option(min=0.01, help="1 is the demo's size.")] = 1.0,
) -> None:
    """Write generated IHC twins of the datasets as shards, or in their published layouts to rehearse on.

    Both are marked as generated, and so are shards that `prepare` makes of a rehearsal.
    """
    from his2lip.commands.data import rehearse, synthesize

    write = rehearse if layout else synthesize
    names = [name.strip() for name in (datasets or "").split(",") if name.strip()]
    write(out, datasets=names or None, seed=seed, scale=scale)
