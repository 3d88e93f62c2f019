"""`his2lip retrieve`: the patches of prepared shards that are most similar to an image or a sentence."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from his2lip.cli.basis import show_basis
from his2lip.cli.console import say, table
from his2lip.cli.options import (
    SIMILARITIES,
    Cache,
    CsvFile,
    Model,
    Precision,
    check_outputs,
    refuse_unused,
    write_csv,
)
from his2lip.cli.registry import command
from his2lip.errors import ConfigError
from his2lip.resources import CACHE


@command("retrieve")
def retrieve(
    query: Annotated[str, typer.Argument(help="An image file, or a sentence.")],
    model: Model,
    index: Annotated[str, typer.Option(help="A folder or URI of shards to search in.")],
    top: Annotated[int, typer.Option(min=1, help="The number of patches to return.")] = 10,
    split: Annotated[
        list[str] | None, typer.Option(help="Search only in this split. May be repeated.")
    ] = None,
    tissue: Annotated[str | None, typer.Option(help="Only patches of this tissue type.")] = None,
    biomarker: Annotated[str | None, typer.Option(help="Only patches of this biomarker.")] = None,
    keep_query: Annotated[
        bool, typer.Option("--keep-query", help="Also return patches that are the query image itself.")
    ] = False,
    image_mpp: Annotated[
        float | None, typer.Option(min=0.05, max=20, help="Microns per pixel of the query image.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also show results that are held back, with the reason.")
    ] = False,
    csv: CsvFile = None,
    page: Annotated[Path | None, typer.Option(help="Write a page of thumbnails, one HTML file.")] = None,
    cache: Cache = CACHE,
    precision: Precision = "fp32",
) -> None:
    """Find the patches that are most similar to an image or a sentence.

    Embeddings are cached for the next query. The results state what they rest on. A query image that a
    model cannot judge, such as glass or one of another scale, is not answered; --force shows the results.
    """
    from his2lip.serving import (
        NOT_ANSWERED,
        Scale,
        build_index,
        load_for_inference,
        names_image,
        query_image,
        stated_mpp,
        write_page,
    )

    outputs = {"--csv": csv, "--page": page}
    check_outputs(outputs, inputs=[Path(query)] if names_image(query) else [])
    if names_image(query) and not Path(query).is_file():
        if Path(query).is_dir():
            fix = "name an image file in it, or write a sentence of more words"
            raise ConfigError("this is a folder, not an image", where=query, key="QUERY", fix=fix)
        fix = "check the path, or write a sentence"
        raise ConfigError("there is no such image file", where=query, key="QUERY", fix=fix)
    if not query.strip():
        fix = "write a sentence, or name an image file"
        raise ConfigError("the query is empty", key="QUERY", fix=fix)
    if not names_image(query):
        unused = {"--keep-query": keep_query, "--image-mpp": image_mpp}
        refuse_unused(unused, "is about a query image, and the query is a sentence")
    loaded = load_for_inference(model, precision=precision)
    opened = build_index(index, loaded.model, cache=cache, splits=split or None, history=loaded.history)
    file_mpp = stated_mpp(Path(query)) if names_image(query) else None
    scale = Scale.of(file=file_mpp, option=image_mpp)
    check = opened.check(query, scale=scale, tissue=tissue, biomarker=biomarker)
    reason = None if check.refusal is None else check.refusal.reason
    held_back = reason is not None and not force
    matches = []
    if not held_back:
        matches = opened.find(query, top=top, tissue=tissue, biomarker=biomarker, keep_query=keep_query)
    rows = [(m.rank, m.patch_id, m.similarity, m.split, m.tissue, m.biomarker) for m in matches]
    if reason is not None:
        say(f"{NOT_ANSWERED if held_back else 'forced'}: {reason}")
    if not held_back:
        heads = ("rank", "patch", SIMILARITIES[loaded.model.similarity], "split", "tissue type", "biomarker")
        table(heads, [(rank, patch, f"{value:.3f}", *rest) for rank, patch, value, *rest in rows])
    computed = opened.cache.counts.images
    say(f"{opened.searched(tissue, biomarker):,} patches searched, {computed:,} images embedded now")
    basis = asdict(check.basis)
    show_basis([{"image": query, "question": "retrieval", **basis}])
    if csv is not None:
        # `biomarker` is the basis's: what is known of the biomarker that was asked for.
        labels = ("patch_tissue", "patch_biomarker")
        columns = ("rank", "patch_id", "similarity", "split", *labels, "reason", "forced")
        marks = (reason, "forced" if reason and force else None)
        written = [(None, NOT_ANSWERED, *[None] * 4)] if held_back else rows
        write_csv(csv, (*columns, *basis), [(*row, *marks, *basis.values()) for row in written])
    if page is not None:
        asked = query_image(query) if names_image(query) else query
        source = f"{opened.shards.info.title}, by {model}"
        write_page(page, matches, opened.images(matches), query=asked, remark=source, check=check)
        say(f"written to {page}")
