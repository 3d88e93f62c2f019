"""The name of a model that a user gave as a path: its run, never the number of a folder."""

from __future__ import annotations

from pathlib import Path

# Folders of a run or a sweep that say which of its checkpoints this is: storage/train/NAME/best,
# storage/tune/NAME/trials/7/best. Numbers do too.
_WITHIN = ("best", "last", "checkpoint", "trials")


def name_of(path: str) -> tuple[str, str | None]:
    """(name, which checkpoint of it): NAME and `7` for storage/tune/NAME/trials/7/best.

    A folder that is no checkpoint of a run keeps its path, and other names of models stay as they are; there
    the second value is None.
    """
    folder = path.removeprefix("local-dir:")
    if ":" in folder:  # an open_clip tag, hf-hub:ORG/NAME, models:/NAME/VERSION
        return path, None
    parts = list(Path(folder).parts)
    if not parts or not _is_within(parts[-1]):
        return path, None
    parts = list(Path(folder).absolute().parts)
    within = []
    while len(parts) > 1 and _is_within(parts[-1]):
        within.append(parts.pop())
    numbers = [part for part in within if part.isdecimal()]
    return (parts[-1], (numbers or within)[0]) if len(parts) > 1 else (path, None)


def _is_within(part: str) -> bool:
    return part in _WITHIN or part.isdecimal()
