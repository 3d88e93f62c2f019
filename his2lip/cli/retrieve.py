"""`his2lip retrieve`: the patches of prepared shards that are most similar to an image or a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from his2lip.cli.console import say, table
from his2lip.cli.options import SIMILARITIES, Cache, CsvFile, Model, write_csv
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
    csv: CsvFile = None,
    page: Annotated[Path | None, typer.Option(help="Write a page of thumbnails, one HTML file.")] = None,
    cache: Cache = CACHE,
) -> None:
    """Find the patches that are most similar to an image or a sentence.

    Embeddings are cached for the next query.
    """
    from his2lip.serving import build_index, load_for_inference, names_image, query_image, write_page

    if names_image(query) and not Path(query).is_file():
        fix = "check the path, or write a sentence"
        raise ConfigError("there is no such image file", where=query, key="QUERY", fix=fix)
    if not query.strip():
        fix = "write a sentence, or name an image file"
        raise ConfigError("the query is empty", key="QUERY", fix=fix)
    loaded = load_for_inference(model)
    opened = build_index(index, loaded, cache=cache, splits=split or None)
    matches = opened.find(query, top=top, tissue=tissue, biomarker=biomarker, keep_query=keep_query)
    rows = [(m.rank, m.patch_id, m.similarity, m.split, m.tissue, m.biomarker) for m in matches]
    heads = ("rank", "patch", SIMILARITIES[loaded.similarity], "split", "tissue type", "biomarker")
    table(heads, [(rank, patch, f"{similarity:.3f}", *rest) for rank, patch, similarity, *rest in rows])
    computed = opened.cache.counts.images
    say(f"{len(opened.table):,} patches searched, {computed:,} images embedded now")
    if csv is not None:
        write_csv(csv, ("rank", "patch_id", "similarity", "split", "tissue", "biomarker"), rows)
    if page is not None:
        shown = query_image(query) if names_image(query) else query
        source = (
            f"{opened.shards.info.name}{' (generated)' if opened.shards.info.generated else ''}, by {model}"
        )
        write_page(page, matches, opened.images(matches), query=shown, remark=source)
        say(f"written to {page}")
