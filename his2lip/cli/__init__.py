"""The command line: each file registers its commands, which import what they need when they run."""

from his2lip.cli.app import app, main

__all__ = ["app", "main"]
