"""Prepares a dataset as its authors publish it: reads its files and writes shards, part by part."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pyarrow import fs

from his2lip.data.cards import Card
from his2lip.data.images import Tiling
from his2lip.data.prepare.listing import Part, deal, list_files
from his2lip.data.prepare.parts import FOLDER, FinishedParts, PartJob, PartResult
from his2lip.data.prepare.privacy import NameMap
from his2lip.data.prepare.unpack import Unpacked, unpack
from his2lip.data.readers import check_view, get_reader
from his2lip.data.shards import INFO, PART_BYTES, ROW_GROUP_BYTES, DatasetInfo, claim, summarise, to_json
from his2lip.errors import ClusterError, DatasetError
from his2lip.files import locked, write_file
from his2lip.logs import setup
from his2lip.resources import code_version
from his2lip.runtime import check_code, check_nodes, is_local, start_ray, usable_cpus

_OWN_LAYOUTS = ("folder", "manifest")  # readers whose layout begins at the root

ProgressCallback = Callable[[int, int], None]  # files done, files to read


@dataclass(frozen=True, kw_only=True)
class PrepareReport:
    """The outcome for each file: `read + passed_over.total() + len(quarantined) == found`.

    `passed_over` counts, by reason, files that the layout does not use. `left_out` has the parts of
    files that gave no patch. `notes` has the archives that had been unpacked by hand.
    """

    found: int
    read: int
    quarantined: list[tuple[str, str]]
    passed_over: Counter[str]
    left_out: list[tuple[str, str]]
    info: DatasetInfo
    root: Path  # the folder that was read: the one given, or the one that its archives were unpacked to
    notes: list[str]


def prepare(
    card: Card,
    root: str | Path,
    out: str | Path,
    *,
    view: str | None = None,
    limit: int | None = None,
    unpack_to: str | Path | None = None,
    names: NameMap | None = None,
    ray: bool = False,
    progress: ProgressCallback | None = None,
    tell: Callable[[str], None] = lambda text: None,
    part_bytes: int = PART_BYTES,
    row_group_bytes: int = ROW_GROUP_BYTES,
) -> PrepareReport:
    """Reads the dataset under `root` by the rules of `card`, and writes shards to `out`.

    Archives under `root`, or `root` itself, are unpacked first (see `unpack`). `view` cuts derived patches
    (`Tiling.parse`); without it the published bytes are kept. `limit` reads that many files, spread over the
    dataset. Files come in a seeded order, so that classes are mixed in each row group. With `names`, nothing
    under `out` contains the name of a case, slide, region or file, and images contain only pixels.

    Parts run as Ray tasks where Ray is initialised, otherwise one after another. With `ray`, Ray is started,
    or the cluster of RAY_ADDRESS is joined, if there is work to share. A call resumes an interrupted one of
    the same inputs. Memory use is one row group and the list of names.

    Raises DatasetError where nothing can be read or written, or where `out` has a finished dataset, an
    unfinished prepare of another one, or one that is being written. Raises ConfigError for a `view` that the
    card's reader does not make, before anything is unpacked.
    """
    tiling = Tiling.parse(view) if view else None
    check_view(card, tiling)
    with _claimed(out) as (system, target):
        unpacked = unpack(root, unpack_to, tell=tell)
        folder = _folder_to_read(card, unpacked)
        reader = get_reader(card, folder)
        listing = list_files(reader, limit)
        refused = unpacked.refused + listing.quarantined
        if names is not None:
            names.add_items(map(reader.item, listing.wanted))
            refused = names.hide(refused)
        job = PartJob(
            reader=reader,
            tiling=tiling,
            key=names.key if names else None,
            system=system,
            target=target,
            row_group_bytes=row_group_bytes,
        )
        parts = deal(reader, listing, part_bytes)
        finished = FinishedParts(system, target, dataset=card.name, plan=job.plan(parts))
        results = _run(job, parts, finished, names, ray=ray, progress=progress)
        info = _summary(job, results, refused, listing.passed_over, root)
        write_file(system, f"{target}/{INFO}", to_json(info), what="the description of the dataset")
        finished.remove()
        return PrepareReport(
            found=len(listing.wanted) + len(refused) + listing.passed_over.total(),
            read=sum(r.read for r in results),
            quarantined=info.quarantined,
            passed_over=listing.passed_over,
            left_out=info.left_out,
            info=info,
            root=folder,
            notes=unpacked.notes,
        )


def _folder_to_read(card: Card, unpacked: Unpacked) -> Path:
    """The folder of an only archive for readers of a user's own layout: its name is no class.

    Published layouts may need the name, and so does an archive of one split.
    """
    only = unpacked.only
    if only is None or card.reader not in _OWN_LAYOUTS or only.name in card.splits:
        return unpacked.root
    return only


@contextmanager
def _claimed(out: str | Path) -> Iterator[tuple[fs.FileSystem, str]]:
    """The place for the dataset. On a local disk it is locked, so that no other command writes there."""
    system, target = claim(out)
    if not isinstance(system, fs.LocalFileSystem):
        yield system, target
        return
    lock = Path(target, ".lock")
    busy = DatasetError("another command is preparing a dataset here", where=lock.parent, fix="wait for it")
    with locked(lock, busy=busy):
        claim(out)  # the command that had the lock before may have finished the dataset
        yield system, target
        lock.unlink()


def _summary(
    job: PartJob,
    results: list[PartResult],
    refused: list[tuple[str, str]],
    passed_over: Counter[str],
    root: str | Path,
) -> DatasetInfo:
    """dataset.json of the parts that were written. Raises DatasetError where there are none."""
    quarantined = sorted(refused + [q for r in results for q in r.quarantined])
    written = [r.info for r in results if r.info is not None]
    if not written:
        what = f"none of {len(quarantined):,} files could be read"
        if quarantined:  # the most common reason, since that of one stray file would mislead
            most, _ = Counter(why for _, why in quarantined).most_common(1)[0]
            what += f", such as {next(place for place, why in quarantined if why == most)}: {most}"
        elif passed_over:
            most, n = passed_over.most_common(1)[0]
            what = f"no file could be read, and {n:,} were passed over: {most}"
        raise DatasetError(what, where=root, key="--root", fix="check --root")
    return summarise(
        written,
        job.reader.card,
        generated=job.reader.generated,
        view=str(job.tiling or "published"),
        quarantined=quarantined,
        left_out=[entry for r in results for entry in r.left_out],
    )


def _run(
    job: PartJob,
    parts: list[Part],
    finished: FinishedParts,
    names: NameMap | None,
    *,
    ray: bool,
    progress: ProgressCallback | None,
) -> list[PartResult]:
    """Results of all parts: those that an interrupted call finished, and the others, which are made now."""
    results = {part.name: finished.read(part) for part in parts}
    waiting = [part for part in parts if results[part.name] is None]
    total = sum(len(part.keys) for part in parts)
    done = total - sum(len(part.keys) for part in waiting)

    def step(files: int = 1) -> None:
        nonlocal done
        done += files
        if progress is not None:
            progress(done, total)

    step(0)
    if ray and _worth_sharing(waiting):
        start_ray()
    if waiting and ray_runs():
        here = isinstance(job.system, fs.LocalFileSystem)
        check_nodes(read=[str(job.reader.root)], write=[job.target] if here else [])
    for part, result in _on_ray(job, waiting, step) if ray_runs() else _here(job, waiting, step):
        if names is not None:
            result = replace(
                result, quarantined=names.hide(result.quarantined), left_out=names.hide(result.left_out)
            )
        finished.write(part, result)
        results[part.name] = result
    return [result for result in results.values() if result is not None]


def _worth_sharing(parts: list[Part]) -> bool:
    """Whether a cluster is given, or a split has several parts, which take longer than Ray's start."""
    return not is_local() or len(parts) > len({part.split for part in parts})


def _here(job: PartJob, parts: list[Part], step: Callable[..., None]) -> Iterator[tuple[Part, PartResult]]:
    for part in parts:
        yield part, job.write(part, step, threads=usable_cpus())


def _on_ray(job: PartJob, parts: list[Part], step: Callable[..., None]) -> Iterator[tuple[Part, PartResult]]:
    """One task per part. Every node must be able to read the files."""
    import ray

    write = ray.remote(max_retries=2)(_write)
    where, code = ray.put(job), code_version()
    waiting = iter(parts)
    running: dict[ray.ObjectRef, Part] = {}
    cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
    slots, threads = cpus + 1, max(1, cpus // len(parts)) if parts else 1
    try:
        while True:
            while len(running) < slots and (part := next(waiting, None)) is not None:
                running[write.remote(where, part, code, threads)] = part
            if not running:
                return
            (ready,), _ = ray.wait(list(running), num_returns=1)
            part = running.pop(ready)
            try:
                yield part, ray.get(ready)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None  # without the traceback of the task
            except ray.exceptions.RayError as error:
                what = f"the process that wrote {part.name} died three times ({type(error).__name__})"
                fix = "if memory ran out, provide more; then run the same command to resume"
                raise ClusterError(what, where=job.target, key=part.name, fix=fix) from None
            step(len(part.keys))
    finally:
        for task in running:
            ray.cancel(task)


def _write(job: PartJob, part: Part, code: str, threads: int) -> PartResult:
    """Writes a part on a node of the cluster, which must see the folders of the command and have its code."""
    setup()
    check_code(code)
    local = isinstance(job.system, fs.LocalFileSystem)
    for place in (job.reader.root, *([Path(job.target, FOLDER)] if local else [])):
        if not place.is_dir():
            fix = "keep files and shards on storage that all nodes share, or unset RAY_ADDRESS"
            raise DatasetError("a node of the Ray cluster does not see this folder", where=place, fix=fix)
    return job.write(part, threads=threads)


def ray_runs() -> bool:
    """Whether this process has started or joined Ray."""
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()
