"""Logging of every process of a command: its level on the terminal, and the log file in a run's folder."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import TypeVar

from his2lip.errors import ConfigError, did_you_mean, redact

LEVEL = "HIS2LIP_LOG"  # environment variable: the lowest level on the terminal, read by workers too
LOG_FILE = "his2lip.log"
LEVELS: Mapping[str, int] = {
    name.lower(): number
    for name, number in logging.getLevelNamesMapping().items()
    if name in ("DEBUG", "INFO", "WARNING", "ERROR")
}
_TERMINAL_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_FILE_FORMAT = f"%(asctime)s %(levelname)s {socket.gethostname()}:%(process)d %(name)s: %(message)s"

_logger = logging.getLogger("his2lip")
H = TypeVar("H", bound=logging.Handler)


class _Redacting(logging.Formatter):
    """Lines and tracebacks without the secrets of addresses."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class _Terminal(logging.Handler):
    """Writes to the present sys.stderr, which a progress bar replaces while it is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=sys.stderr)
        except Exception:  # a closed pipe must not end the work
            self.handleError(record)


class _Sending(logging.Handler):
    """Passes lines, as a log file has them, to a function."""

    def __init__(self, send: Callable[[str], object]) -> None:
        super().__init__(logging.INFO)
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._send(self.format(record))
        except Exception:  # a log that is away must not end the work
            self.handleError(record)


def terminal_level() -> int:
    """The lowest level that is shown on the terminal: HIS2LIP_LOG, by default warning.

    Raises ConfigError where HIS2LIP_LOG is not the name of a level.
    """
    name = os.environ.get(LEVEL, "").strip().lower() or "warning"
    if name not in LEVELS:
        what = f"'{name}' is not a level of the log"
        raise ConfigError(what, where=LEVEL, key=LEVEL, fix=did_you_mean(name, LEVELS))
    return LEVELS[name]


def setup(level: str | None = None) -> None:
    """Logs to stderr from `level` on, in this process and in the processes that it starts.

    level  debug, info, warning or error; None leaves HIS2LIP_LOG as it is
    """
    if level is not None:
        os.environ[LEVEL] = level
    shown = terminal_level()
    for handler in _handlers(_Terminal):
        _logger.removeHandler(handler)
    terminal = _Terminal(shown)
    terminal.setFormatter(_Redacting(_TERMINAL_FORMAT))
    _logger.addHandler(terminal)
    _logger.setLevel(min(shown, logging.INFO))  # files have all from info on
    _logger.propagate = False  # libraries add handlers to the root logger, and lines would appear twice


def log_to(folder: str | Path | None) -> None:
    """From now on this process also appends its lines, from info on, to `folder`/his2lip.log.

    Several processes and hosts may append to one file. The file of an earlier call is closed; None only does
    that. A folder in an object store has no log file, since lines cannot be appended there. Workers call this
    before they log, so it also does what `setup` does.
    """
    setup()
    for handler in _handlers(WatchedFileHandler):
        _logger.removeHandler(handler)
        handler.close()
    if folder is None or "://" in str(folder):
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    file = WatchedFileHandler(Path(folder, LOG_FILE), encoding="utf-8", delay=True)
    file.setFormatter(_Redacting(_FILE_FORMAT))
    _logger.addHandler(file)


def log_through(send: Callable[[str], object]) -> None:
    """From now on this process also passes its lines, from info on, to `send`, as a log file has them."""
    setup()
    for handler in _handlers(_Sending):
        _logger.removeHandler(handler)
    sending = _Sending(send)
    sending.setFormatter(_Redacting(_FILE_FORMAT))
    _logger.addHandler(sending)


@contextmanager
def logged_elsewhere() -> Iterator[None]:
    """A block that calls `log_to`; after it this process appends to the file of before again."""
    before = _handlers(WatchedFileHandler)
    try:
        yield
    finally:
        log_to(Path(before[0].baseFilename).parent if before else None)


def log_failure(error: BaseException) -> None:
    """Writes an error that ends the command to the log file, with its traceback; not to the terminal."""
    record = _logger.makeRecord(
        _logger.name, logging.ERROR, __file__, 0, str(error), (), (type(error), error, error.__traceback__)
    )
    for handler in _handlers(WatchedFileHandler):
        handler.handle(record)


def _handlers(kind: type[H]) -> list[H]:
    return [handler for handler in _logger.handlers if isinstance(handler, kind)]
