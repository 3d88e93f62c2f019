"""Sends an outbox to its store in a thread of its own, so that a store that is away stops no work."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from his2lip.errors import first_line
from his2lip.tracking.outbox import Outbox
from his2lip.tracking.store_run import StoreRun

_AT_ONCE = 200  # records between two marks in the outbox
_WAITS_S = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)  # before the next contact, after that many failures
_log = logging.getLogger(__name__)


class Sender(threading.Thread):
    """Sends the records that an outbox has and gets, in order, until `finish`.

    store  the store's name in the outbox
    begin  makes the writer of a run in the store
    """

    def __init__(self, outbox: Outbox, store: str, begin: Callable[[], StoreRun]) -> None:
        super().__init__(name="mlflow-sender", daemon=True)
        self._outbox, self._store, self._begin = outbox, store, begin
        self._sent = outbox.sent(self._store)
        self._run: StoreRun | None = None
        self._changed = threading.Condition()
        self._ending = self._over = False
        self.trouble: str | None = None  # why the last attempt failed

    def notify(self) -> None:
        """Tells the thread that the outbox has new records."""
        with self._changed:
            self._changed.notify_all()

    def finish(self, *, patience_s: float) -> None:
        """Waits as `finish_sending` does, then ends the thread."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        self.finish_sending(patience_s)
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def finish_sending(self, patience_s: float) -> None:
        """Waits until all is sent, as long as records go out at least every `patience_s` seconds."""
        with self._changed:
            before = -1
            while self.is_alive() and self.left and self._sent != before:
                before = self._sent
                self._changed.wait_for(lambda: self._sent != before, patience_s)  # noqa: B023  called here only

    @property
    def left(self) -> int:
        """Number of records that the store does not have yet."""
        return len(self._outbox.records) - self._sent

    def run(self) -> None:
        failures = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self.left or self._ending)
                if not self.left or self._over:
                    return
            try:
                self.send_some()
            except Exception as error:  # each kind of store raises its own family
                if failures == 0:
                    _log.warning(
                        "MLflow at %s does not take records: %s; the work continues, and they are kept in %s",
                        self._store, first_line(error), self._outbox.path,
                    )  # fmt: skip
                self.trouble = first_line(error)
                wait = _WAITS_S[min(failures, len(_WAITS_S) - 1)]
                failures += 1
                with self._changed:
                    self._changed.wait_for(lambda: self._ending, wait)
                    if self._ending:  # `finish` waits for a bounded time
                        self._changed.wait_for(lambda: self._over, _WAITS_S[0])
                    if self._over:
                        return
            else:
                if failures:
                    _log.warning("MLflow at %s takes records again; none is lost", self._store)
                failures, self.trouble = 0, None

    def send_some(self) -> None:
        """Sends the next records and marks them as sent."""
        if self._run is None:
            run = self._begin()
            run.write(self._outbox.records[:1])  # also finds the run that an earlier command had begun
            self._run = run
        try:
            count = min(len(self._outbox.records), self._sent + _AT_ONCE)
            self._run.write([r for r in self._outbox.records[self._sent : count] if r["what"] != "begin"])
        except Exception:
            self._run = None  # what it knows may be old when the store is back
            raise
        with self._changed:
            self._sent = count
            self._outbox.mark_sent(self._store, count)
            self._changed.notify_all()
