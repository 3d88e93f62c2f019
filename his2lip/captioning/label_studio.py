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

from his2lip.captioning.agreement import verdict_of
from his2lip.captioning.records import Act
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


def read_annotations(project: Project, path: Path, reviewer: str) -> dict[str, int]:
    """Appends the annotations of a JSON file as decisions of a reviewer; what came of how many tasks.

    Of a task with several annotations the last one that was not cancelled counts. A task whose caption is no
    longer the one that stands is passed over, and so is one with the verdict that this reviewer has given it.
    Raises DatasetError for a file that is not Label Studio's JSON.
    """
    try:
        tasks = json.loads(path.read_bytes())
        found = [(str(t["data"]["item"]), str(t["data"]["caption"]), _verdict(t)) for t in tasks]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        what = "this is not a file that Label Studio exported as JSON from tasks of his2lip"
        raise DatasetError(what, where=path, fix="export there as JSON, not JSON-MIN or CSV") from None
    outcome: Counter[str] = Counter()
    for name, caption, verdict in found:
        state = project.refresh()
        item = state.items.get(name)
        if verdict is None:
            outcome["without an annotation"] += 1
        elif item is None:
            outcome["of another project"] += 1
        elif _is_known(item, reviewer, verdict):
            outcome["known already"] += 1
        elif item.shown != caption:
            outcome["whose caption has changed since"] += 1
        else:
            act, text = verdict
            act = "accept" if act == "revise" and text in ("", item.shown) else act
            project.submit(reviewer, name, act, version=item.version, text=text)
            outcome["imported"] += 1
    return dict(outcome)


def _verdict(task: dict[str, Any]) -> tuple[Act, str] | None:
    """The act and the revised text of a task. Raises ValueError for an act that is not offered."""
    annotations = [a for a in task.get("annotations", []) if not a.get("was_cancelled")]
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


def _is_known(item: Item, reviewer: str, verdict: tuple[Act, str]) -> bool:
    own = item.standing.get(reviewer)
    if own is None:
        return False
    act, text = verdict
    if act == "revise" and text:
        return own.after == text
    return verdict_of(own, item) == ("accepted" if act in ("accept", "revise") else act)
