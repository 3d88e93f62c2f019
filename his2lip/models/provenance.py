"""What a checkpoint directory says of itself, read without torch or open_clip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from his2lip.errors import CheckpointError

META = "his2lip.json"
FORMAT = 1


def read_meta(folder: str | Path) -> dict[str, Any]:
    """`his2lip.json` of a checkpoint: config, vocabularies, step, metrics, tensor digest, code version."""
    folder = settled(Path(folder))
    meta = read_json(folder / META)
    if meta.get("format") != FORMAT:
        mend = "load it with the his2lip that wrote it"
        raise CheckpointError(f"checkpoint format {meta.get('format')} is unknown", where=folder, mend=mend)
    return meta


def is_checkpoint(folder: str | Path) -> bool:
    """Whether `folder` holds one of our checkpoints (a foreign one has no `his2lip.json`)."""
    return (settled(Path(folder)) / META).is_file()


def settled(folder: Path) -> Path:
    """Where the checkpoint is: a process killed between two renames leaves it under its former name."""
    old = former(folder)
    return old if old.is_dir() and not folder.exists() else folder


def former(folder: Path) -> Path:
    """Where the checkpoint that is being replaced waits."""
    return folder.parent / f".{folder.name}.former"


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a checkpoint's JSON file. Raises CheckpointError for a missing or broken one."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"this is not a checkpoint: it has no {path.name}", where=path.parent) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path.name} cannot be read: {error}", where=path.parent) from None
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path.name} is not a mapping", where=path.parent)
    return tree
