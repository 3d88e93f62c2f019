"""The line that a run starts with: how long it will take, how much disk and, on a cluster, how much money."""

from __future__ import annotations

from typing import TYPE_CHECKING

from his2lip.cli.console import say

if TYPE_CHECKING:
    from his2lip.evaluation import GridEstimate
    from his2lip.training import RunEstimate


def show_estimate(
    found: RunEstimate, *, gpus: int, trials: int | None = None, at_once: int = 1, kept: int = 1
) -> None:
    """Prints what is known of a run before it starts; nothing for a run that is finished.

    gpus    that it asks for, over all trials at once: they decide the price of its machines on a cluster
    trials  those of a sweep, each as long as the run, `at_once` of them together
    kept    trials of a sweep whose checkpoints are on the disk at the same time, at most
    """
    rounds = 1 if trials is None else -(-trials // at_once)
    if not found.steps or not rounds:
        return
    parts = [
        f"{found.steps:,} steps" if trials is None else f"up to {trials} trials of {found.steps:,} steps"
    ]
    if found.seconds is None:
        parts.append("time and disk not known before the first report: no finished run of this kind is here")
    else:
        seconds = found.seconds * rounds
        parts.append(f"about {duration(seconds)} (at the speed of run '{found.based_on}')")
        parts += _disk(found.bytes if trials is None else (found.best or 0) * kept, found.free)
        parts += _cost(seconds, gpus)
    say("estimate: " + ", ".join(parts))


def show_grid_estimate(found: GridEstimate) -> None:
    """Prints what is known of a benchmark before its grid begins."""
    parts = [f"{found.cells:,} grid cells"]
    if found.finished == found.cells:
        say(f"estimate: {parts[0]}, all of them finished: seconds")
        return
    if found.finished:
        parts[0] += f" ({found.finished:,} of them finished)"
    if found.missing:
        cached = "none" if found.missing == found.images else f"{found.images - found.missing:,}"
        parts.append(f"{found.missing:,} images to embed ({cached} of {found.images:,} in the cache)")
    else:
        parts.append(f"no image to embed (all {found.images:,} in the cache)")
    if found.unread:
        parts.append(f"not counting {found.unread:,} of the grid cells, whose images cannot be read")
    if found.seconds is None:
        models = ", ".join(found.unknown)
        parts.append(
            f"time and disk not known before the first images: no benchmark with this cache ran {models}"
        )
    elif not found.seconds:
        parts.append("seconds per grid cell")
    elif found.missing:
        parts.append(f"about {duration(found.seconds)} (at the speed of earlier benchmarks)")
        parts += _disk(found.bytes, found.free)
        parts += _cost(found.seconds, found.gpus)
    else:
        parts.append(f"about {duration(max(found.seconds, 1.0))}")
        parts += _cost(found.seconds, found.gpus)
    say("estimate: " + ", ".join(parts))


def duration(seconds: float) -> str:
    """Such as 45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(count: int) -> str:
    """Bytes with a unit, such as 1.5 MB."""
    value, unit = float(count), "B"
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def _disk(needed: int | None, free: int | None) -> list[str]:
    if needed is None:
        return []
    if free is None:
        return [f"{size(needed)} of disk"]
    lacking = "" if needed < free else ", which is NOT enough"
    return [f"{size(needed)} of the {size(free)} free on its disk{lacking}"]


def _cost(seconds: float, gpus: int) -> list[str]:
    """The price of the workers on a cluster of cluster.yaml, whose head runs this command."""
    from his2lip.cloud import budget_left, usd_per_hour
    from his2lip.runtime import is_local

    if is_local() or (left := budget_left()) is None:
        return []
    told = f"({left:.2f} USD of the budget are left)"
    if not gpus:
        return [f"price not known, because its workers need no GPU and run where CPUs are free {told}"]
    if (price := usd_per_hour(gpus)) is None:
        return []
    least, most = (f"{usd * seconds / 3600:.2f}" for usd in price)
    cost = least if least == most else f"{least} to {most}"
    return [f"{cost} USD for its workers, by the machines that Ray chooses {told}"]
