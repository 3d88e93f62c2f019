"""Pages that a command serves on this machine: the port they need, and the browser that shows them."""

from __future__ import annotations

import os
import socket
import sys
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager

from his2lip.errors import ConfigError, first_line

LOCALHOST = "127.0.0.1"


def check_port(port: int, host: str = LOCALHOST) -> None:
    """Raises ConfigError where no server can listen on this address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with port_needed(port, host), socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do
        probe.bind((host, port))


@contextmanager
def port_needed(port: int, host: str = LOCALHOST) -> Iterator[None]:
    """A block whose OSError means that the address cannot be used. Raises ConfigError for it."""
    try:
        yield
    except OSError as error:
        what = f"this address cannot be used: {first_line(error)}"
        fix = "choose another --port" + ("" if host == LOCALHOST else " or --host")
        raise ConfigError(what, where=f"{host}:{port}", key="--port", fix=fix) from None


def open_page(link: str) -> None:
    """Opens a page in the user's browser, where this machine has a screen or BROWSER names one."""
    has_screen = sys.platform in ("darwin", "win32") or {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
    if has_screen or "BROWSER" in os.environ:
        webbrowser.open(link)
