"""`his2lip models list, show`: models that are known, on this machine and in MLflow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from his2lip.cli.console import percent, say, table
from his2lip.cli.options import MODEL_HELP
from his2lip.cli.registry import command
from his2lip.errors import CheckpointError, TrackingError
from his2lip.resources import sqlite_file, store_uri

if TYPE_CHECKING:
    from his2lip.tracking import Promoted, Scored

_SHOWN = ("name", "step", "tensor_digest", "data_digest", "similarity", "converted", "blend", "code_version")
TableRow = tuple[str, str, str, str, str]


@command("models list")
def list_models() -> None:
    """List models: known by name, in this machine's caches, and in MLflow with their scores."""
    scored, promoted, trouble = _in_mlflow()
    columns = ("model", "what it is", "weights", "licence, terms", "macro F1, percent")
    table(columns, [*_known_rows(scored), *_cached_rows(), *_mlflow_rows(scored, promoted)])
    say("Commands accept the names in the first column as a model, and also an open_clip architecture with")
    say("its tag (ViT-B-16:laion2b_s34b_b88k), hf-hub:ORG/NAME, local-dir:PATH and a checkpoint's folder.")
    if trouble:
        say(trouble)


@command("models show")
def show_model(model: Annotated[str, typer.Argument(help=MODEL_HELP)]) -> None:
    """Show what a checkpoint was made from: configuration, data, step, metrics, digests, terms of use."""
    from his2lip.models import load_model, meta_of, terms_of_use

    meta = meta_of(model)
    if not meta:
        what = "this is not a checkpoint of his2lip, so its provenance is unknown"
        raise CheckpointError(
            what, where=model, fix="his2lip models list shows what is known of other models"
        )
    load_model(model)  # a damaged checkpoint is an error, whatever its provenance says
    table(("", "value"), [(key, meta[key]) for key in _SHOWN if key in meta])
    scores = {key: value for key, value in meta.get("metrics", {}).items() if key.startswith("select/")}
    for key, value in scores.items():
        say(f"{key}: {percent(value) if 'f1' in key or 'accuracy' in key else f'{value:.4f}'}")
    show_terms(terms_of_use(model, meta))


def show_terms(terms: Sequence[str]) -> None:
    """Prints the terms of use, one per line."""
    for i, term in enumerate(terms):
        say(f"  {'' if i else 'terms':<10} {term}")


def _in_mlflow() -> tuple[list[Scored], list[Promoted], str | None]:
    """What the store holds, if there is one, and a sentence where it cannot be read."""
    file = sqlite_file(store_uri())
    if file is not None and not file.is_file():
        return [], [], None
    from his2lip.tracking import Tracker, promoted_models, scored_models

    try:
        tracker = Tracker.open()
        return scored_models(tracker), promoted_models(tracker), None
    except TrackingError as error:
        return [], [], f"Models in MLflow are not listed: {error}"


def _known_rows(scored: list[Scored]) -> Iterator[TableRow]:
    from his2lip.models import BACKBONES, cached_backbones

    here = cached_backbones()
    scores = {row.path: row.scores for row in reversed(scored)}
    for b in BACKBONES.values():
        place = f"{b.weights}{'' if b.repository is None else ' (here)' if b.name in here else ' (not here)'}"
        yield b.name, b.what, place, b.licence, _scores(scores.get(b.name, {}))


def _cached_rows() -> Iterator[TableRow]:
    from his2lip.models import cached_models

    for cached in cached_models():
        yield cached.name, "in the cache", f"{cached.repository} (here)", "its authors' own", ""


def _mlflow_rows(scored: list[Scored], promoted: list[Promoted]) -> Iterator[TableRow]:
    """Registered models first, then logged ones that are not registered and have no name of their own."""
    from his2lip.models import BACKBONES, is_checkpoint, read_meta, terms_summary

    scores = {row.weights: row.scores for row in scored}
    registered = {row.weights for row in promoted}
    for row in promoted:
        what = ", ".join([f"version {row.version} of {row.name}", *row.aliases])
        yield row.uri, what, "MLflow's registry", row.terms or "", _scores(scores.get(row.weights or "", {}))
    for logged in scored:
        path = logged.path
        if path is None or path in BACKBONES or logged.weights in registered:
            continue
        here, what = is_checkpoint(path), f"{logged.names[0]}, logged by {logged.experiment}"
        terms = terms_summary(path, read_meta(path)) if here else ""
        yield _short(path), what, "(here)" if here else "(not here)", terms, _scores(logged.scores)


def _short(path: str) -> str:
    """The path relative to the current folder where it lies below it."""
    place = Path(path)
    return str(place.relative_to(Path.cwd())) if place.is_relative_to(Path.cwd()) else path


def _scores(scores: Mapping[str, float]) -> str:
    """The score on each dataset, `select` first."""
    ordered = sorted(scores.items(), key=lambda item: item[0] != "select")
    return ", ".join(f"{name} {percent(value)}" for name, value in ordered)
