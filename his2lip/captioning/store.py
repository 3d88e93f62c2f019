"""A caption project on disk: its keys, pictures, rewordings and the log of each reviewer's decisions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from his2lip.captioning.lines import LineFile
from his2lip.captioning.records import Acceptance, Decision, Judgement, Key, Variant
from his2lip.captioning.state import Item, State, fold
from his2lip.config import sealed, unsealed
from his2lip.errors import DatasetError, RunError
from his2lip.files import filesystem, locked, printable, write_file
from his2lip.resources import STORAGE

R = TypeVar("R", Decision, Variant)

FORMAT = 2  # version of the files of a project
_EARLIER = 1  # its decisions have no `over`, and his2lip versions of its time take a line with it for torn
PROJECTS = f"{STORAGE}/captions"  # default folder of projects
PROJECT, KEYS, PICTURES, VARIANTS, DECISIONS = "project.json", "keys.json", "images", "variants", "decisions"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FIX = "draft it again with his2lip captions draft, under another name"


class StaleError(RunError):
    """A decision about an item that has changed since its reviewer saw it; `item` is its newer state."""

    def __init__(self, item: Item) -> None:
        super().__init__("this item was decided elsewhere in the meantime", key=item.id)
        self.item = item


class Project:
    """A caption project in a folder. Its state is a pure function of the files.

        project.json         format, name, time, seed, and the prepared datasets with their digests
        keys.json            the keys in the order of review, sealed
        images/*.png         their representative patches
        variants/BATCH.jsonl rewordings, appended
        decisions/NAME.jsonl the decisions of a reviewer, appended

    Several processes may read and decide at once: a lock serialises what is appended, and each decision names
    the version of the item that its reviewer saw.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], keys: Sequence[Key]) -> None:
        self.folder, self.about, self.keys = folder, about, tuple(keys)
        self.notices: list[str] = []  # what was repaired, in sentences
        self._logs: dict[str, LineFile[Decision]] = {}
        self._variants: dict[str, LineFile[Variant]] = {}
        self._state: State | None = None

    @classmethod
    def create(
        cls,
        folder: str | Path,
        keys: Iterable[Key],
        *,
        datasets: Mapping[str, str],
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
    ) -> Project:
        """Writes a new project, after its pictures; `project.json` comes last, so a project is whole.

        datasets  folder or URI of each prepared dataset -> its digest
        seed      decides which rewordings are read and which items are repeated blind
        options   how it was drafted, for the record

        Raises DatasetError where a project is there already, where two ids are equal, and for a picture
        outside the project.
        """
        folder, keys = Path(folder), tuple(keys)
        refuse_existing(folder)
        _check_keys(keys, folder)
        tree = sealed({"keys": [key.model_dump(mode="json") for key in keys]})
        _write(folder / KEYS, tree)
        about = {
            "format": FORMAT,
            "name": folder.name,
            "time": now(),
            "seed": seed,
            "datasets": dict(datasets),
            "options": dict(options or {}),
            "keys": tree["sha256"],
        }
        _write(folder / PROJECT, sealed(about))
        return cls(folder, about, keys)

    @classmethod
    def open(cls, folder: str | Path) -> Project:
        """Reads a project. Raises DatasetError for a folder without one, another format, or damaged files."""
        folder = Path(folder)
        if not (folder / PROJECT).is_file():
            what, fix = "there is no caption project here", "make one with his2lip captions draft"
            raise DatasetError(what, where=folder, key=PROJECT, fix=fix)
        about = _read(folder / PROJECT)
        found = about.get("format")
        if found not in (_EARLIER, FORMAT):
            what = f"this caption project has format {found!r}, and this version of his2lip reads {FORMAT}"
            fix = "use the version that wrote it, or export its captions there"
            raise DatasetError(what, where=folder / PROJECT, key="format", fix=fix)
        try:
            tree = _read(folder / KEYS)
            keys = tuple(Key.model_validate(key) for key in tree["keys"])
            if about["keys"] != sealed(tree)["sha256"]:
                raise ValueError("keys.json")
            _check_keys(keys, folder)
            int(about["seed"]), dict(about["datasets"])
        except (KeyError, TypeError, ValueError):
            what = "the keys of this caption project are damaged, or of another project"
            raise DatasetError(what, where=folder / KEYS, key="keys", fix=_FIX) from None
        return cls(folder, about, keys)

    @property
    def seed(self) -> int:
        return int(self.about["seed"])

    @property
    def digest(self) -> str:
        """The digest of the keys, which all copies of a project share."""
        return str(self.about["keys"])

    def refresh(self) -> State:
        """The present state, with what other processes added. Raises DatasetError for damaged logs."""
        changed = self._state is None
        for name, path in _line_files(self.folder / DECISIONS):
            log = self._logs.setdefault(name, LineFile(path, Decision))
            new = log.refresh()
            _check_log(log.records, name, path)
            changed |= bool(new)
        for name, path in _line_files(self.folder / VARIANTS):
            changed |= bool(self._variants.setdefault(name, LineFile(path, Variant)).refresh())
        if changed or self._state is None:
            decisions = [decision for log in self._logs.values() for decision in log.records]
            self._state = fold(self.keys, self.batches, decisions)
        return self._state

    @property
    def batches(self) -> dict[str, tuple[Variant, ...]]:
        """The rewordings of each batch, those that validation refused too, as of the last `refresh`."""
        return {name: tuple(file.records) for name, file in sorted(self._variants.items())}

    @property
    def reviewers(self) -> list[str]:
        return sorted(self._logs)

    def log(self, reviewer: str) -> list[Decision]:
        """The decisions of one reviewer in their order, as of the last `refresh`."""
        return list(self._logs[reviewer].records) if reviewer in self._logs else []

    def submit(
        self,
        reviewer: str,
        item: str,
        judgement: Judgement,
        *,
        version: int,
        blind: bool = False,
        acceptance: Acceptance | None = None,
        settles: bool = True,
    ) -> Decision:
        """Appends a decision; it is on the disk when this returns.

        version     of the item as the reviewer saw it; of a blind repeat, how often it was repeated: 0 or 1
        acceptance  of a rewording, when its batch passes; stored where the batch has no plan yet
        settles     whether a decision about a disputed item settles it; False for one of an import

        Raises StaleError where the item has another version by now, and RunError for an unknown item, a
        revision without a text, or nothing to undo.
        """
        check_reviewer(reviewer)
        with locked(self.folder / DECISIONS / ".lock"):
            state = self.refresh()
            self._check_spelling(reviewer)
            known = state.items.get(item)
            if known is None:
                raise RunError("this project has no such item", where=self.folder, key=item)
            repeated = item in state.verdicts(reviewer, blind=True)
            if version != (repeated if blind else known.version):
                raise StaleError(known)
            act, shown = judgement.act, known.original if blind else known.shown
            if act == "undo" and item not in state.verdicts(reviewer, blind=blind):
                raise RunError("there is no decision of yours to undo here", where=self.folder, key=item)
            after = _after(judgement, shown, known)
            settles = settles and not blind and known.status == "disputed"
            decision = Decision(
                sequence=1 + state.last,
                time=now(),
                reviewer=reviewer,
                item=item,
                act=act,
                before=shown,
                after=after,
                fields=judgement.fields if act == "revise" else None,
                blind=blind,
                settles=settles,
                over=tuple(sorted(known.standing)) if settles else (),
                acceptance=None if blind or known.batch in (None, *state.plans) else acceptance,
                note=judgement.note if act == "wrong label" else "",
            )
            log = self._logs.setdefault(
                reviewer, LineFile(self.folder / DECISIONS / f"{reviewer}.jsonl", Decision)
            )
            self._migrate()
            torn = log.append([decision])
            if torn:
                self.notices.append(_torn_notice(log.path, torn))
            self._state = None
            self.refresh()
            return decision

    def _check_spelling(self, reviewer: str) -> None:
        """Raises RunError for a name that differs from another reviewer's in the case of letters only."""
        same = (name for name in self._logs if name != reviewer and name.casefold() == reviewer.casefold())
        if (other := next(same, None)) is not None:
            what = f"there is a log of '{other}', whose file has the same name on some file systems"
            fix = f"use --reviewer {other}, or another name"
            raise RunError(what, where=self.folder, key="--reviewer", fix=fix)

    def _migrate(self) -> None:
        """Gives a project of the earlier format the present one, before decisions are added to its logs."""
        if self.about["format"] != FORMAT:
            self.about = {**self.about, "format": FORMAT}
            _write(self.folder / PROJECT, sealed(self.about))

    def repair(self) -> list[str]:
        """Removes what a crash left of a last line from each log; a sentence for each such log."""
        told = []
        with locked(self.folder / DECISIONS / ".lock"):
            self.refresh()
            for log in self._logs.values():
                if torn := log.append([]):
                    told.append(_torn_notice(log.path, torn))
        self.notices += told
        return told

    def add_variants(self, batch: str, variants: Sequence[Variant]) -> None:
        """Appends rewordings to a batch; they are on the disk when this returns.

        Raises RunError for a name that is not a file name, and for a variant of an unknown key.
        """
        check_name(batch, key="batch")
        known = {key.id for key in self.keys}
        if unknown := next((v.key for v in variants if v.key not in known), None):
            raise RunError("this project has no such key", where=self.folder, key=unknown)
        with locked(self.folder / VARIANTS / ".lock"):
            path = self.folder / VARIANTS / f"{batch}.jsonl"
            torn = self._variants.setdefault(batch, LineFile(path, Variant)).append(variants)
            if torn:
                self.notices.append(_torn_notice(path, torn))
            self._state = None

    def fill_batch(self, name: str, variants: Sequence[Variant]) -> str:
        """Appends rewordings to the open batch of a name, and returns the batch's own name.

        No decision can be made between the choice of the batch and the end of the writing.
        """
        with locked(self.folder / DECISIONS / ".lock"):
            batch = self.open_batch(name)
            self.add_variants(batch, variants)
            return batch

    def open_batch(self, name: str) -> str:
        """The first of NAME-1, NAME-2, … of which no line was decided on.

        A batch passes or fails as a whole, so nothing is added to one that is under review.
        """
        decided = {decision.item for decision in self.refresh().decisions}
        batches = self.batches
        number = 1
        while any(variant.id in decided for variant in batches.get(f"{name}-{number}", ())):
            number += 1
        return f"{name}-{number}"

    def absorb(self, other: Project) -> tuple[int, int]:
        """Appends what another copy of this project has more; the numbers of decisions and rewordings.

        A log, or a batch, of both copies continues in at most one of them. Raises RunError for another
        project, where both copies continued one log (their numbers would mean two things), and where they
        read one batch under two plans.
        """
        if other.digest != self.digest:
            fix = "merge copies of one project; their keys.json are equal"
            raise RunError(
                "these are two projects with different keys", where=other.folder, key=KEYS, fix=fix
            )
        with locked(self.folder / DECISIONS / ".lock"), locked(self.folder / VARIANTS / ".lock"):
            own, theirs = self.refresh().plans, other.refresh().plans
            if twice := next((name for name in own if theirs.get(name, own[name]) != own[name]), None):
                fix = "review both copies with the same --error-rate, --confidence and --allowed"
                what = f"the copies read batch {twice} under two plans: {own[twice]}, and {theirs[twice]}"
                raise RunError(what, where=other.folder, key=twice, fix=fix)
            self._migrate()
            decisions = _continued(self._logs, other._logs, self.folder / DECISIONS, Decision)
            variants = _continued(self._variants, other._variants, self.folder / VARIANTS, Variant)
            self._state = None
            return decisions, variants


def _continued(
    own: dict[str, LineFile[R]], other: dict[str, LineFile[R]], folder: Path, kind: type[R]
) -> int:
    """Appends the records by which the other files are longer. Raises RunError, before, where two differ."""
    more: dict[str, list[R]] = {}
    for name, file in other.items():
        mine = own[name].records if name in own else []
        both = min(len(mine), len(file.records))
        if mine[:both] != file.records[:both]:
            what = "both copies of the project continued this file, in different ways"
            fix = "give each reviewer, and each batch of each copy, a name of its own"
            raise RunError(what, where=file.path, key=name, fix=fix)
        more[name] = file.records[both:]
    for name, records in more.items():
        if records:
            own.setdefault(name, LineFile(folder / f"{name}.jsonl", kind)).append(records)
    return sum(map(len, more.values()))


def refuse_existing(folder: Path) -> None:
    """Raises DatasetError where a project is in this folder."""
    if (folder / PROJECT).exists():
        fix = "choose another name, or review this one with his2lip captions review"
        raise DatasetError("a caption project is here already", where=folder, key="name", fix=fix)


def project_folder(name: str) -> Path:
    """The folder of a project: `name` itself where it is a path or exists, else in the default folder."""
    given = Path(name)
    return given if given.name != name or given.is_dir() else Path(PROJECTS) / name


def check_reviewer(name: str) -> None:
    """Raises RunError for a name that is not made of letters, digits, dot, hyphen and underscore."""
    check_name(name, key="--reviewer")


def check_name(name: str, *, key: str) -> None:
    if not _NAME.fullmatch(name):
        what = f"'{printable(name)[:80]}' cannot be a name here"
        fix = "use up to 64 letters, digits, dots, hyphens and underscores, a letter or digit first"
        raise RunError(what, key=key, fix=fix)


def now() -> str:
    """The time in UTC, to the millisecond, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _after(judgement: Judgement, shown: str, item: Item) -> str | None:
    """The text that a judgement approves; None where it approves none."""
    if judgement.act == "accept":
        return shown
    if judgement.act == "revise":
        revised = " ".join(printable(judgement.text or "").split())
        if not revised:
            fix = "write a sentence, or reject the item"
            raise RunError("a revision without a text", key=item.id, fix=fix)
        return revised
    return None


def _check_keys(keys: Sequence[Key], folder: Path) -> None:
    ids = [key.id for key in keys]
    if twice := next((id for id in ids if ids.count(id) > 1), None):
        raise DatasetError("two keys have one id", where=folder, key=twice, fix=_FIX)
    for key in keys:
        for picture in key.pictures:
            path = (folder / picture.file).resolve()
            if not path.is_relative_to((folder / PICTURES).resolve()):
                raise DatasetError("a picture outside the project", where=folder, key=picture.file, fix=_FIX)


def _check_log(decisions: Sequence[Decision], name: str, path: Path) -> None:
    if any(decision.reviewer != name for decision in decisions):
        what = "this log has decisions of another reviewer than its name says"
        raise DatasetError(what, where=path, key="reviewer", fix="give the file back its name")
    for line, (before, after) in enumerate(pairwise(decisions), start=2):
        if after.sequence <= before.sequence:  # an undo would take back one of two equal decisions
            what = f"line {line} of this log repeats an earlier decision, or is not in its place"
            fix = "restore the file from a copy; his2lip captions merge adds the decisions of another one"
            raise DatasetError(what, where=path, key="sequence", fix=fix)


def _line_files(folder: Path) -> list[tuple[str, Path]]:
    return [(path.stem, path) for path in sorted(folder.glob("*.jsonl"))]


def _torn_notice(path: Path, torn: int) -> str:
    return f"{path}: {torn} bytes of a last line that a crash had cut off were removed"


def _write(path: Path, tree: Mapping[str, Any]) -> None:
    data = (json.dumps(tree, indent=1, ensure_ascii=False) + "\n").encode()
    write_file(*filesystem(path), data)


def _read(path: Path) -> dict[str, Any]:
    try:
        return unsealed(json.loads(path.read_bytes()))
    except FileNotFoundError:
        raise DatasetError("this file of the project is missing", where=path, fix=_FIX) from None
    except (OSError, ValueError, TypeError, AttributeError):
        what = "this file of the project is damaged or was edited"
        raise DatasetError(what, where=path, key="sha256", fix=_FIX) from None
