"""`his2lip classify`, `calibrate` and `retrieve`: a chosen model on images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()

Model = Annotated[str, typer.Option(help="A checkpoint, a backbone's name or an MLflow URI.")]


@app.command()
def classify(
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    model: Model,
    prompts: Annotated[str, typer.Option(help="A prompt set's name or file.")] = "tissue",
    biomarker: Annotated[
        str | None, typer.Option(help="What the lab stained for: says whether it is positive.")
    ] = None,
    guess_biomarker: Annotated[
        bool, typer.Option("--guess-biomarker", help="Guess what it was stained for; marked as a guess.")
    ] = False,
    calibration: Annotated[
        list[Path] | None, typer.Option(help="What `calibrate` wrote: adds a probability. May be repeated.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the rows here as CSV too.")] = None,
    slide: Annotated[
        bool, typer.Option("--slide", help="Tile every image, not only what OpenSlide opens beyond 3000 px.")
    ] = False,
    mpp: Annotated[
        float | None,
        typer.Option(min=0.01, help="Microns a pixel of a slide's tiles; the model's by default."),
    ] = None,
    tile: Annotated[
        int | None, typer.Option(min=8, help="Pixels a side of a tile; the model's by default.")
    ] = None,
    slide_mpp: Annotated[
        float | None, typer.Option(min=0.01, help="Microns a pixel of slides that do not say theirs.")
    ] = None,
    heat: Annotated[
        str | None, typer.Option(metavar="CLASS", help="Also draw the similarity of a slide's tiles to this.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where heat maps and GeoJSON of slides go.")] = Path(
        "runs/slides"
    ),
) -> None:
    """Say which tissue type each image or slide shows, and the staining of a biomarker that you name.

    Answers come as the model compares (cosine, or dot product), with margin and winning prompt. A slide is
    tiled at the scale that the model was trained at, and gets a heat map and tiles that QuPath reads.
    """
    from his2lip.commands.slides import SlideOptions
    from his2lip.commands.use import run_classify

    run_classify(
        images,
        model=model,
        prompts=prompts,
        biomarker=biomarker,
        guess_biomarker=guess_biomarker,
        calibration=calibration or [],
        slides=SlideOptions(always=slide, mpp=mpp, tile=tile, slide_mpp=slide_mpp, heat=heat, out=out),
        csv=csv,
    )


@app.command()
def calibrate(
    model: Annotated[str, typer.Argument(help="A checkpoint, a backbone's name or an MLflow URI.")],
    shards: Annotated[str, typer.Option(help="A folder or URI of labelled shards.")],
    split: Annotated[
        str | None, typer.Option(help="A split whose role is select; else the one there is.")
    ] = None,
    prompts: Annotated[str, typer.Option(help="A prompt set's name or file.")] = "tissue",
    biomarker: Annotated[str | None, typer.Option(help="Calibrate the staining of this one instead.")] = None,
    label: Annotated[
        str | None,
        typer.Option(help="The column that holds the truth; by default tissue, or label for staining."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the temperature goes.")] = Path("calibration.json"),
) -> None:
    """Fit the temperature that turns similarities into probabilities, on a split kept for selection."""
    from his2lip.commands.use import run_calibrate

    run_calibrate(
        model, shards=shards, split=split, prompts=prompts, biomarker=biomarker, label=label, out=out
    )


@app.command()
def retrieve(
    query: Annotated[str, typer.Argument(help="An image file, or a sentence.")],
    model: Model,
    index: Annotated[str, typer.Option(help="A folder or URI of shards to search in.")],
    top: Annotated[int, typer.Option(min=1, help="How many patches to return.")] = 10,
    split: Annotated[
        list[str] | None, typer.Option(help="Search in this split alone. May be repeated.")
    ] = None,
    tissue: Annotated[str | None, typer.Option(help="Only patches of this tissue type.")] = None,
    biomarker: Annotated[str | None, typer.Option(help="Only patches of this biomarker.")] = None,
    keep_query: Annotated[
        bool, typer.Option("--keep-query", help="Also return patches that are the query image itself.")
    ] = False,
    csv: Annotated[Path | None, typer.Option(help="Write the rows here as CSV too.")] = None,
    page: Annotated[Path | None, typer.Option(help="Write a page of thumbnails, one HTML file.")] = None,
) -> None:
    """Find the patches most like an image or a sentence.

    Embeddings are kept for the next query.
    """
    from his2lip.commands.use import run_retrieve

    run_retrieve(
        query,
        model=model,
        index=index,
        top=top,
        splits=split or [],
        tissue=tissue,
        biomarker=biomarker,
        keep_query=keep_query,
        csv=csv,
        page=page,
    )
