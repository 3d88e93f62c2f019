"""The table of commands: each file of this package registers its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

COMMANDS: dict[str, Callable[..., None]] = {}  # words on the command line -> function with typer options

F = TypeVar("F", bound=Callable[..., None])


def command(words: str) -> Callable[[F], F]:
    """Registers a function as the command `his2lip WORDS`, such as "train" or "data list"."""

    def register(function: F) -> F:
        COMMANDS[words] = function
        return function

    return register
