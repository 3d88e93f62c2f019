"""The command line: one file per command group; a command imports what it needs when it runs."""

from his2lip.cli.app import app, main

__all__ = ["app", "main"]
