"""The keys of the review page, which a small YAML file can change."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pydantic

from his2lip.config import Config, OptionError, load

# What a button does, in the order of the page: field of `Shortcuts` -> act and label.
BUTTONS: Mapping[str, tuple[str, str]] = {
    "accept": ("accept", "Accept"),
    "edit": ("edit", "Edit"),
    "reject": ("reject", "Reject"),
    "cannot_tell": ("cannot tell", "Cannot tell"),
    "wrong_label": ("wrong label", "Wrong label"),
    "undo": ("undo", "Undo"),
    "previous": ("previous", "Previous"),
    "next": ("next", "Next"),
    "filter": ("filter", "Next filter"),
    "generate": ("generate", "Sentence from the fields"),
}


class Shortcuts(Config):
    """One character each, upper or lower case. Ctrl+Enter saves a revision, Escape drops unsaved changes."""

    accept: str = "a"
    edit: str = "e"
    """Puts the cursor into the text."""
    reject: str = "r"
    cannot_tell: str = "c"
    wrong_label: str = "w"
    undo: str = "u"
    previous: str = "p"
    next: str = "n"
    filter: str = "f"
    """The next filter of the list."""
    generate: str = "g"
    """Writes the sentence that the fields generate."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> Shortcuts:
        seen: dict[str, str] = {}
        for name in BUTTONS:
            key = getattr(self, name)
            if len(key) != 1 or not key.isprintable() or key.isspace() or key.isdigit():
                what = f"the key of '{name}' is one character, and no space or digit"
                raise OptionError(what, key=name)
            if (other := seen.setdefault(key.lower(), name)) != name:
                raise OptionError(f"'{name}' and '{other}' have the same key", key=name)
        return self

    def acts(self) -> dict[str, str]:
        """The act of each key, in lower case."""
        return {getattr(self, name).lower(): act for name, (act, _) in BUTTONS.items()}


def read_shortcuts(path: Path | None) -> Shortcuts:
    """The shortcuts of a YAML file, or the default ones. Raises ConfigError for keys that cannot be used."""
    return load(Shortcuts, path)
