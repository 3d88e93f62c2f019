"""A picture of MLflow's table of models, as `his2lip ui` opens it: docs/images/mlflow_ui.png.

Usage: PYTHONPATH=tests:tests/integration python benchmarks/mlflow_screenshot.py STORE OUT.png

STORE is the URI of the MLflow store of a finished benchmark, such as that of `his2lip demo`. The script needs
Chromium and the development dependencies.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

from browser import browser_page
from loopback import on_loopback

WIDTH, HEIGHT = 1700, 560


def main(store: str, out: Path) -> None:
    """Serves the store, opens the link that `his2lip ui` prints, and writes what the browser shows."""
    with tempfile.TemporaryDirectory() as folder:
        printed = Path(folder, "ui.txt")
        command = [sys.executable, "-m", "his2lip", "ui", "--store", store, "--no-browser"]
        with (
            on_loopback(command, env=dict(os.environ), host=(), output=printed) as url,
            browser_page(width=WIDTH, height=HEIGHT) as page,
        ):
            (link, *_) = re.findall(rf"benchmark .*({url}/\S+)", printed.read_text())
            page.goto(link)
            page.locator(".ag-pinned-left-cols-container [row-index='0'] a").first.wait_for()
            for name in ("Close", "Hide banner"):  # of MLflow's assistant, and of the note on shared views
                page.get_by_role("button", name=name, exact=True).click()
            page.wait_for_timeout(1000)
            page.screenshot(path=out)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
