"""`his2lip classify` and `his2lip retrieve`: a chosen model on images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


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
