"""Refusal of programs among a model's files: a Hugging Face configuration can name Python code to run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from his2lip.errors import ModelError

AUTO_MAP = "auto_map"  # the setting with which a configuration names classes in its own Python files


def refuse_programs(folder: Path) -> None:
    """Raises ModelError, whose `where` is the file, for a configuration in `folder` that names a program."""
    for file in sorted(folder.rglob("*config.json")):
        try:
            tree = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # whoever needs this file reports it
        refuse_program(tree, where=file)


def refuse_program(config: Any, *, where: str | Path) -> None:
    """Raises ModelError for a configuration with `auto_map` at any depth.

    transformers would ask at the terminal whether to run that code. It is refused before transformers sees
    it, also where transformers has a class of its own for the model.
    """
    if isinstance(config, Mapping):
        if config.get(AUTO_MAP):
            raise program_refused(where)
        for value in config.values():
            refuse_program(value, where=where)
    elif isinstance(config, list):
        for value in config:
            refuse_program(value, where=where)


def program_refused(where: str | Path | None, *, key: str = AUTO_MAP) -> ModelError:
    """The error for a model with a program among its files."""
    what = f"this model brings a program of its authors ({key}), which his2lip does not run"
    fix = f"use a model of a type that transformers itself contains, or remove {key} if this is one"
    return ModelError(what, where=where, key=key, fix=fix)
