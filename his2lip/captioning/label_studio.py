"""Label Studio's task format, for groups that review there: tasks out, annotations back as decisions.

Its format is that of labelstud.io/guide/task_format: `data` of a task, and for each annotation a `result`
list whose entries name their control (`from_name`) and have its `value`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args
from xml.sax.saxutils import quoteattr

from his2lip.captioning.records import Acceptance, Act, Decision, Judgement
from his2lip.captioning.state import Item
from his2lip.captioning.store import PICTURES, Project
from his2lip.errors import DatasetError
from his2lip.files import filesystem, write_file

_ACT, _REVISION = "act", "revision"  # names of the controls
_ACTS: tuple[Act, ...] = tuple(act for act in get_args(Act) if act != "undo")


def write_tasks(items: Sequence[Item], path: Path) -> Path:
    """Writes one task per item, and beside it the labelling configuration, whose path is returned.

    Pictures are named as Label Studio's local files: its document root is the folder of the project.
    """
    tasks = [
        {
            "data": {
                "item": item.id,
                "title": item.key.title,
                "caption": item.shown,
                "pictures": [f"/data/local-files/?d={picture.file}" for picture in item.key.pictures],
            }
        }
        for item in items
    ]
    write_file(*filesystem(path), (json.dumps(tasks, indent=1, ensure_ascii=False) + "\n").encode())
    beside = path.with_suffix(".xml")
    choices = "".join(f"    <Choice value={quoteattr(act)}/>\n" for act in _ACTS)
    config = f"""<View>
  <Header value="$title"/>
  <Image name={quoteattr(PICTURES)} valueList="$pictures"/>
  <Text name="caption" value="$caption"/>
  <Choices name="{_ACT}" toName="caption" choice="single" required="true">
{choices}  </Choices>
  <TextArea name="{_REVISION}" toName="caption" value="$caption" editable="true" maxSubmissions="1"/>
</View>
"""
    write_file(*filesystem(beside), config.encode())
    return beside


def read_annotations(
    project: Project, path: Path, reviewer: str, acceptance: Acceptance | None = None
) -> dict[str, int]:
    """Appends the annotations of a JSON file as decisions of a reviewer; what came of how many tasks.

    Of a task with several annotations the last one that was not cancelled counts. A text that was edited is
    `revise`, also under `accept`; `revise` without a new text is passed over. So are a task whose caption is
    no longer the present one, and one with the verdict that this reviewer has given it. A decision that
    is imported settles no dispute.

    acceptance  when a batch passes whose first decision is among these

    Raises DatasetError for a file that is not Label Studio's JSON, or that has annotations of several people.
    """
    try:
        tasks = json.loads(path.read_bytes())
        found = [(str(t["data"]["item"]), str(t["data"]["caption"]), _verdict(t)) for t in tasks]
        people = {_annotator(annotation) for task in tasks for annotation in _given(task)}
    except FileNotFoundError:
        raise DatasetError("this file does not exist", where=path, fix="check the path") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        what = "this is not a file that Label Studio exported as JSON from tasks of his2lip"
        raise DatasetError(what, where=path, fix="export there as JSON, not JSON-MIN or CSV") from None
    if len(people) > 1:
        what = f"this file has annotations of {len(people)} people, and one log is of one reviewer"
        fix = "export the annotations of each person to a file, and merge each with its --reviewer"
        raise DatasetError(what, where=path, key="completed_by", fix=fix)
    outcome: Counter[str] = Counter()
    for name, caption, verdict in found:
        state = project.refresh()
        item = state.items.get(name)
        if verdict is None:
            outcome["without an annotation"] += 1
            continue
        act, text = verdict
        is_edited = text not in ("", " ".join(caption.split()))
        if act == "accept" and is_edited:
            act = "revise"
        after = {"accept": caption, "revise": text}.get(act)
        if item is None:
            outcome["of another project"] += 1
        elif act == "revise" and not is_edited:
            outcome["`revise` without a new text"] += 1
        elif _is_known(state.verdicts(reviewer).get(name), act, after):
            outcome["known already"] += 1
        elif item.shown != caption:
            outcome["whose caption has changed since"] += 1
        else:
            project.submit(
                reviewer,
                name,
                Judgement(act, text=text),
                version=item.version,
                acceptance=acceptance,
                settles=False,
            )
            outcome["imported"] += 1
    return dict(outcome)


def _verdict(task: dict[str, Any]) -> tuple[Act, str] | None:
    """The act and the revised text of a task. Raises ValueError for an act that is not offered."""
    annotations = _given(task)
    if not annotations:
        return None
    values = {entry["from_name"]: entry["value"] for entry in annotations[-1]["result"]}
    if _ACT not in values:
        return None
    (act,) = values[_ACT]["choices"]
    if act not in _ACTS:
        raise ValueError(act)
    texts = values.get(_REVISION, {}).get("text", [])
    text = texts if isinstance(texts, str) else " ".join(texts)
    return act, " ".join(text.split())


def _is_known(own: Decision | None, act: Act, after: str | None) -> bool:
    """Whether a reviewer's present decision is this act, or leaves this text."""
    if own is None:
        return False
    return own.after == after if after is not None else own.after is None and own.act == act


def _annotator(annotation: dict[str, Any]) -> str:
    return json.dumps(annotation.get("completed_by"), sort_keys=True)


def _given(task: dict[str, Any]) -> list[dict[str, Any]]:
    """The annotations of a task that were not cancelled."""
    return [a for a in task.get("annotations", []) if not a.get("was_cancelled")]
