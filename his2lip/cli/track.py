"""`his2lip track sync`: sends to MLflow what runs did not write: the store was away, or they were killed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from his2lip.cli.console import say
from his2lip.cli.registry import command
from his2lip.errors import ConfigError, RunError
from his2lip.resources import STORAGE


@command("track sync")
def sync_outboxes(
    storage: Annotated[
        Path, typer.Option(help="The storage of the runs; their outboxes lie beside their folders.")
    ] = Path(STORAGE),
) -> None:
    """Send to MLflow what runs, sweeps and benchmarks could not write while it was away.

    The command of a run does the same when it is repeated. A run whose command was killed, so that MLflow
    still shows it as running, ends as killed at its latest record.
    """
    from his2lip.tracking import SUFFIX, Tracker, sync

    if not storage.is_dir():
        what, fix = "there is no storage here", "give the `storage` of the runs"
        raise ConfigError(what, where=storage, key="--storage", fix=fix)
    tracker, total = Tracker.open(), 0
    for outbox in sorted(storage.glob(f"*/*{SUFFIX}")):
        try:
            count, store = sync(outbox, tracker)
        except RunError as busy:
            say(f"{outbox}: {busy.what}")
            continue
        if store != tracker.store:
            say(f"{outbox}: belongs to the store {store}; set MLFLOW_TRACKING_URI to it")
        elif count:
            say(f"{outbox}: {count:,} records sent")
        total += count
    say(f"{total:,} records sent to {tracker.store}")
