"""Where the cards, prompts, published tables and sweeps are, in a checkout and in an installed wheel."""

from __future__ import annotations

from pathlib import Path

from his2lip.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parent


def root() -> Path:
    """The folder that holds `benchmarks/`, `tune/` and `cluster.yaml`."""
    packaged = _PACKAGE / "_resources"
    return packaged if packaged.is_dir() else _PACKAGE.parent


def find(name: str | Path) -> Path:
    """`name` as the user gave it where that exists, else the file of that name that the project carries.

    Raises ConfigError where neither exists.
    """
    given = Path(name)
    if given.exists():
        return given
    carried = root() / given
    if not given.is_absolute() and carried.exists():
        return carried
    raise ConfigError("no such file here or among those that his2lip carries", where=str(name))
