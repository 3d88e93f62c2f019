"""Export of approved captions with their origin; merged copies of a project; Label Studio's format."""

from __future__ import annotations

import csv
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from projects import keys, project, variants
from typer.testing import CliRunner

from his2lip.captioning import Acceptance, Project, batches, read_annotations
from his2lip.captioning.records import Judgement, key_id, seed_id
from his2lip.captioning.state import Item
from his2lip.cli import app
from his2lip.data.captions import CaptionBank
from his2lip.errors import ConfigError, DatasetError, RunError


def command(*words: object) -> str:
    done = CliRunner().invoke(app, ["captions", *map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def reviewed(tmp_path: Path) -> Project:
    """Four keys: accepted with a batch that passed, revised with one that failed, one of a band, one open."""
    of = keys(4)
    strong = key_id(of[2].tissue, of[2].biomarker, "strong")
    of[2] = of[2].model_copy(update={"id": strong, "staining": "strong"})
    made = project(tmp_path / "a", of)
    passing, failing = variants(of[0], 40), variants(of[1], 40, seed="A revised seed.")
    made.submit("ann", of[0].id, Judgement("accept"), version=0)
    made.submit("ann", of[1].id, Judgement("revise", text="A revised seed."), version=0)
    made.submit("bob", strong, Judgement("accept"), version=0)
    made.add_variants("good", passing)
    made.add_variants("bad", failing)
    bad, good = batches(made.refresh(), made.seed, Acceptance(error_rate=0.2))
    for id in good.sample:
        made.submit("ann", id, Judgement("accept"), version=0)
    made.submit("ann", bad.sample[0], Judgement("reject"), version=0)
    made.submit("ann", bad.sample[1], Judgement("revise", text="A better wording."), version=0)
    return made


def test_the_bank_has_every_line_that_stands_with_its_status_and_source(
    reviewed: Project, tmp_path: Path
) -> None:
    told = command("export", reviewed.folder, "--out", tmp_path / "bank.json", "--error-rate", "0.2")
    bank = CaptionBank.load(tmp_path / "bank.json")
    assert bank.digest in told
    one, two, three, four = (keys(4)[n] for n in range(4))
    pair = (one.tissue, one.biomarker)
    assert bank.captions[pair][0] == one.text
    assert len(bank.captions[pair]) == 41
    origins = bank.origins["captions", *pair]
    read = sum(item.status == "accepted" for item in reviewed.refresh().variants)
    assert [o.status for o in origins].count("read") == 1 + read
    assert [o.status for o in origins].count("passed by sampling") == 40 - read
    assert all("ann" in o.source for o in origins if o.status == "read")
    assert all(re.search(rf"{read} of {read} .*0 wrong", o.source) for o in origins if o.status != "read")
    assert bank.captions[two.tissue, two.biomarker] == ("A revised seed.", "A better wording.")
    assert bank.lines(three.tissue, three.biomarker, "strong") == (three.text,)
    assert {o.status for o in bank.origins["captions", three.tissue, three.biomarker]} == {"template"}
    assert three.text not in bank.lines(three.tissue, three.biomarker, "weak")
    assert (four.tissue, four.biomarker) not in bank.captions


def test_at_a_stricter_rate_the_same_batch_has_not_been_read_enough(
    reviewed: Project, tmp_path: Path
) -> None:
    command("export", reviewed.folder, "--out", tmp_path / "bank.json", "--error-rate", "0.01")
    bank = CaptionBank.load(tmp_path / "bank.json")
    assert {o.status for found in bank.origins.values() for o in found} == {"read", "template"}


def test_the_first_decision_about_a_batch_fixes_its_plan(reviewed: Project, tmp_path: Path) -> None:
    item, out = reviewed.refresh().variants[-1], tmp_path / "bank.json"
    assert item.batch is not None
    plan = Acceptance(error_rate=0.2)
    reviewed.submit("ann", item.id, Judgement("accept"), version=item.version, acceptance=plan)
    reviewed.submit(
        "ann", item.id, Judgement("reject"), version=item.version + 1, acceptance=Acceptance(allowed=9)
    )
    state = reviewed.refresh()
    assert state.plans == {item.batch: plan}
    of = next(b for b in batches(state, 0, Acceptance(error_rate=0.4, allowed=9)) if b.name == item.batch)
    assert of.acceptance == plan
    command("export", reviewed.folder, "--out", out)
    command("export", reviewed.folder, "--out", out, "--error-rate", "0.2")
    words = ["captions", "export", str(reviewed.folder), "--out", str(out), "--allowed", "9"]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, ConfigError)
    assert done.exception.key == "--allowed"
    other = next(v for v in state.variants if v.batch != item.batch)
    reviewed.submit("ann", other.id, Judgement("accept"), version=other.version, acceptance=plan)
    shutil.copytree(reviewed.folder, tmp_path / "copy")
    done = CliRunner().invoke(app, ["captions", "review", str(tmp_path / "copy"), "--confidence", "0.5"])
    assert isinstance(done.exception, ConfigError)
    assert done.exception.key == "--confidence"


def test_copies_that_read_one_batch_under_two_plans_do_not_merge(tmp_path: Path) -> None:
    one = project(tmp_path / "a", 1)
    one.submit("ann", one.keys[0].id, Judgement("accept"), version=0)
    one.add_variants("m-1", variants(one.keys[0], 3))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    other, id = Project.open(tmp_path / "b"), one.refresh().variants[0].id
    one.submit("ann", id, Judgement("reject"), version=0, acceptance=Acceptance())
    other.submit("bob", id, Judgement("accept"), version=0, acceptance=Acceptance(allowed=2))
    with pytest.raises(RunError) as refused:
        one.absorb(other)
    assert refused.value.key == "m-1"
    assert one.refresh().verdicts("bob") == {}


def test_the_released_layout_is_imported_again_line_by_line(reviewed: Project, tmp_path: Path) -> None:
    command(
        "export", reviewed.folder, "--out", tmp_path / "out", "--format", "released", "--error-rate", "0.2"
    )
    bank, report = CaptionBank.from_folder(tmp_path / "out")
    assert report.found == report.read == 3
    assert report.captions == 41 + 2 + 1
    with (tmp_path / "out.origins.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == report.captions
    both = {(*pair, t) for part in (bank.captions, bank.held_out) for pair, own in part.items() for t in own}
    assert {(row["tissue"], row["biomarker"], row["caption"]) for row in rows} == both
    done = CliRunner().invoke(
        app,
        ["captions", "export", str(reviewed.folder), "--out", str(tmp_path / "out"), "--format", "released"],
    )
    assert isinstance(done.exception, DatasetError)
    assert done.exception.key == "--out"


def test_a_format_that_is_none_is_refused_with_those_there_are(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    done = CliRunner().invoke(app, ["captions", "export", "project", "--out", out, "--format", "bnk"])
    assert done.exit_code == 2
    assert all(name in done.output for name in ("--format", "'bank'", "'released'", "'label-studio'"))


@pytest.mark.parametrize("format", ["bank", "released", "label-studio"])
def test_an_out_below_a_file_is_refused(reviewed: Project, tmp_path: Path, format: str) -> None:
    (tmp_path / "file").touch()
    out = str(tmp_path / "file/out")
    done = CliRunner().invoke(
        app, ["captions", "export", str(reviewed.folder), "--out", out, "--format", format]
    )
    assert isinstance(done.exception, ConfigError)
    assert done.exception.key == "--out"


@pytest.mark.parametrize("format", ["bank", "label-studio"])
@pytest.mark.parametrize("name", ["project.json", "keys.json", "decisions/ann.jsonl"])
def test_an_out_that_is_a_file_of_the_project_is_refused(reviewed: Project, format: str, name: str) -> None:
    file = reviewed.folder / name
    before = file.read_bytes()
    words = ["captions", "export", str(reviewed.folder), "--out", str(file), "--format", format]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, ConfigError)
    assert done.exception.key == "--out"
    assert file.read_bytes() == before


@pytest.mark.parametrize(("format", "name"), [("bank", ""), ("label-studio", ""), ("label-studio", "t.xml")])
def test_an_out_that_cannot_be_the_file_is_refused(
    reviewed: Project, tmp_path: Path, format: str, name: str
) -> None:
    """The labelling configuration of `t.xml` would be `t.xml`, in place of the tasks."""
    before = sorted(tmp_path.iterdir())
    words = ["captions", "export", str(reviewed.folder), "--out", str(tmp_path / name), "--format", format]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, ConfigError)
    assert done.exception.key == "--out"
    assert sorted(tmp_path.iterdir()) == before


def test_data_prepare_captions_and_export_write_one_format(reviewed: Project, tmp_path: Path) -> None:
    command("export", reviewed.folder, "--out", tmp_path / "a.json", "--error-rate", "0.2")
    command(
        "export", reviewed.folder, "--out", tmp_path / "out", "--format", "released", "--error-rate", "0.2"
    )
    CaptionBank.from_folder(tmp_path / "out")[0].save(tmp_path / "b.json")  # as data prepare captions does
    one, other = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert set(other) <= set(one)
    assert {row["status"] for row in other["origins"]} == {"imported"}
    assert CaptionBank.load(tmp_path / "b.json").origins


def test_origins_that_were_edited_are_refused_and_banks_without_them_are_read(
    reviewed: Project, tmp_path: Path
) -> None:
    path = tmp_path / "bank.json"
    command("export", reviewed.folder, "--out", path)
    bank, tree = CaptionBank.load(path), json.loads(path.read_text())
    tree["origins"][0]["status"] = "imported"
    path.write_text(json.dumps(tree))
    with pytest.raises(DatasetError) as refused:
        CaptionBank.load(path)
    assert refused.value.where == path
    del tree["origins"]
    path.write_text(json.dumps(tree))
    assert CaptionBank.load(path).digest == bank.digest
    assert CaptionBank.load(path).origins == {}


def test_nothing_is_exported_of_a_project_that_nobody_reviewed(tmp_path: Path) -> None:
    made = project(tmp_path / "a")
    words = ["captions", "export", str(made.folder), "--out", str(tmp_path / "bank.json")]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, DatasetError)
    assert done.exception.key == "captions"
    assert not (tmp_path / "bank.json").exists()


def test_two_reviewers_copies_merge_and_their_disagreement_is_reported_and_not_exported(
    tmp_path: Path,
) -> None:
    one = project(tmp_path / "a", 12)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    other = Project.open(tmp_path / "b")
    for n, item in enumerate(one.refresh().seeds):
        one.submit("ann", item.id, Judgement("accept" if n % 3 else "reject"), version=0)
        other.submit("bob", item.id, Judgement("accept" if n % 4 else "reject"), version=0)
    told = command("merge", tmp_path / "a", tmp_path / "b")
    assert "12 decisions and 0 rewordings added" in told
    assert "7 of 12 items" in told
    assert re.search(r"kappa -?0\.\d\d \(95 % interval", told)
    state = one.refresh()
    disputed = [item for item in state.seeds if item.status == "disputed"]
    assert len(disputed) == 5
    assert all(item.id in told for item in disputed)
    assert "0 decisions" in command("merge", tmp_path / "a", tmp_path / "b"), "again changes nothing"
    one.submit("ann", disputed[1].id, Judgement("wrong label"), version=disputed[1].version)
    told = command("export", tmp_path / "a", "--out", tmp_path / "bank.json")
    assert f"{disputed[1].key.patches} patches of {disputed[1].key.title}" in told
    assert len(CaptionBank.load(tmp_path / "bank.json").captions) == 6
    one.submit("ann", disputed[0].id, Judgement("accept"), version=disputed[0].version)
    command("merge", tmp_path / "b", tmp_path / "a")
    assert other.refresh().items[disputed[0].id].status == "accepted"


@pytest.mark.parametrize("earlier", [0, 3])
def test_a_third_copy_with_another_verdict_opens_what_was_settled_without_it(
    tmp_path: Path, earlier: int
) -> None:
    """Whatever the numbers of the decisions are, which each copy counts for itself."""
    one = project(tmp_path / "a", 4)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    item, *others = one.refresh().seeds
    one.submit("ann", item.id, Judgement("accept"), version=0)
    one.submit("bob", item.id, Judgement("reject"), version=1)
    one.submit("ann", item.id, Judgement("accept"), version=2)
    assert one.refresh().items[item.id].status == "accepted"
    third = Project.open(tmp_path / "b")
    for other in others[:earlier]:
        third.submit("cat", other.id, Judgement("accept"), version=0)
    third.submit("cat", item.id, Judgement("reject"), version=0)
    one.absorb(third)
    disputed = one.refresh().items[item.id]
    assert disputed.status == "disputed"
    assert sorted(disputed.standing) == ["ann", "cat"]
    one.submit("bob", item.id, Judgement("reject"), version=disputed.version)
    assert one.refresh().items[item.id].status == "rejected"


def test_copies_in_which_one_reviewer_went_on_differently_and_other_projects_do_not_merge(
    tmp_path: Path,
) -> None:
    one = project(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    other, item = Project.open(tmp_path / "b"), one.refresh().seeds[0].id
    one.submit("ann", item, Judgement("accept"), version=0)
    other.submit("ann", item, Judgement("reject"), version=0)
    with pytest.raises(RunError) as refused:
        one.absorb(other)
    assert refused.value.key == "ann"
    assert [d.act for d in Project.open(tmp_path / "a").refresh().decisions] == ["accept"]
    with pytest.raises(RunError) as refused:
        one.absorb(project(tmp_path / "c", 3))
    assert refused.value.key == "keys.json"


def test_label_studio_tasks_come_back_as_decisions(tmp_path: Path) -> None:
    made = project(tmp_path / "a", 6, pictures=2)
    path = tmp_path / "tasks.json"
    command("export", made.folder, "--out", path, "--format", "label-studio")
    config = ElementTree.parse(path.with_suffix(".xml")).getroot()
    controls = {part.get("name"): part.get("toName") for part in config if part.get("toName")}
    shown = {part.get("name") for part in config if part.get("value") or part.get("valueList")}
    assert set(controls.values()) <= shown
    tasks = json.loads(path.read_text())
    assert len(tasks) == 6
    for task, (act, text) in zip(
        tasks,
        [
            ("accept", ""),
            ("revise", "Another text."),
            ("reject", ""),
            ("wrong label", ""),
            ("cannot tell", ""),
        ],
        strict=False,
    ):
        result = [
            {"from_name": "act", "to_name": "caption", "type": "choices", "value": {"choices": [act]}},
            {"from_name": "revision", "to_name": "caption", "type": "textarea", "value": {"text": [text]}},
        ]
        task["annotations"] = [{"result": result, "was_cancelled": False, "completed_by": 1}]
    done = tmp_path / "done.json"
    done.write_text(json.dumps(tasks))
    assert "5 imported" in command("merge", made.folder, done, "--reviewer", "eve")
    items = {item.id: item for item in made.refresh().seeds}
    assert [items[t["data"]["item"]].status for t in tasks] == [
        "accepted",
        "revised",
        "rejected",
        "wrong label",
        "cannot tell",
        "open",
    ]
    assert items[tasks[1]["data"]["item"]].text == "Another text."
    assert "5 known already" in command("merge", made.folder, done, "--reviewer", "eve")
    assert len(made.refresh().decisions) == 5
    done.write_text('{"not": "tasks"}')
    refused = CliRunner().invoke(app, ["captions", "merge", str(made.folder), str(done), "--reviewer", "eve"])
    assert isinstance(refused.exception, DatasetError)
    assert refused.exception.where == done


def _task(item: Item, act: str, text: str, *people: int) -> dict[str, object]:
    """A task of Label Studio that these people annotated alike."""
    result = [
        {"from_name": "act", "value": {"choices": [act]}},
        {"from_name": "revision", "value": {"text": [text]}},
    ]
    annotations = [{"result": result, "was_cancelled": False, "completed_by": id} for id in people]
    return {"data": {"item": item.id, "caption": item.shown}, "annotations": annotations}


def test_an_edit_under_accept_is_a_revision_and_a_revision_without_an_edit_is_not_imported(
    tmp_path: Path,
) -> None:
    made, path = project(tmp_path / "a", 3), tmp_path / "done.json"
    one, two, three = made.refresh().seeds
    tasks = [
        _task(one, "accept", "Edited.", 1),
        _task(two, "revise", two.shown, 1),
        _task(three, "revise", "", 1),
    ]
    path.write_text(json.dumps(tasks))
    assert read_annotations(made, path, "eve") == {"imported": 1, "`revise` without a new text": 2}
    assert [(d.item, d.act, d.after) for d in made.refresh().decisions] == [(one.id, "revise", "Edited.")]
    assert read_annotations(made, path, "eve") == {"known already": 1, "`revise` without a new text": 2}


def test_annotations_are_imported_under_the_name_of_who_made_them_only(tmp_path: Path) -> None:
    made, path = project(tmp_path / "a", 2), tmp_path / "done.json"
    one, two = made.refresh().seeds
    for tasks in (
        [_task(one, "accept", "", 1, 2)],
        [_task(one, "accept", "", 1), _task(two, "accept", "", 2)],
    ):
        path.write_text(json.dumps(tasks))
        with pytest.raises(DatasetError) as refused:
            read_annotations(made, path, "anna")
        assert (refused.value.where, refused.value.key) == (path, "completed_by")
    path.write_text(json.dumps([_task(one, "accept", "", 1)]))
    for words in ([path], [path, path, "--reviewer", "anna"]):
        done = CliRunner().invoke(app, ["captions", "merge", str(made.folder), *map(str, words)])
        assert isinstance(done.exception, ConfigError)
        assert done.exception.key == "--reviewer"
    assert made.refresh().decisions == []


def test_a_missing_file_of_annotations_is_called_missing(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="does not exist"):
        read_annotations(project(tmp_path / "p", 1), tmp_path / "none.json", "eve")


def test_an_import_settles_no_dispute_and_does_not_open_a_settled_one(tmp_path: Path) -> None:
    made, path = project(tmp_path / "a", 1), tmp_path / "done.json"
    (item,) = made.refresh().seeds
    path.write_text(json.dumps([_task(item, "accept", "", 1)]))
    made.submit("anna", item.id, Judgement("reject"), version=0)
    made.submit("ben", item.id, Judgement("cannot tell"), version=1)
    assert read_annotations(made, path, "carl") == {"imported": 1}
    assert made.refresh().items[item.id].status == "disputed"
    made.submit("ben", item.id, Judgement("reject"), version=3)
    assert read_annotations(made, path, "carl") == {"known already": 1}
    assert made.refresh().items[item.id].status == "rejected"


def test_a_seed_that_changed_takes_its_rewordings_out_of_the_export(
    reviewed: Project, tmp_path: Path
) -> None:
    key = reviewed.keys[0]
    state = reviewed.refresh()
    assert state.variants[0].variant is not None
    assert any(v.variant and v.variant.seed == seed_id(key.id, key.text) for v in state.variants)
    reviewed.submit("ann", key.id, Judgement("revise", text="All new."), version=state.items[key.id].version)
    told = command("export", reviewed.folder, "--out", tmp_path / "bank.json", "--error-rate", "0.2")
    assert CaptionBank.load(tmp_path / "bank.json").captions[key.tissue, key.biomarker] == ("All new.",)
    assert "40 rewordings of a text that is no longer the approved one of its seed" in told
