"""`his2lip doctor`: what this machine has, what is missing, and how to fix it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import typer

from his2lip.cli.console import say, table
from his2lip.cli.registry import command
from his2lip.mlflow_store import sqlite_file, store_uri
from his2lip.runtime import protect_token, token_path, usable_cpus

_PACKAGES = ("ray", "torch", "torchvision", "open_clip_torch", "mlflow", "optuna", "pyarrow", "scikit-learn")


@dataclass(frozen=True)
class Finding:
    """One line of the report. `state` is ok, note (works with a limit) or missing (something will fail)."""

    what: str
    found: str
    state: str = "ok"
    fix: str = ""


@command("doctor")
def doctor() -> None:
    """Report what this machine has, what is missing, and how to fix it."""
    findings = list(examine())
    table(["", "what", "found"], [(f.state, f.what, f.found) for f in findings])
    for finding in findings:
        if finding.fix:
            say(f"{finding.what}: {finding.fix}")
    broken = sum(f.state == "missing" for f in findings)
    say("Nothing is missing." if not broken else f"Missing: {broken}; see the lines above.")
    if broken:
        raise typer.Exit(1)


def examine() -> Iterator[Finding]:
    """All findings, the fast ones first."""
    yield _python()
    yield from (_package(name) for name in _PACKAGES)
    yield _native("openslide", "whole slides", "pip install openslide-bin")
    yield _native("simplejpeg", "fast JPEG decoding", "pip install simplejpeg")
    yield _cores()
    yield _gpu()
    yield _disk()
    yield _shared_memory()
    yield _ray_token()
    yield _weights()
    yield _store()


def _python() -> Finding:
    return Finding("Python", ".".join(map(str, sys.version_info[:3])))


def _package(name: str) -> Finding:
    import importlib.metadata as metadata

    try:
        return Finding(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(name, "not installed", "missing", "make install")


def _native(module: str, purpose: str, fix: str) -> Finding:
    try:
        __import__(module)
    except Exception as error:  # a broken shared library raises anything from OSError to ImportError
        return Finding(module, f"{type(error).__name__}: {error}", "missing", f"{purpose}: {fix}")
    return Finding(module, purpose)


def _cores() -> Finding:
    cpus = usable_cpus()
    if cpus >= 2:
        return Finding("CPU cores", str(cpus))
    return Finding("CPU cores", "1", "note", "training and reading share one core; two are recommended")


def _gpu() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("GPU", "none", "note", "training runs on the CPU: fine for `tiny`, slow for ViT-B")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Finding("GPU", ", ".join(names) + (", bf16" if torch.cuda.is_bf16_supported() else ", no bf16"))


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    if free > 5 << 30:
        return Finding("disk here", f"{free / 2**30:.0f} GiB free")
    return Finding(
        "disk here", f"{free / 2**30:.1f} GiB free", "note", "run where there is more: cd, or storage=URI"
    )


def _shared_memory() -> Finding:
    """Ray's object store is in shared memory; where that is small, Ray uses files on disk, which are slow."""
    if not Path("/dev/shm").is_dir():
        return Finding("shared memory", "no /dev/shm (not Linux)")
    free = shutil.disk_usage("/dev/shm").free
    if free >= 1 << 30:
        return Finding("shared memory", f"{free / 2**30:.1f} GiB free")
    return Finding("shared memory", f"{free / 2**20:.0f} MiB", "note", "in Docker: --shm-size=4g")


def _ray_token() -> Finding:
    path = token_path()
    try:
        exposed = protect_token(create=False)
    except OSError:
        return Finding("Ray token", str(path), "note", f"others can read it: chmod 600 {path}")
    if exposed:
        return Finding("Ray token", f"{path}, now readable only by you (others could read it)")
    return Finding("Ray token", str(path) if path.exists() else "none yet (the first run writes one)")


def _weights() -> Finding:
    from his2lip.models import cached_repositories

    if cached := cached_repositories():
        return Finding("cached weights", ", ".join(cached))
    return Finding(
        "cached weights", "none", "note", "pretrained backbones download at first use; `tiny` needs none"
    )


def _store() -> Finding:
    from his2lip.errors import TrackingError
    from his2lip.tracking import Tracker

    file = sqlite_file(store_uri())
    if file is not None and not file.exists():
        return Finding("MLflow store", f"{store_uri()} (none yet; the first run makes it)")
    try:
        return Finding("MLflow store", Tracker.open().uri)
    except TrackingError as error:
        return Finding("MLflow store", "not reachable", "missing", str(error))
