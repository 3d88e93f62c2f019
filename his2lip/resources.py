"""Where files are: the code, the files that it carries, and the default storage."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from his2lip import __version__
from his2lip.errors import ConfigError

STORAGE = "runs"  # default folder of runs, sweeps, benchmarks, shards and caches, in the current folder
CACHE = f"{STORAGE}/cache"  # default folder of cached embeddings
_AS_CODE = ("benchmarks/datasets", "benchmarks/prompts")  # folders of carried files that decide scores

_PACKAGE = Path(__file__).resolve().parent


def root() -> Path:
    """The folder that holds `benchmarks/`, `tune/` and `cluster.yaml`."""
    packaged = _PACKAGE / "_resources"
    return packaged if packaged.is_dir() else _PACKAGE.parent


@lru_cache(maxsize=1)
def code_version() -> str:
    """The version of the package and a digest of its code, so that an edited checkout has its own.

    The cards and prompts that it carries count as code: they decide how a model is scored and chosen.
    """
    whole = hashlib.sha256()
    carried = (path for name in _AS_CODE for path in (root() / name).glob("*.yaml"))
    files = [(path, _PACKAGE) for path in _PACKAGE.rglob("*.py")] + [(path, root()) for path in carried]
    for name, path in sorted((path.relative_to(base).as_posix(), path) for path, base in files):
        whole.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return f"{__version__}+{whole.hexdigest()[:12]}"


def find(name: str | Path) -> Path:
    """`name` itself where it exists, else the file of that name that his2lip carries.

    Raises ConfigError where neither exists.
    """
    given = Path(name)
    if given.exists():
        return given
    carried = root() / given
    if not given.is_absolute() and carried.exists():
        return carried
    what = "there is no such file here, and his2lip does not carry one of that name"
    raise ConfigError(what, where=str(name), fix="check the path")
