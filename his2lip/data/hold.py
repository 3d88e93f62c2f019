"""A folder in which one command at a time works."""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from his2lip.errors import DatasetError

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # file systems that know none


@contextmanager
def held(lock: Path, *, doing: str) -> Iterator[None]:
    """Holds the file `lock`, made where it is absent, until the block or this process ends.

    A file system without locks is worked on without. Raises DatasetError where another command holds it, and
    OSError where the file cannot be made.
    """
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            said = f"another command is {doing} here"
            raise DatasetError(said, where=lock.parent, mend="wait for it") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield
