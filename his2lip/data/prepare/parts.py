"""Parts of a prepare: each written whole by a job, and its result kept so that the command can resume."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from pyarrow import fs

from his2lip.config import digest, sealed, unsealed
from his2lip.data.images import Tiling
from his2lip.data.prepare.listing import Part
from his2lip.data.prepare.privacy import Key
from his2lip.data.readers import LeftOut, Reader
from his2lip.data.shards import PartInfo, PartWriter, Patch
from his2lip.errors import DatasetError, first_line, redact
from his2lip.files import in_folder, write_file

FOLDER = "_progress"
_AHEAD_BYTES = 16 << 20  # size of a file up to which threads read it ahead, two per thread
# Fields of a card that describe the dataset to people or to the benchmark, and decide no row of a shard.
_REMARKS = {
    *("title", "source", "licence", "citation", "published", "protocols"),
    *("pretraining", "differences", "unknown", "staining", "descriptions", "labels_of"),
    "organ_by",
}


@dataclass(frozen=True, kw_only=True)
class PartResult:
    """The outcome of a part; `info` is None where none of its files could be read."""

    read: int
    quarantined: list[tuple[str, str]]
    left_out: list[tuple[str, str]]
    info: PartInfo | None


class FinishedParts:
    """Results of finished parts, one file each under `target`/_progress.

    Results of another plan are removed with their parts. Raises DatasetError where another dataset is
    unfinished there, because hours of work may be in it.
    """

    def __init__(self, system: fs.FileSystem, target: str, *, dataset: str, plan: str) -> None:
        self._fs, self._target, self._folder = system, target, f"{target}/{FOLDER}"
        ours, theirs = {"dataset": dataset, "plan": plan}, self._load("plan")
        if isinstance(theirs, dict) and theirs.get("dataset", dataset) != dataset:
            what = f"an unfinished prepare of {theirs['dataset']} is here"
            fix = "finish it, remove that folder, or choose another --out"
            raise DatasetError(what, where=target, key="--out", fix=fix)
        if theirs != ours:
            self._remove_old()
            self._store("plan", ours)

    def read(self, part: Part) -> PartResult | None:
        """The result of a part that an earlier call finished and that is still there, or None."""
        tree = self._load(_name(part.name))
        if tree is None:
            return None
        info = PartInfo(**tree["info"]) if tree["info"] else None
        if info and self._fs.get_file_info(f"{self._target}/{info.path}").type != fs.FileType.File:
            return None
        pairs = {key: [(place, why) for place, why in tree[key]] for key in ("quarantined", "left_out")}
        return PartResult(read=tree["read"], info=info, **pairs)

    def write(self, part: Part, result: PartResult) -> None:
        self._store(_name(part.name), asdict(result))

    def remove(self) -> None:
        self._fs.delete_dir(self._folder)

    def _remove_old(self) -> None:
        for entry in in_folder(self._fs, self._folder):
            tree = self._load(entry.base_name.removesuffix(".json"))
            path = (tree.get("info") or {}).get("path") if isinstance(tree, dict) else None
            if path and self._fs.get_file_info(f"{self._target}/{path}").type == fs.FileType.File:
                self._fs.delete_file(f"{self._target}/{path}")
            self._fs.delete_file(entry.path)

    def _load(self, name: str) -> Any:
        try:
            with self._fs.open_input_stream(f"{self._folder}/{name}.json") as source:
                return unsealed(json.loads(source.read()))
        except (OSError, ValueError, AttributeError):  # a damaged part is made again
            return None

    def _store(self, name: str, tree: Any) -> None:
        write_file(self._fs, f"{self._folder}/{name}.json", json.dumps(sealed(tree)).encode())


def _name(part: str) -> str:
    return part.replace("/", "-").removesuffix(".parquet")


@dataclass(frozen=True, slots=True)
class _Fault:
    """What was wrong with a file; it follows the patches that could be read."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class PartJob:
    """All that a task needs to write a part on any node. With `key`, names become pseudonyms."""

    reader: Reader
    tiling: Tiling | None
    key: Key | None
    system: fs.FileSystem
    target: str
    row_group_bytes: int

    def plan(self, parts: list[Part]) -> str:
        """The digest of everything that decides the parts' content: card, options, and files as they are.

        The card's remarks do not decide it.
        """
        remarks: dict[str, Any] = {**dict.fromkeys(_REMARKS, True), "splits": {"__all__": {"repeats"}}}
        card = self.reader.card.model_dump(mode="json", exclude=remarks)
        key = self.key.name("plan", "") if self.key else None
        return digest([card, str(self.tiling), self.row_group_bytes, key, [asdict(part) for part in parts]])

    def write(self, part: Part, each: Callable[[], None] = lambda: None, *, threads: int = 1) -> PartResult:
        """Reads the files of a part and writes it, whole or not at all. `each` is called after each file.

        `threads` read, decode and cut the next files meanwhile; the part is the same with any number.

        Raises DatasetError where it cannot be written; files that cannot be read are quarantined.
        """
        writer = None
        try:
            writer = PartWriter(
                self.system, self.target, part.name, part.split, row_group_bytes=self.row_group_bytes
            )
            result = self._fill(writer, part, each, threads)
            if not result.read:
                writer.discard()
                return result
            return replace(result, info=writer.close())
        except BaseException as error:
            if writer is not None:
                with suppress(OSError):
                    writer.discard()
            if isinstance(error, OSError):
                what = f"the shards cannot be written: {first_line(error)}"
                fix = "fix this, then run the same command to resume"
                raise DatasetError(what, where=self.target, key="--out", fix=fix) from None
            raise

    def _fill(self, writer: PartWriter, part: Part, each: Callable[[], None], threads: int) -> PartResult:
        read, quarantined, left_out = 0, [], []
        for key, patches in self._files(part, threads):
            took, parts_out, fault = 0, [], None
            for found in patches:
                if isinstance(found, Patch):
                    writer.add(found)
                    took += 1
                elif isinstance(found, LeftOut):
                    parts_out.append((found.place, found.reason))
                else:
                    fault = found.reason
            left_out += parts_out
            if took:
                read += 1
                left_out += [(key, fault)] if fault else []
            else:
                reason = parts_out[-1][1] if parts_out else "it has no patch"
                quarantined.append((key, fault or reason))
            each()
        return PartResult(read=read, quarantined=quarantined, left_out=left_out, info=None)

    def _files(self, part: Part, threads: int) -> Iterator[tuple[str, Iterable[Patch | LeftOut | _Fault]]]:
        """Each file with its patches, in order. Large files are not read ahead: they have many tiles."""

        def small(key: str) -> bool:
            try:
                return (self.reader.root / key).stat().st_size <= _AHEAD_BYTES
            except OSError:  # reported by the reader
                return False

        def read(key: str) -> list[Patch | LeftOut | _Fault]:
            return list(self._read(key, part.split))

        with ThreadPoolExecutor(threads) as pool:
            ahead: deque[tuple[str, Future[list[Patch | LeftOut | _Fault]] | None]] = deque()
            try:
                for key in (*part.keys, *[None] * (2 * threads)):
                    if key is not None:
                        ahead.append((key, pool.submit(read, key) if small(key) else None))
                    if ahead and (key is None or len(ahead) > 2 * threads):
                        first, found = ahead.popleft()
                        yield first, self._read(first, part.split) if found is None else found.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _read(self, key: str, split: str) -> Iterator[Patch | LeftOut | _Fault]:
        """The patches of a file. A fault of one file does not stop the others."""
        try:
            item = replace(self.reader.item(key), split=split)
            for found in self.reader.patches(item, self.tiling):
                yield self.key.patch(found) if self.key and isinstance(found, Patch) else found
        except DatasetError as error:
            yield _Fault(error.what)
        except OSError as error:
            yield _Fault(f"the file cannot be read: {error.strerror or first_line(error)}")
        except Exception as error:  # libraries of formats raise errors of any type
            yield _Fault(redact(f"{type(error).__name__}: {error}")[:200])
