"""Headless Chromium for tests of pages: Debian's browser, driven by Playwright. Skips where it is absent."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_QUIET = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def browser_page(width: int = 1280, height: int = 800, dark: bool = False) -> Iterator[Page]:
    """A page of `width` x `height` CSS pixels; requests go to this machine's own addresses only."""
    path = next((found for name in _NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=Path(path), headless=True, chromium_sandbox=False, args=list(_QUIET)
        )
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
        )
        context.route(
            lambda url: (
                not url.startswith(("file:", "data:", "blob:", "http://127.0.0.1", "http://localhost"))
            ),
            lambda route: route.abort(),
        )
        yield context.new_page()
        context.close()
        browser.close()
