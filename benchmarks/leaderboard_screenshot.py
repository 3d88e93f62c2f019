"""A picture of the leaderboard page, "By dataset": docs/images/leaderboard.png.

Usage: PYTHONPATH=tests python benchmarks/leaderboard_screenshot.py INDEX.html OUT.png

INDEX.html is the page of a finished benchmark, such as that of `his2lip demo`. The script needs Chromium and
the development dependencies.
"""

from __future__ import annotations

import sys
from pathlib import Path

from browser import browser_page


def main(index: Path, out: Path) -> None:
    """Opens the page and writes what the browser shows of the section, over the page's whole width."""
    with browser_page() as page:
        page.goto(index.resolve().as_uri())
        box = page.locator("#datasets").bounding_box()
        assert box is not None
        assert page.viewport_size is not None
        clip = {"x": 0, "y": box["y"], "width": page.viewport_size["width"], "height": box["height"]}
        page.screenshot(path=out, full_page=True, clip=clip)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
