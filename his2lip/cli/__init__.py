"""The command line: options and help only; each command's work is imported when it is asked for."""

from his2lip.cli.app import app, main

__all__ = ["app", "main"]
