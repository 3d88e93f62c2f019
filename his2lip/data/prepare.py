"""prepare: from a dataset as its authors publish it to shards, in parts that are written once and whole."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pyarrow import fs

from his2lip.config import digest
from his2lip.data import info as info_file
from his2lip.data.cards import Card
from his2lip.data.info import DatasetInfo
from his2lip.data.journal import Journal, PartResult
from his2lip.data.listing import Part, deal, list_files
from his2lip.data.pseudonyms import Key, NameMap
from his2lip.data.readers import LeftOut, Reader, get_reader
from his2lip.data.schema import filesystem
from his2lip.data.shard_writer import (
    INFO,
    PART_BYTES,
    ROW_GROUP_BYTES,
    PartWriter,
    refuse_existing,
    write_file,
)
from his2lip.data.tiling import Tiling
from his2lip.data.unpack import unpack
from his2lip.errors import DatasetError

Progress = Callable[[int, int], None]  # files done, files found


@dataclass(frozen=True, kw_only=True)
class PrepareReport:
    """What became of each file: `read + len(quarantined) == found`.

    `passed_over` counts whole files that the layout does not want, by reason; `left_out` are parts of files
    that gave no patch.
    """

    found: int
    read: int
    quarantined: list[tuple[str, str]]
    passed_over: dict[str, int]
    left_out: list[tuple[str, str]]
    info: DatasetInfo
    root: Path  # what was read: the folder given, or the one that its archives were unpacked into


def prepare(
    card: Card,
    root: str | Path,
    out: str | Path,
    *,
    view: str | None = None,
    limit: int | None = None,
    unpack_to: str | Path | None = None,
    names: NameMap | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], None] = lambda text: None,
    part_bytes: int = PART_BYTES,
    row_group_bytes: int = ROW_GROUP_BYTES,
) -> PrepareReport:
    """Reads the dataset under `root` as `card` says, and writes shards to `out`.

    Archives under `root`, or `root` itself, are unpacked first (see `unpack`).
    `view` cuts derived patches (`Tiling.parse`); without it the published bytes are kept. `limit` takes that
    many files, spread over the dataset. Files come in a seeded order, so that classes are mixed in each row
    group. Parts run as Ray tasks where Ray is initialised, else one after another. A call that finds an
    interrupted one of the same inputs goes on with it. With `names`, nothing under `out` holds a name of a
    case, slide, region or file, and images hold nothing but pixels. Memory holds one row group and the list of names.
    Raises DatasetError where nothing can be read, or where `out` holds a finished dataset.
    """
    system, target = filesystem(out)
    refuse_existing(system, target)
    unpacked = unpack(root, unpack_to, tell=tell)
    reader = get_reader(card, unpacked.root)
    tiling = Tiling.parse(view) if view else None
    listing = list_files(reader, limit)
    parts = deal(reader, listing.wanted, part_bytes)
    refused = unpacked.refused + listing.quarantined
    key = None
    if names is not None:
        names.add_items(map(reader.item, listing.wanted))
        refused, key = names.hide(refused), names.key
    job = _Job(reader, tiling, system, target, row_group_bytes, key)
    made_of = [card.model_dump(mode="json"), str(tiling), row_group_bytes, [asdict(p) for p in parts]]
    plan = digest([*made_of, key.name("plan", "") if key else None])
    journal = Journal(system, target, plan)
    results = _run(job, parts, journal, progress, names)
    quarantined = sorted(refused + [q for r in results for q in r.quarantined])
    left_out = sorted(entry for r in results for entry in r.left_out)
    written = [r.info for r in results if r.info is not None]
    if not written:
        reason = f", such as {quarantined[0][0]}: {quarantined[0][1]}" if quarantined else ""
        found = len(listing.wanted) + len(refused)
        raise DatasetError(f"none of {found} files could be read{reason}", where=root, mend="check --root")
    info = info_file.summarise(
        written,
        card,
        generated=reader.generated,
        view=str(tiling or "published"),
        quarantined=quarantined,
        left_out=left_out,
    )
    write_file(system, f"{target}/{INFO}", info_file.to_json(info))
    journal.remove()
    return PrepareReport(
        found=len(listing.wanted) + len(refused),
        read=sum(r.read for r in results),
        quarantined=quarantined,
        passed_over=dict(listing.passed_over),
        left_out=left_out,
        info=info,
        root=unpacked.root,
    )


@dataclass(frozen=True)
class _Job:
    """All that a task needs to write a part, wherever it runs."""

    reader: Reader
    tiling: Tiling | None
    system: fs.FileSystem
    target: str
    row_group_bytes: int
    key: Key | None

    def write(self, part: Part, each: Callable[[], None] = lambda: None) -> PartResult:
        """Reads the files of a part and writes it, whole or not at all; `each` is called after each file."""
        read, quarantined, left_out = 0, [], []
        writer = PartWriter(
            self.system, self.target, part.name, part.split, row_group_bytes=self.row_group_bytes
        )
        try:
            for key in part.keys:
                took, parts_out, fault = self._take(key, part.split, writer)
                left_out += parts_out
                if took:
                    read += 1
                    left_out += [(key, fault)] if fault else []
                else:
                    reason = parts_out[-1][1] if parts_out else "it holds no patch"
                    quarantined.append((key, fault or reason))
                each()
        except BaseException:
            writer.discard()
            raise
        if not read:
            writer.discard()
        info = writer.close() if read else None
        return PartResult(read=read, quarantined=quarantined, left_out=left_out, info=info)

    def _take(
        self, key: str, split: str, writer: PartWriter
    ) -> tuple[int, list[tuple[str, str]], str | None]:
        """Adds a file's patches; (how many, which parts of it gave none, what was wrong with the file)."""
        took, left_out, fault = 0, [], None
        try:
            item = replace(self.reader.item(key), split=split)
            for patch in self.reader.patches(item, self.tiling):
                if isinstance(patch, LeftOut):
                    left_out.append((patch.place, patch.reason))
                else:
                    writer.add(self.key.patch(patch) if self.key else patch)
                    took += 1
        except DatasetError as error:
            fault = error.what
        except Exception as error:  # one file, whatever is wrong with it, does not stop the others
            fault = f"{type(error).__name__}: {error}"[:200]
        return took, left_out, fault


def _run(
    job: _Job, parts: list[Part], journal: Journal, progress: Progress | None, names: NameMap | None
) -> list[PartResult]:
    """Results of all parts: those of an interrupted call from its journal, the others made now."""
    results = {part.name: journal.read(part) for part in parts}
    waiting = [part for part in parts if results[part.name] is None]
    total = sum(len(part.keys) for part in parts)
    done = total - sum(len(part.keys) for part in waiting)

    def step(files: int = 1) -> None:
        nonlocal done
        done += files
        if progress is not None:
            progress(done, total)

    step(0)
    for part, result in _on_ray(job, waiting, step) if ray_runs() else _here(job, waiting, step):
        if names is not None:
            result = replace(
                result, quarantined=names.hide(result.quarantined), left_out=names.hide(result.left_out)
            )
        journal.write(part, result)
        results[part.name] = result
    return [result for result in results.values() if result is not None]


def _here(job: _Job, parts: list[Part], step: Callable[..., None]) -> Iterator[tuple[Part, PartResult]]:
    for part in parts:
        yield part, job.write(part, step)


def _on_ray(job: _Job, parts: list[Part], step: Callable[..., None]) -> Iterator[tuple[Part, PartResult]]:
    """One task a part; the files must be within reach of every node."""
    import ray

    write = ray.remote(max_retries=2)(_write)
    where = ray.put(job)
    waiting = iter(parts)
    running: dict[ray.ObjectRef, Part] = {}
    slots = int(ray.cluster_resources().get("CPU", 1)) + 1
    try:
        while True:
            while len(running) < slots and (part := next(waiting, None)) is not None:
                running[write.remote(where, part)] = part
            if not running:
                return
            (ready,), _ = ray.wait(list(running), num_returns=1)
            part = running.pop(ready)
            yield part, ray.get(ready)
            step(len(part.keys))
    finally:
        for task in running:
            ray.cancel(task)


def _write(job: _Job, part: Part) -> PartResult:
    return job.write(part)


def ray_runs() -> bool:
    """Whether this process has started or joined Ray."""
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()
