"""`his2lip gc`: lists what a storage no longer needs, and removes it on request."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from his2lip.cli.console import say, table
from his2lip.cli.estimates import size
from his2lip.cli.options import split_names
from his2lip.cli.registry import command
from his2lip.errors import ConfigError, His2lipError, RunError, did_you_mean
from his2lip.resources import STORAGE


@command("gc")
def gc(
    storage: Annotated[str, typer.Option(help="The folder of runs, benchmarks and caches.")] = STORAGE,
    kinds: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated kinds. Default: checkpoint (the state to resume from, of finished runs), "
            "run (unfinished runs), leftover (temporary and damaged files). On request: features (cached "
            "embeddings that no board was scored with) and copy (local copies of registered models)."
        ),
    ] = None,
    cache: Annotated[
        str | None, typer.Option(help="The folder of cached embeddings. Default: `cache` of the storage.")
    ] = None,
    shared_with: Annotated[
        list[str] | None,
        typer.Option(help="A further storage whose benchmarks use the same cache. May be repeated."),
    ] = None,
    days: Annotated[
        float,
        typer.Option(min=0, help="Least days for which a run, features or a copy was not touched; 0: all."),
    ] = 7,
    remove: Annotated[bool, typer.Option("--remove", help="Remove what is listed.")] = False,
) -> None:
    """List what can be removed without losing a result; with --remove, remove it.

    Never listed are finished results, prepared datasets, the best checkpoint of every finished run, and
    checkpoints that a model in MLflow refers to. Removed features are computed again when they are needed.
    """
    from his2lip.housekeeping import DEFAULT, KINDS, caches_of, superfluous
    from his2lip.housekeeping import remove as remove_item

    place = _folder(storage, "--storage", "storage", fix="give the `storage` of the runs")
    others = [
        _folder(other, "--shared-with", "storage", fix="give the `storage` of other benchmarks")
        for other in shared_with or ()
    ]
    features = (
        None if cache is None else _folder(cache, "--cache", "cache", fix="give the `cache` of benchmarks")
    )
    chosen = split_names(kinds) or list(DEFAULT)
    for name in chosen:
        if name not in KINDS:
            what = f"there is no kind '{name}'"
            raise ConfigError(what, key="--kinds", fix=did_you_mean(name, KINDS))
    listed = superfluous(place, days=days, needed=_in_mlflow(), cache=features, shared_with=others)
    found = [item for item in listed if item.kind in chosen]
    if "features" in chosen and cache is None:
        for other in caches_of(place):
            say(f"benchmarks here used another cache: --cache {shlex.quote(other)} lists its features")
    if not found:
        say("nothing to remove")
        return
    rows = [(i.kind, str(i.path), size(i.size), f"{i.age_s / 86_400:.1f}", i.why) for i in found]
    table(["kind", "path", "size", "days", "why"], rows)
    total = size(sum(item.size for item in found))
    if not remove:
        say(f"{len(found)} items, {total}; nothing was removed (--remove removes them)")
        return
    kept = 0
    for item in found:
        try:
            remove_item(item)
        except (RunError, OSError) as error:
            kept += 1
            say(f"kept: {item.path}: {error}")
    say(f"{len(found) - kept} of {len(found)} items removed, up to {total}")


def _folder(path: str, key: str, kind: str, *, fix: str) -> Path:
    if "://" in path:
        what, fix = (
            "gc works on folders, not on an object store",
            "remove objects with the tools of the store",
        )
        raise ConfigError(what, where=path, key=key, fix=fix)
    if not Path(path).is_dir():
        raise ConfigError(f"there is no {kind} here", where=path, key=key, fix=fix)
    return Path(path)


def _in_mlflow() -> set[str] | None:
    """The checkpoints that models in MLflow refer to; None, with a sentence, where it does not answer."""
    from his2lip.tracking import Tracker, model_paths

    try:
        tracker = Tracker.open(needed=True)
        found = model_paths(tracker)
    except His2lipError as error:
        say(f"runs and checkpoints are not listed, because MLflow cannot be asked which it needs: {error}")
        return None
    say(f"models in MLflow are those of {tracker.store}")
    return found
