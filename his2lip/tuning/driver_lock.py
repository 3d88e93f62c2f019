"""The lock of a study: it has one driver at a time, wherever the drivers run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from his2lip.config import digest
from his2lip.errors import RunError
from his2lip.files import locked


@contextmanager
def only_driver(url: str, name: str) -> Iterator[None]:
    """Runs the block while this process drives the study `name` in the database at `url`.

    A second driver would count the running trials of the first as interrupted, and run them again. SQLite has
    a lock file beside it. PostgreSQL and MySQL have a lock of the connection, which ends with this process
    however that ends. Other databases have no lock. Raises RunError where another driver has the lock.
    """
    from sqlalchemy import NullPool, create_engine, text

    busy = RunError(
        f"the sweep '{name}' is being run by another process",
        where=url,
        key="study",
        fix="wait for it, or stop it",
    )
    kind, file = "", None
    with ExitStack() as stack:
        with suppress(
            Exception
        ):  # SQLAlchemy's own family, or the import of a driver: opening the study says it
            engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
            connection = stack.enter_context(engine.connect())
            kind, file = engine.dialect.name, engine.url.database
        if kind == "sqlite" and file:
            lock = f".{Path(file).name}.{digest(name)[:8]}.lock"
            stack.enter_context(locked(Path(file).with_name(lock), busy=busy))
        elif kind == "postgresql":
            key = int(digest({"sweep": name})[:15], 16)  # PostgreSQL's keys have 64 bits with a sign
            if not connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": key}).scalar():
                raise busy
        elif kind in ("mysql", "mariadb"):
            key_of_name = digest({"sweep": name})[:60]  # MySQL's names of locks have at most 64 characters
            if not connection.execute(text("SELECT GET_LOCK(:key, 0)"), {"key": key_of_name}).scalar():
                raise busy
        yield
