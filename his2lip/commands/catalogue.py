"""`his2lip models list, show`: what is known of models, on this machine and in MLflow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from his2lip.commands.console import percent, say, table
from his2lip.commands.models import say_conditions
from his2lip.errors import CheckpointError, TrackingError
from his2lip.resources import sqlite_file, store_uri

if TYPE_CHECKING:
    from his2lip.tracking import Promoted, Scored

_SHOWN = ("name", "step", "tensor_digest", "data_digest", "similarity", "converted", "blend", "code_version")
Row = tuple[str, str, str, str, str]


def list_models() -> None:
    """One table: models known by name, others in the caches, and those in MLflow with their scores."""
    scored, promoted, trouble = _in_mlflow()
    columns = ("model", "what it is", "weights", "licence, terms", "macro F1, percent")
    table(columns, [*_known_rows(scored), *_cached_rows(), *_mlflow_rows(scored, promoted)])
    say("The first column is what a command takes as a model, as are any open_clip architecture with its tag")
    say("(ViT-B-16:laion2b_s34b_b88k), hf-hub:ORG/NAME, local-dir:PATH and a checkpoint's folder.")
    if trouble:
        say(trouble)


def show_model(model: str) -> None:
    """A checkpoint's provenance."""
    from his2lip.models import conditions, meta_of

    meta = meta_of(model)
    if not meta:
        what = "this is no checkpoint of ours, so there is nothing to show"
        raise CheckpointError(what, where=model, fix="his2lip models list says what is known of others")
    table(("", "value"), [(key, meta[key]) for key in _SHOWN if key in meta])
    scores = {key: value for key, value in meta.get("metrics", {}).items() if key.startswith("select/")}
    for key, value in scores.items():
        say(f"{key}: {percent(value) if 'f1' in key or 'accuracy' in key else f'{value:.4f}'}")
    say_conditions(conditions(model, meta))


def _in_mlflow() -> tuple[list[Scored], list[Promoted], str | None]:
    """What the store has, if there is one; a sentence where it cannot be asked."""
    file = sqlite_file(store_uri())
    if file is not None and not file.is_file():
        return [], [], None
    from his2lip.tracking import Tracker, promoted_models, scored_models

    try:
        tracker = Tracker.open()
        return scored_models(tracker), promoted_models(tracker), None
    except TrackingError as error:
        return [], [], f"Models in MLflow are not listed: {error}"


def _known_rows(scored: list[Scored]) -> Iterator[Row]:
    from his2lip.models import cached_backbones, list_backbones

    here = cached_backbones()
    scores = {row.path: row.scores for row in reversed(scored)}
    for b in list_backbones():
        place = f"{b.weights}{'' if b.repository is None else ' (here)' if b.name in here else ' (not here)'}"
        yield b.name, b.what, place, b.licence, _scores(scores.get(b.name, {}))


def _cached_rows() -> Iterator[Row]:
    from his2lip.models import cached_models

    for cached in cached_models():
        yield cached.name, "in the cache", f"{cached.repository} (here)", "its authors' own", ""


def _mlflow_rows(scored: list[Scored], promoted: list[Promoted]) -> Iterator[Row]:
    """Registered models first, then logged ones that are not registered and have no name of their own."""
    from his2lip.models import BACKBONES, in_brief, is_checkpoint, read_meta

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
        terms = in_brief(path, read_meta(path)) if here else ""
        yield _short(path), what, "(here)" if here else "(not here)", terms, _scores(logged.scores)


def _short(path: str) -> str:
    """A path as one would type it from here."""
    place = Path(path)
    return str(place.relative_to(Path.cwd())) if place.is_relative_to(Path.cwd()) else path


def _scores(scores: Mapping[str, float]) -> str:
    """Each dataset's, `select` first."""
    ordered = sorted(scores.items(), key=lambda item: item[0] != "select")
    return ", ".join(f"{name} {percent(value)}" for name, value in ordered)
