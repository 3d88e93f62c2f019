"""The journal of an unfinished prepare: results of its finished parts, so that the same command goes on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from pyarrow import fs

from his2lip.data.info import PartInfo
from his2lip.data.listing import Part
from his2lip.data.shard_writer import write_file
from his2lip.errors import DatasetError

FOLDER = "_progress"


@dataclass(frozen=True, kw_only=True)
class PartResult:
    """What a part gave; `info` is None where no file of it could be read."""

    read: int
    quarantined: list[tuple[str, str]]
    left_out: list[tuple[str, str]]
    info: PartInfo | None


class Journal:
    """Files under `target`/_progress, a result each; those of another plan are removed with their parts.

    Raises DatasetError where another dataset is unfinished there: hours of work may be in it.
    """

    def __init__(self, system: fs.FileSystem, target: str, *, dataset: str, plan: str) -> None:
        self._fs, self._target, self._folder = system, target, f"{target}/{FOLDER}"
        ours, theirs = {"dataset": dataset, "plan": plan}, self._load("plan")
        if isinstance(theirs, dict) and theirs.get("dataset", dataset) != dataset:
            mend = "finish it, remove that folder, or choose another --out"
            raise DatasetError(f"an unfinished {theirs['dataset']} stands here", where=target, mend=mend)
        if theirs != ours:
            self._remove_old()
            self._store("plan", ours)

    def read(self, part: Part) -> PartResult | None:
        """The result of a part that was finished before, or None."""
        tree = self._load(_name(part.name))
        if tree is None:
            return None
        info = PartInfo(**tree["info"]) if tree["info"] else None
        pairs = {key: [(place, why) for place, why in tree[key]] for key in ("quarantined", "left_out")}
        return PartResult(read=tree["read"], info=info, **pairs)

    def write(self, part: Part, result: PartResult) -> None:
        self._store(_name(part.name), asdict(result))

    def remove(self) -> None:
        self._fs.delete_dir(self._folder)

    def _remove_old(self) -> None:
        selector = fs.FileSelector(self._folder, allow_not_found=True)
        for entry in self._fs.get_file_info(selector):
            tree = self._load(entry.base_name.removesuffix(".json"))
            path = (tree.get("info") or {}).get("path") if isinstance(tree, dict) else None
            if path and self._fs.get_file_info(f"{self._target}/{path}").type == fs.FileType.File:
                self._fs.delete_file(f"{self._target}/{path}")
            self._fs.delete_file(entry.path)

    def _load(self, name: str) -> Any:
        try:
            with self._fs.open_input_stream(f"{self._folder}/{name}.json") as source:
                return json.loads(source.read())
        except (OSError, ValueError):
            return None

    def _store(self, name: str, tree: Any) -> None:
        write_file(self._fs, f"{self._folder}/{name}.json", json.dumps(tree).encode())


def _name(part: str) -> str:
    return part.replace("/", "-").removesuffix(".parquet")
