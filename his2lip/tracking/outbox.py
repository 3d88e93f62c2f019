"""What one run writes to MLflow: a file beside the run, in order, each thing once."""

from __future__ import annotations

import itertools
import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from his2lip.config import digest
from his2lip.errors import RunError, TrackingError, first_line
from his2lip.files import locked

SUFFIX = ".mlflow.jsonl"  # of an outbox's file: STORAGE/train/NAME.DIGEST.mlflow.jsonl
_SENT = "sent"  # an entry that says how many records a store has
_AGAIN = ("artifact", "table")  # records of what changes under one name
_log = logging.getLogger(__name__)

Record = dict[str, Any]


@dataclass
class Outbox:
    """The records of a run, of which each store has the first `sent(store)`.

    A record is a mapping with `what` (the method of `StoreRun` that writes it) and that method's arguments.
    Records are appended to the file before they are sent, so a process that dies loses none. A record that
    the outbox has already is not added again: a resumed run repeats steps.
    """

    path: Path
    records: list[Record] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)  # the outboxes that were at `path` before, by --fresh
    _known: set[str] = field(default_factory=set, repr=False)
    _children: dict[str, str] = field(default_factory=dict, repr=False)  # id -> what _known has of it
    _of_run: dict[str, str] = field(default_factory=dict, repr=False)  # names of metrics -> the same
    _sent: dict[str, int] = field(default_factory=dict, repr=False)
    _keep: str = ""  # what _known has of the latest keep_children
    _file: TextIO | None = field(default=None, repr=False)
    _writing: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    @contextmanager
    def open(cls, path: Path, *, fresh: bool = False) -> Iterator[Outbox]:
        """The outbox at `path`, locked; a new one where there is none, or with `fresh`.

        Raises RunError where another command writes it, and OSError where it cannot be written.
        """
        busy = RunError(
            "another command is running this run", where=path, key="name", fix="wait for it, or stop it"
        )
        with locked(path.with_name(f".{path.name}.lock"), busy=busy):
            replaced = _outboxes(path) if fresh else []
            if fresh:
                path.unlink(missing_ok=True)
            outbox = cls.read(path)
            outbox.replaced = replaced
            file = outbox._file = path.open("a", encoding="utf-8")
            try:
                yield outbox
            finally:
                with outbox._writing:
                    outbox._file = None
                    with suppress(OSError):  # the rest of a record that a full disk did not take
                        file.close()

    @classmethod
    def read(cls, path: Path) -> Outbox:
        """The outbox at `path`; a last line that a killed process had not finished is removed.

        Raises TrackingError where the file is damaged.
        """
        outbox = cls(path)
        data = path.read_bytes() if path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(path, len(whole))  # needs no room on the disk, and cannot leave less
        try:
            entries = [json.loads(line) for line in whole.splitlines()]
            for entry in entries:
                if entry["what"] == _SENT:
                    outbox._set_sent(entry["store"], entry["count"])
                else:
                    outbox._remember(entry)
        except (ValueError, KeyError, TypeError, AttributeError):
            what, fix = "the outbox of what MLflow is to get is damaged", "remove the file"
            raise TrackingError(what, where=path, key="outbox", fix=fix) from None
        return outbox

    @property
    def store(self) -> str | None:
        """The store that the latest command sent to."""
        return list(self._sent)[-1] if self._sent else None

    def sent(self, store: str) -> int:
        """How many records this store has, counted from the first."""
        return min(self._sent.get(store, 0), len(self.records))

    def add(self, record: Record) -> None:
        """Appends a record, unless the outbox has it.

        A command that adds nothing, or only writes files and columns again, ends its run no later.
        """
        with self._writing:  # a mark that it was sent must come after it in the file
            if record["what"] == "status":
                again = list(itertools.takewhile(lambda each: each["what"] in _AGAIN, reversed(self.records)))
                before = self.records[-1 - len(again)] if len(again) < len(self.records) else {}
                if record["status"] == before.get("status"):
                    if not again:
                        return
                    record = record | {"time": before["time"]}
            if (new := self._remember(record)) is not None:
                self._append(new)

    def end_killed(self) -> None:
        """Ends the run of a killed command at its latest record, until a command resumes it."""
        if self.records and self.records[-1]["what"] != "status":
            time = max(record["time"] for record in self.records if "time" in record)
            self.add({"what": "status", "status": "KILLED", "time": time})

    def mark_sent(self, store: str, count: int) -> None:
        """Records that `store` has the first `count` records."""
        with self._writing:
            self._set_sent(store, count)
            self._append({"what": _SENT, "store": store, "count": count})

    def _set_sent(self, store: str, count: int) -> None:
        self._sent.pop(store, None)  # the latest store comes last
        self._sent[store] = count

    def _remember(self, record: Record) -> Record | None:
        """Adds to `records` what is new of a record; None where nothing is."""
        if record["what"] == "metrics" and record["step"] is not None:
            step = record["step"]
            values = {k: v for k, v in record["values"].items() if f"{k} {step}" not in self._known}
            self._known |= {f"{key} {step}" for key in values}
            record = record | {"values": values}
            if not values:
                return None
        elif record["what"] not in ("status", *_AGAIN):
            key = digest({name: part for name, part in record.items() if name != "time"})
            if key in self._known:
                return None
            self._known.add(key)
            if record["what"] == "metrics":  # of the whole run, which can return to earlier values
                names = " ".join(sorted(record["values"]))
                self._known.discard(self._of_run.get(names, ""))
                self._of_run[names] = key
            if record["what"] in ("child", "model_run"):
                self._children[record["id"]] = key
            if record["what"] == "keep_children":  # those that it deletes can come back later
                gone = [child for child in self._children if child not in record["ids"]]
                self._known -= {self._children.pop(child) for child in gone}
                self._known.discard(self._keep)
                self._keep = key
        self.records.append(record)
        return record

    def _append(self, entry: Mapping[str, Any]) -> None:
        """Writes an entry; the caller has the lock `_writing`."""
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError as error:  # a full disk must not end the run; what is sent is not lost
            _log.warning("%s cannot be written: %s", self.path, first_line(error))
            self._file = None


def _outboxes(path: Path) -> list[str]:
    """The outbox at `path` and those that it replaces, as its first record names them."""
    try:
        with path.open(encoding="utf-8") as file:
            begin = json.loads(file.readline())
        return [begin["outbox"], *begin.get("replaces", [])]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # --fresh replaces a damaged one too
        return []
