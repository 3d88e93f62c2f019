"""`his2lip models promote`: registers a model in MLflow under an alias that loads it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from his2lip.cli.console import say
from his2lip.cli.models import show_terms
from his2lip.cli.registry import command
from his2lip.errors import CheckpointError, ConfigError, ModelError
from his2lip.resources import STORAGE

if TYPE_CHECKING:
    from his2lip.tracking import Scored, Tracker


@command("models promote")
def promote_model(
    model: Annotated[
        str,
        typer.Argument(help="A checkpoint, a run, a name on the leaderboard, or a model's name."),
    ],
    alias: Annotated[str, typer.Option(help="The alias, such as champion.")],
    name: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="The registered name. Default: the run's.")
    ] = None,
    storage: Annotated[
        Path, typer.Option(help="The storage in which MODEL is looked for as the name of a training run.")
    ] = Path(STORAGE),
) -> None:
    """Register a model in MLflow; commands then accept models:/NAME@ALIAS as a model."""
    from his2lip.config import digest
    from his2lip.models import read_meta, terms_of_use, terms_summary
    from his2lip.serving import model_files
    from his2lip.tracking import Tracker, model_name, promote

    if name is not None and name != model_name(name):
        what = f"MLflow does not accept '{name}' as the name of a registered model"
        raise ConfigError(what, key="--as", fix=f"--as {model_name(name)}")
    tracker = Tracker.open()
    found, logged = _find(model, storage / "train", tracker)
    name = name or model_name(_default_name(model, found))
    with _staged(found) as folder:
        meta = read_meta(folder)
        if logged is not None and logged.weights != meta["tensor_digest"]:
            what = f"the weights here are not those that were logged as '{model}'"
            fix = "to promote the present weights, give the checkpoint's path"
            raise CheckpointError(what, where=found, key=model, fix=fix)
        terms = terms_of_use(found, meta)
        promoted, before = promote(
            tracker, model_files(folder), name=name, alias=alias, weights=meta["tensor_digest"],
            identity=digest(meta), source=found, terms=terms_summary(found, meta),
            description="\n\n".join(terms),
        )  # fmt: skip
    say(f"{found} is version {promoted.version} of '{name}' in MLflow ({tracker.uri})")
    if before is not None and before != promoted.version:
        say(f"  before     '{alias}' was version {before}")
    say(f"  weights    sha256 {promoted.weights}")
    show_terms(terms)
    say(f"use it: his2lip classify IMAGE --model {promoted.uri}")


def _find(model: str, runs: Path, tracker: Tracker) -> tuple[str, Scored | None]:
    """The path or name that loads the model, and its record in MLflow where it was found by a logged name."""
    from his2lip.models import BACKBONES, is_checkpoint
    from his2lip.tracking import scored_models

    for place in (Path(model), Path(model) / "best", runs / model / "best"):
        if is_checkpoint(place):
            return str(place), None
    if model in BACKBONES:
        return model, None
    logged = next((row for row in scored_models(tracker) if model in row.names), None)
    if logged is None:
        return model, None
    if logged.path is None:
        what = f"MLflow does not record where the weights of '{model}' are"
        fix = "promote them by their path (his2lip models blend writes a point of a sweep)"
        raise ModelError(what, key=model, fix=fix)
    return logged.path, logged


def _default_name(model: str, found: str) -> str:
    """The registered name where none is given: the run's, the one already registered, or the model's own."""
    from his2lip.models import is_registered, registered_name

    parts = Path(found).absolute().parts
    if Path(found).is_dir():
        return parts[-2] if parts[-1] in ("best", "last", "checkpoint") else parts[-1]
    return registered_name(model) if is_registered(model) else model


@contextmanager
def _staged(model: str) -> Iterator[Path]:
    """The model's checkpoint without `resume`, in a temporary folder with the name that MLflow stores."""
    from his2lip.models import (
        CHECKPOINT_ARTIFACT,
        copy_checkpoint,
        is_checkpoint,
        load_model,
        meta_of,
        save_checkpoint,
    )

    with tempfile.TemporaryDirectory(prefix="his2lip-") as scratch:
        folder = Path(scratch) / CHECKPOINT_ARTIFACT
        if is_checkpoint(model):
            copy_checkpoint(model, folder)
        else:
            save_checkpoint(folder, load_model(model), meta=meta_of(model))
        yield folder
