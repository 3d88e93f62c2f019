"""The outbox of an MLflow run on a disk without room."""

from __future__ import annotations

import json
import multiprocessing
import resource
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from his2lip.tracking.outbox import Outbox

FIRST = {"what": "artifact", "path": "/a", "folder": None}


def _without_room(work: Callable[[Path], None], path: Path, most: int) -> int | None:
    """The exit code of a process that does `work` on `path` and may write no byte beyond `most`."""

    def run() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        work(path)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(30)
    return process.exitcode


def _write(path: Path) -> None:
    with Outbox.open(path) as outbox:
        for number in range(5):
            outbox.add(FIRST | {"path": f"/{number}"})
        assert len(outbox.records) == 6, "they are sent all the same"


def test_a_disk_that_becomes_full_ends_no_run(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with Outbox.open(path) as outbox:
        outbox.add(FIRST)
    assert _without_room(_write, path, path.stat().st_size + 30) == 0
    assert Outbox.read(path).records == [FIRST]


def _read(path: Path) -> None:
    assert Outbox.read(path).records == [FIRST]


def test_what_a_killed_process_left_of_a_line_is_removed_without_writing_the_others_again(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run.jsonl"
    with Outbox.open(path) as outbox:
        outbox.add(FIRST)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"what": "metr')
    assert _without_room(_read, path, 1) == 0
    assert path.read_bytes() == whole


def test_the_store_of_the_latest_command_is_known_when_the_outbox_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    for store in ("sqlite:///a.db", "sqlite:///b.db", "sqlite:///a.db"):
        with Outbox.open(path) as outbox:
            outbox.mark_sent(store, 0)
    assert Outbox.read(path).store == "sqlite:///a.db"


def test_a_metric_of_the_whole_run_that_returns_to_an_earlier_value_is_sent_again(tmp_path: Path) -> None:
    path, values = tmp_path / "run.jsonl", (0.5, 0.5, 0.6, 0.6, 0.5, 0.5)
    for time, value in enumerate(values):
        with Outbox.open(path) as outbox:
            outbox.add({"what": "metrics", "values": {"best": value}, "step": None, "time": time})
    assert [record["values"]["best"] for record in Outbox.read(path).records] == [0.5, 0.6, 0.5]


def test_a_record_is_in_the_file_before_the_mark_that_it_was_sent(tmp_path: Path) -> None:
    path, ended = tmp_path / "run.jsonl", threading.Event()
    before = sys.getswitchinterval()
    with Outbox.open(path) as outbox:

        def send() -> None:
            while not ended.is_set():
                outbox.mark_sent("store", len(outbox.records))

        sender = threading.Thread(target=send)
        sys.setswitchinterval(1e-6)
        try:
            sender.start()
            for number in range(1000):
                outbox.add(FIRST | {"path": f"/{number}"})
        finally:
            ended.set()
            sender.join()
            sys.setswitchinterval(before)
    written = 0
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        if entry["what"] == "sent":
            assert entry["count"] <= written, "a process that dies here would never send the next record"
        else:
            written += 1
