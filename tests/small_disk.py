"""A disk of a few kilobytes that becomes full: a tmpfs of its own, where this process may mount one."""

from __future__ import annotations

import functools
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOMY = 1 << 30  # bytes, more than any test writes
PAGE = 4096  # bytes by which a tmpfs is rounded up


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@dataclass(frozen=True)
class Disk:
    """A mounted tmpfs."""

    path: Path

    def resize(self, size: int) -> None:
        """Makes it `size` bytes, not less than it has."""
        _run("mount", "-o", f"remount,size={max(size, PAGE)}", str(self.path))

    @property
    def used(self) -> int:
        """Bytes that its files take."""
        found = os.statvfs(self.path)
        return (found.f_blocks - found.f_bfree) * found.f_frsize


@contextmanager
def small_disk(path: Path, size: int = ROOMY) -> Iterator[Disk]:
    """A new disk of `size` bytes at `path`."""
    path.mkdir(parents=True, exist_ok=True)
    _run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path))
    try:
        yield Disk(path)
    finally:
        _run("umount", "--lazy", str(path))


@functools.cache
def _may_mount() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        command = ["mount", "-t", "tmpfs", "-o", "size=4096", "tmpfs", folder]
        try:
            done = subprocess.run(command, capture_output=True, check=False).returncode == 0
        except OSError:
            return False
        if done:
            _run("umount", folder)
        return done


needs_mount = pytest.mark.skipif(not _may_mount(), reason="this user may not mount a small disk")
