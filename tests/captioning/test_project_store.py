"""The store of a caption project: what is decided lasts, in order, and no update is lost."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest
from projects import project, variants

from his2lip.captioning import Project, store
from his2lip.captioning.records import Judgement
from his2lip.captioning.store import StaleError
from his2lip.config import sealed
from his2lip.errors import DatasetError, RunError


def test_a_project_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = project(tmp_path / "a", 3, pictures=2)
    assert Project.open(tmp_path / "a").keys == made.keys
    seeds = made.refresh().seeds
    assert [item.key.patches for item in seeds] == [30, 20, 10]
    assert {item.status for item in seeds} == {"open"}
    with pytest.raises(DatasetError) as refused:
        project(tmp_path / "a")
    assert refused.value.key == "name"


def test_decisions_stand_are_replaced_and_undone(tmp_path: Path) -> None:
    made = project(tmp_path / "a")
    one, two, three, four = (item.id for item in made.refresh().seeds)
    made.submit("ann", one, Judgement("accept"), version=0)
    made.submit("ann", two, Judgement("revise", text=" A  better one. "), version=0)
    made.submit("ann", three, Judgement("wrong label", note="stroma"), version=0)
    made.submit("ann", four, Judgement("cannot tell"), version=0)
    made.submit("ann", four, Judgement("reject"), version=1)
    items = Project.open(tmp_path / "a").refresh().items
    assert [items[i].status for i in (one, two, three, four)] == [
        "accepted",
        "revised",
        "wrong label",
        "rejected",
    ]
    assert items[two].text == "A better one."
    assert items[three].text is None
    assert items[three].standing["ann"].note == "stroma"
    made.submit("ann", four, Judgement("undo"), version=2)
    assert made.refresh().items[four].status == "cannot tell"
    made.submit("ann", four, Judgement("undo"), version=3)
    assert made.refresh().items[four].status == "open"
    with pytest.raises(RunError):
        made.submit("ann", four, Judgement("undo"), version=4)
    assert [d.sequence for d in made.refresh().decisions] == list(range(1, 8))


def test_a_decision_about_an_older_version_is_refused_with_the_newer_state(tmp_path: Path) -> None:
    one, other = project(tmp_path / "a"), Project.open(tmp_path / "a")
    item = one.refresh().seeds[0].id
    other.refresh()
    one.submit("ann", item, Judgement("revise", text="Newer."), version=0)
    with pytest.raises(StaleError) as stale:
        other.submit("ann", item, Judgement("reject"), version=0)
    assert stale.value.item.text == "Newer."
    other.submit("ann", item, Judgement("reject"), version=stale.value.item.version)
    assert one.refresh().items[item].status == "rejected"


def _decide(folder: Path, reviewer: str, count: int) -> None:
    made = Project.open(folder)
    for n in range(count):
        while True:
            item = made.refresh().seeds[n % 2]
            try:
                made.submit(
                    reviewer, item.id, Judgement("revise", text=f"{reviewer} {n}"), version=item.version
                )
                break
            except StaleError:
                continue


def test_processes_that_decide_at_once_lose_nothing(tmp_path: Path) -> None:
    project(tmp_path / "a")
    context = multiprocessing.get_context("fork")
    names = ("ann", "ann", "bob")
    processes = [context.Process(target=_decide, args=(tmp_path / "a", name, 15)) for name in names]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    decisions = Project.open(tmp_path / "a").refresh().decisions
    assert [d.sequence for d in decisions] == list(range(1, 46))
    texts = sorted((d.after or "") for d in decisions)
    assert texts == sorted([f"{name} {n}" for name in names for n in range(15)])


def test_a_torn_last_line_is_dropped_with_a_notice_at_any_byte(tmp_path: Path) -> None:
    made = project(tmp_path / "a")
    ids = [item.id for item in made.refresh().seeds]
    log = tmp_path / "a/decisions/ann.jsonl"
    made.submit("ann", ids[0], Judgement("accept"), version=0)
    whole = log.read_bytes()
    made.submit("ann", ids[1], Judgement("accept"), version=0)
    both = log.read_bytes()
    for cut in (len(whole) + 1, len(both) - 40, len(both) - 1):
        log.write_bytes(both[:cut])
        again = Project.open(tmp_path / "a")
        assert [item.status for item in again.refresh().seeds[:2]] == ["accepted", "open"]
        (notice,) = again.repair()
        assert str(log) in notice
        assert log.read_bytes() == whole
    log.write_bytes(both[: len(whole)] + b"\0" * 30 + b"\n")  # blocks that never reached the disk
    again = Project.open(tmp_path / "a")
    again.submit("ann", ids[1], Judgement("reject"), version=0)
    assert len(again.notices) == 1
    assert Project.open(tmp_path / "a").refresh().items[ids[1]].status == "rejected"


def _run_out_of_room(folder: Path, item: str) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    size = (folder / "decisions/ann.jsonl").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, size + 100))
    with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        Project.open(folder).submit("ann", item, Judgement("accept"), version=0)


def test_what_a_full_disk_cut_off_is_no_decision_and_the_next_one_is_kept(tmp_path: Path) -> None:
    made = project(tmp_path / "a")
    one, two = (item.id for item in made.refresh().seeds[:2])
    made.submit("ann", one, Judgement("accept"), version=0)
    log = tmp_path / "a/decisions/ann.jsonl"
    size = log.stat().st_size
    process = multiprocessing.get_context("fork").Process(target=_run_out_of_room, args=(tmp_path / "a", two))
    process.start()
    process.join(30)
    assert process.exitcode == 0
    assert log.stat().st_size == size + 100
    assert made.refresh().items[two].status == "open"
    made.submit("ann", two, Judgement("reject"), version=0)
    assert [d.act for d in Project.open(tmp_path / "a").refresh().decisions] == ["accept", "reject"]


def test_a_damaged_line_that_others_follow_is_refused(tmp_path: Path) -> None:
    made = project(tmp_path / "a")
    for item in made.refresh().seeds:
        made.submit("ann", item.id, Judgement("accept"), version=0)
    log = tmp_path / "a/decisions/ann.jsonl"
    log.write_bytes(log.read_bytes().replace(b'"accept"', b'"reject"', 1))
    with pytest.raises(DatasetError) as refused:
        Project.open(tmp_path / "a").refresh()
    assert refused.value.where == log
    assert refused.value.key == "line"


def test_a_log_that_has_a_decision_twice_is_refused(tmp_path: Path) -> None:
    """As after `cat COPY/decisions/anna.jsonl >> …`: an undo would take back one of the two only."""
    made = project(tmp_path / "p")
    for key in made.keys[:2]:
        made.submit("anna", key.id, Judgement("accept"), version=0)
    log = tmp_path / "p/decisions/anna.jsonl"
    log.write_bytes(log.read_bytes() * 2)
    opened = Project.open(tmp_path / "p")
    for _ in range(2):
        with pytest.raises(DatasetError) as caught:
            opened.refresh()
        assert (caught.value.where, caught.value.key) == (log, "sequence")


def test_a_clock_that_jumps_back_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = project(tmp_path / "a")
    item = made.refresh().seeds[0].id
    made.submit("ann", item, Judgement("accept"), version=0)
    monkeypatch.setattr(store, "now", lambda: "1999-12-31T00:00:00.000+00:00")
    made.submit("bob", item, Judgement("accept"), version=1)
    made.submit("ann", item, Judgement("reject"), version=2)
    made.submit("bob", item, Judgement("reject"), version=3)
    found = Project.open(tmp_path / "a").refresh()
    assert found.items[item].status == "rejected"
    assert [d.reviewer for d in found.decisions] == ["ann", "bob", "ann", "bob"]


@pytest.mark.parametrize("version", [0, 3, "1", None])
def test_a_project_of_another_format_is_refused(tmp_path: Path, version: object) -> None:
    project(tmp_path / "a")
    path = tmp_path / "a/project.json"
    tree = {k: v for k, v in json.loads(path.read_text()).items() if k != "sha256"}
    path.write_text(json.dumps(tree | {"format": version}))
    with pytest.raises(DatasetError) as refused:
        Project.open(tmp_path / "a")
    assert refused.value.where == path
    assert refused.value.key == "format"


def test_a_project_of_format_1_is_read_and_has_format_2_once_a_decision_is_added(tmp_path: Path) -> None:
    """His2lip versions of format 1 would take a line of format 2 for torn, and remove it."""
    project(tmp_path / "a", 2)
    path = tmp_path / "a/project.json"
    about = {k: v for k, v in json.loads(path.read_text()).items() if k != "sha256"}
    path.write_text(json.dumps(sealed(about | {"format": 1})))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    made, other = Project.open(tmp_path / "a"), Project.open(tmp_path / "b")
    one = made.refresh().seeds[0]
    assert json.loads(path.read_text())["format"] == 1, "reading changes nothing"
    made.submit("ann", one.id, Judgement("accept"), version=0)
    assert json.loads(path.read_text()) == sealed(about | {"format": 2})
    assert [item.status for item in Project.open(tmp_path / "a").refresh().seeds] == ["accepted", "open"]
    other.absorb(made)
    assert json.loads((tmp_path / "b/project.json").read_text())["format"] == 2
    assert Project.open(tmp_path / "b").refresh().items[one.id].status == "accepted"


def test_keys_that_were_edited_and_pictures_outside_are_refused(tmp_path: Path) -> None:
    project(tmp_path / "a")
    path = tmp_path / "a/keys.json"
    path.write_text(path.read_text().replace("some cells", "no cells"))
    with pytest.raises(DatasetError) as refused:
        Project.open(tmp_path / "a")
    assert refused.value.where == path
    key = project(tmp_path / "b", 1, pictures=1).keys[0]
    outside = key.pictures[0].model_copy(update={"file": "images/../../a/keys.json"})
    with pytest.raises(DatasetError) as refused:
        Project.create(tmp_path / "c", [key.model_copy(update={"pictures": (outside,)})], datasets={})
    assert refused.value.key == outside.file


@pytest.mark.parametrize("name", ["", "../ann", "a/b", ".ann", "ann bob", "ä" * 3])
def test_a_reviewer_whose_name_is_no_file_name_is_refused(tmp_path: Path, name: str) -> None:
    made = project(tmp_path / "a", 1)
    with pytest.raises(RunError) as refused:
        made.submit(name, made.refresh().seeds[0].id, Judgement("accept"), version=0)
    assert refused.value.key == "--reviewer"


def test_two_spellings_of_one_name_are_refused_since_their_logs_may_be_one_file(tmp_path: Path) -> None:
    made = project(tmp_path / "a")
    one, two, *_ = made.refresh().seeds
    made.submit("Ann", one.id, Judgement("accept"), version=0)
    with pytest.raises(RunError) as refused:
        Project.open(tmp_path / "a").submit("ann", two.id, Judgement("accept"), version=0)
    assert refused.value.key == "--reviewer"
    assert Project.open(tmp_path / "a").refresh().last == 1


def test_rewordings_are_items_unless_validation_refused_them_or_the_seed_changed(tmp_path: Path) -> None:
    made = project(tmp_path / "a")
    seed = made.refresh().seeds[0]
    made.submit("ann", seed.id, Judgement("accept"), version=0)
    good, bad = variants(seed.key, 2)
    made.add_variants("first", [good, bad.model_copy(update={"refused": "a flip of polarity"})])
    state = Project.open(tmp_path / "a").refresh()
    assert [item.id for item in state.variants] == [good.id]
    assert state.is_current(state.variants[0])
    made.submit("ann", seed.id, Judgement("revise", text="Another one."), version=1)
    state = made.refresh()
    assert not state.is_current(state.variants[0])
    with pytest.raises(RunError) as refused:
        made.add_variants("first", [good.model_copy(update={"key": "x"})])
    assert refused.value.key == "x"


def test_a_decision_takes_no_reviewers_time_beside_7000_rewordings(tmp_path: Path) -> None:
    made = project(tmp_path / "a", 4)
    for n, key in enumerate(made.keys):
        made.add_variants(f"b{n}", variants(key, 1750))
    made.refresh()
    took = []
    for item in made.refresh().seeds:
        start = time.perf_counter()
        made.submit("ann", item.id, Judgement("accept"), version=0)
        took.append(time.perf_counter() - start)
    assert min(took) < 0.25
