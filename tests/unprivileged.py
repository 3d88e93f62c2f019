"""Runs a script as a user who may not list every folder, also where the tests run as root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# Root may list every folder, unless it has given up these two capabilities.
_RIGHTS = "-dac_override,-dac_read_search"
_LIKE_A_USER = ("setpriv", f"--bounding-set={_RIGHTS}", f"--inh-caps={_RIGHTS}")

needs_setpriv = pytest.mark.skipif(
    os.geteuid() == 0 and shutil.which("setpriv") is None,
    reason="root may list every folder, and setpriv, which takes that right away, is not installed",
)


def run_as_user(script: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs a Python script in `cwd` without the rights of root."""
    prefix = _LIKE_A_USER if os.geteuid() == 0 else ()
    return subprocess.run(
        [*prefix, sys.executable, "-c", script, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
