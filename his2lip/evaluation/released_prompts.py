"""Reads the prompt sentences of a released constants.py: a Python file with one dictionary per dataset."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

from his2lip.errors import ConfigError, did_you_mean, first_line
from his2lip.evaluation.prompts import PromptSet


def released_dictionaries(path: Path) -> dict[str, dict[str, list[str]]]:
    """Name -> class -> sentences, of every dictionary of sentences that the file assigns.

    The file is parsed and never run. Order, duplicates and accidents are kept: where the comma between two
    strings is missing, Python reads them as one sentence. Classes that are numbers become text. Raises
    ConfigError for a file that cannot be read as Python, or has no such dictionary.
    """
    try:
        tree = ast.parse(path.read_bytes())  # bytes: they may have a byte order mark, or name an encoding
    except (OSError, ValueError, SyntaxError) as error:
        reason = error.strerror if isinstance(error, OSError) else first_line(error)
        what = f"this file cannot be read as Python: {reason}"
        raise ConfigError(what, where=path, key=path.name, fix="give the released constants.py") from None
    found = {}
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(node, ast.Assign) and isinstance(target, ast.Name):
            found[target.id] = _classes(node.value)
    found = {name: classes for name, classes in found.items() if classes}
    if not found:
        what = "this file assigns no dictionary of class and sentences"
        raise ConfigError(what, where=path, key=path.name, fix="give the released constants.py")
    return found


def import_released(path: Path, name: str, *, rename: Mapping[str, str]) -> PromptSet:
    """The dictionary `name` of the file as a prompt set.

    rename  class in the file -> class of the protocol; other classes keep their names
    Raises ConfigError for a dictionary or a class that the file does not have, and where two classes get one
    name.
    """
    known = released_dictionaries(path)
    if name not in known:
        what = f"this file has no dictionary '{name}'"
        raise ConfigError(what, where=path, key=name, fix=did_you_mean(name, known))
    classes = known[name]
    for label in rename:
        if label not in classes:
            what = f"the dictionary '{name}' has no class '{label}'"
            raise ConfigError(what, where=path, key=label, fix=did_you_mean(label, classes))
    named = [(rename.get(label, label), lines) for label, lines in classes.items()]
    names = [label for label, _ in named]
    if twice := next((label for label in names if names.count(label) > 1), None):
        what = f"two classes of the dictionary '{name}' would be called '{twice}'"
        raise ConfigError(what, where=path, key=twice, fix="give each class a name of its own (--rename)")
    return PromptSet.build(name, dict(named))


def _classes(value: ast.expr) -> dict[str, list[str]]:
    """Class -> sentences; empty where the value is anything else."""
    try:
        tree = ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return {}
    if not isinstance(tree, dict):
        return {}
    lists = all(isinstance(lines, list) and lines for lines in tree.values())
    if not lists or not all(isinstance(line, str) for lines in tree.values() for line in lines):
        return {}
    return {str(label): lines for label, lines in tree.items()}
