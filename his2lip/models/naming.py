"""Names of models that are folders: the path in them, and the name of its run."""

from __future__ import annotations

from pathlib import Path

LOCAL = "local-dir:"  # open_clip's mark of a name that is the path of a folder

# Folders of a run or a sweep that say which of its checkpoints this is: storage/train/NAME/best,
# storage/tune/NAME/trials/7/best. Numbers do too.
_WITHIN = ("best", "last", "checkpoint", "trials")


def folder_of(name: str) -> str:
    """PATH of `local-dir:PATH`; any other name as it is."""
    return name.removeprefix(LOCAL)


def name_of(path: str) -> tuple[str, str | None]:
    """(name, which checkpoint of it): NAME and `7` for storage/tune/NAME/trials/7/best.

    A folder that is no checkpoint of a run keeps its path, and other names of models stay as they are; there
    the second value is None.
    """
    folder = folder_of(path)
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
