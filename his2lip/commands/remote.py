"""`--address`: the very same command, run as a Ray job on a cluster and followed here."""

from __future__ import annotations

from collections.abc import Sequence


def submit_command(address: str, arguments: Sequence[str]) -> int:
    """Submits `his2lip` with `arguments` less `--address …` to the cluster; the job's honest exit code."""
    from his2lip.jobs import submit

    return submit(address, ["python", "-m", "his2lip", *without_address(arguments)])


def without_address(arguments: Sequence[str]) -> list[str]:
    """The arguments less `--address URL` and `--address=URL`."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument == "--address":
            skip = True
        elif not argument.startswith("--address="):
            kept.append(argument)
    return kept
