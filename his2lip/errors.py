"""Errors that the user can fix: one sentence each, with what is wrong, where, and how to fix it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path


class His2lipError(Exception):
    """Base of all errors that the user can fix; the command line prints the sentence and exits with 2.

    what   the fault, in words
    where  the file, address or config file that has it
    key    the name at fault, for programs and tests: a config key, an option, a column, a split, a class
    fix    what to do next

    `key` is not part of the sentence: `what` names it in words.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str | Path | None = None,
        key: str | None = None,
        fix: str | None = None,
    ) -> None:
        what, fix = redact(what), redact(fix) if fix else None
        where = redact(where) if isinstance(where, str) else where
        self.what, self.where, self.key, self.fix = what, where, key, fix
        place = f" ({redact(str(where))})".replace("\n", "\\n") if where is not None else ""
        tail = f"; {fix}" if fix else ""
        sentence = f"{what}{place}{tail}"
        super().__init__(sentence if sentence.endswith(("?", "…")) else f"{sentence}.")

    def __reduce__(self) -> tuple[object, ...]:
        """Keeps all parts when the error crosses a process boundary (Ray pickles exceptions)."""
        return _rebuild, (type(self), self.what, self.where, self.key, self.fix)


def _rebuild(
    kind: type[His2lipError], what: str, where: str | Path | None, key: str | None, fix: str | None
) -> His2lipError:
    return kind(what, where=where, key=key, fix=fix)


class ConfigError(His2lipError):
    """A configuration file, field or override that cannot be used."""


class DatasetError(His2lipError):
    """A dataset, card, shard or caption bank that cannot be read."""


class ImageError(DatasetError):
    """One image that cannot be used; `prepare` quarantines it and continues."""


class TaxonomyError(DatasetError):
    """A tissue type or biomarker that is not in the taxonomy."""


class ModelError(His2lipError):
    """A model name that cannot be resolved or loaded."""


class CheckpointError(ModelError):
    """A checkpoint that is missing, incomplete, or in another format."""


class RunError(His2lipError):
    """A run, sweep or grid that cannot start or resume, such as a name in use by other inputs."""


class DivergedError(RunError):
    """Training whose loss became NaN or infinite; a sweep records it as a failed trial."""


class TrackingError(His2lipError):
    """An MLflow store that cannot be reached or used."""


class StorageError(His2lipError):
    """A place that takes no more data: its disk is full, a quota is used up, a file may not be larger, or an
    object store does not answer.
    """


class ClusterError(His2lipError):
    """A Ray cluster that cannot be reached, or lacks what the command needs."""


def first_line(error: BaseException) -> str:
    """The first line of a library's error message, at most 200 characters; its type where it is empty.

    The error number is left out, and so is Arrow's repetition of the system's message, and so are secrets.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = re.sub(r"^\[Errno \d+\] (.*?)(?:\. Detail: \[errno \d+\] (.*))?$", _reason, lines[0])
    return redact(text)[:200].rstrip(". ")


def _reason(match: re.Match[str]) -> str:
    return match[1] if match[2] is None else f"{match[1]} ({match[2].lower()})"


# user:password@ and token@ of an address, and the parameters of its query whose names are those of secrets. A
# password may have slashes, and what follows a colon may be a port. `pathlib` makes one slash of two.
_PASSWORD = r"""([^\s/:@'"]*):(?:[^\s/'"]*|(?!\d+/)[^\s@'"]*)@"""
_USER = re.compile(rf"""(?<=://)(?:{_PASSWORD}|[^\s/:@'"]+@)|(?<=:/)(?!/){_PASSWORD}""")
_QUERY = re.compile(
    r"([?&;][^=&#\s]*(?:key|secret|passw|pwd|token|sig|credential|auth|odbc_connect)[^=&#\s]*=)[^&#\s'\"]+",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """The text with `***` in place of passwords, tokens and keys in its addresses.

    Errors, log lines, printed lines and tables, pages, recorded configurations and MLflow's parameters do
    this by themselves. Any other place that shows or stores an address calls it.
    """
    if ":/" not in text:
        return text
    return _QUERY.sub(r"\1***", _USER.sub(_hidden, text))


def _hidden(found: re.Match[str]) -> str:
    name = found[1] or found[2]
    return f"{name}:***@" if name else "***@"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest in spelling to `name`, or None where none is close."""
    names = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.6)
    return names[close[0]] if close else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The `fix` of an error about an unknown name: the nearest known name, or all known names."""
    known = list(known)
    close = nearest(name, known)
    return f"did you mean '{close}'?" if close else f"known: {', '.join(sorted(known))}"
