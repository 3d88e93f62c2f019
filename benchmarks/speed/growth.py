"""How time and memory grow with patches, pairs of a batch, grid cells and trials.

python benchmarks/speed/growth.py [--quick] [--parts prepare check …] [--patches 1000 10000 …] [--pairs …]
    [--cells …] [--trials …] [--repeats 3]
python benchmarks/speed/growth.py --plot     # the figure and the table of docs/scale.md, from the result

Each size runs in a process of its own, which first does the same work at a small size: imports, first
allocations and the start of Ray do not count. A size that takes under 5 s is measured `--repeats` times.

Patches are JPEG files of 16 px of noise, so that the work beside decoding is measured; row groups have as
many rows as those of 224 px have. `prepare` reads these files in one process; `check` reads the shards;
`start` is the time to the first batch of a training stream; `embed` fills an empty cache through a tower that
computes nothing (512 numbers per image); `look-up` finds all features there; `order` is the plan of one
epoch. `wise` is the loss forward and backward. `grid` is a benchmark of 10 models `tiny` (few grid cells: of
fewer) that share one cache, on datasets of 24 images. `sweep` has trials that do nothing, two at a time.

Time is the processor time of the process and of its children, which other work on the machine changes less
than the time that passes. The result has both, and for `start` the latter counts. Memory is the peak of the
process beyond what it held before, and, sampled four times a second, the peak of the process and all its
children together, where pages that several share count once (PSS). A part is linear if from the second
largest size to the largest its time grows by no more than the power 1.15 of the size, and its memory too.
Sizes that are measured in several calls are added to the same result.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from _pairs import _reset_peak, _status_bytes, arguments, cpu_seconds, family, write

if TYPE_CHECKING:
    from his2lip.data.cards import Card

ROOT = Path(__file__).resolve().parents[2]
PAGE, PICTURE = ROOT / "docs/scale.md", ROOT / "docs/images/growth.png"
BEGIN, END = "<!-- growth.py writes this table -->\n", "<!-- end of the table -->\n"
SIDE = 16  # px
GROUP_BYTES = 1_400 << 10  # of images in a row group: about 1,200 rows, as 24 MB of patches of 224 px have
PART_BYTES = 11 * GROUP_BYTES
CASE = 100  # patches
WIDTH = 512
BATCH = 256
IMAGES = 24  # of a dataset of the grid
MODELS = 10
SHORT_S = 5.0
SAMPLE_S = 0.25
TOLERANCE = 0.15  # of a power; 1.15 is 1.4 times more per tenfold size
LEAST_BYTES = 4 << 20  # memory below which a power says nothing
STARTED = "measured from here"

Work = Callable[[], "dict[str, float] | None"]  # may return figures; `seconds` replaces the measured time


@dataclass(frozen=True)
class Part:
    """What grows with one number.

    axis   the option that gives the sizes
    what   in words, for the page
    make   (folder, size, options) -> the work, set up; what `make` does is not measured
    first  size of the work that is done before, unmeasured
    power  of the size, by which the time grows by definition
    clock  which time counts: of the processors, or that passes
    """

    axis: str
    what: str
    make: Callable[[Path, int, Any], Work]
    first: int
    power: float = 1.0
    clock: Literal["cpu_s", "seconds"] = "cpu_s"

    @property
    def time(self) -> str:
        """The key of the time that counts."""
        return f"median_{self.clock}"


def _images(count: int) -> Iterator[tuple[str, str, str, bytes]]:
    """Split, tissue type, path and bytes of different JPEG files of noise; a tenth of the cases in `test`."""
    from his2lip.data.images import encode_jpeg

    draws = np.random.default_rng(0)
    for number in range(count):
        case = number // CASE
        split, tissue = "test" if case % 10 == 9 else "train", ("Stroma", "Tumor")[case % 2]
        pixels = draws.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        yield split, tissue, f"{split}/{tissue}/case-{case:05}/{number:07}.jpg", encode_jpeg(pixels)


def _files(place: Path, count: int) -> Path:
    """The images as files."""
    root, unfinished = place / "files", place / "files.tmp"
    if not root.exists():
        shutil.rmtree(unfinished, ignore_errors=True)
        for _, _, path, image in _images(count):
            (unfinished / path).parent.mkdir(parents=True, exist_ok=True)
            (unfinished / path).write_bytes(image)
        unfinished.rename(root)
    return root


def _card() -> Card:
    from his2lip.data.cards import Card

    return Card.model_validate(
        {
            "name": "growth",
            "reader": "folder",
            "options": {"means": "tissue", "biomarker": "Ki67", "case_pattern": r"case-(\d+)"},
            "splits": {
                "train": {"role": "train", "groups": "case"},
                "test": {"role": "report", "groups": "case"},
            },
            "stain": "DAB",
            "mpp": 0.5,
        }
    )


def prepare(place: Path, size: int, _: Any) -> Work:
    """`his2lip data prepare` of a folder, in one process."""
    from his2lip.data.prepare import prepare as run

    root, out = _files(place, size), place / "shards"
    shutil.rmtree(out, ignore_errors=True)

    def work() -> None:
        report = run(_card(), root, out, ray=False, part_bytes=PART_BYTES, row_group_bytes=GROUP_BYTES)
        assert report.read == size, report.quarantined[:1]

    return work


def _shards(place: Path, size: int) -> Path:
    """The shards of `size` patches: those of `prepare`, else the same patches written without files."""
    from his2lip.data.shards import INFO, Patch, ShardWriter

    out = place / "shards"
    if (out / INFO).exists():
        return out
    with ShardWriter(out, card=_card(), row_group_bytes=GROUP_BYTES, part_bytes=PART_BYTES) as writer:
        for split, tissue, path, image in _images(size):
            patch = Patch(
                patch_id=f"growth/{path}",
                image=image,
                dataset="growth",
                split=split,
                case_id=path.split("/")[2],
                tissue=tissue,
                biomarker="Ki67",
                label=tissue,
                stain="DAB",
                width=SIDE,
                height=SIDE,
                mpp=0.5,
            )
            writer.add(patch)
    return out


def check(place: Path, size: int, _: Any) -> Work:
    """`his2lip data check` of the shards."""
    from his2lip.data.check import check as run

    shards = _shards(place, size)

    def work() -> None:
        report = run(shards)
        assert report.info.rows == size
        assert not report.problems, report.problems[:1]

    return work


def start(place: Path, size: int, _: Any) -> Work:
    """The first batch of a training stream, on a Ray that runs."""
    from his2lip.data.captions import CaptionBank
    from his2lip.data.stream import StreamOptions, TrainStream
    from his2lip.runtime import start_ray

    shards, bank = _shards(place, size), CaptionBank.templates()
    start_ray(num_cpus=2, object_store_memory=100 << 20)
    options = StreamOptions(
        seed=0,
        batch_size=BATCH,
        image_size=SIDE,
        lanes=8,
        window=2,
        head_bytes=16 * GROUP_BYTES,  # as many row groups as by default
    )

    def work() -> dict[str, float]:
        begun = time.perf_counter()
        with TrainStream(str(shards), "train", bank, options) as stream:
            batches = stream.batches(0, stream.steps_per_epoch)
            next(batches)
            return {"seconds": time.perf_counter() - begun}  # before the stream is closed

    return work


class BlindTower:
    """An encoder that computes nothing, so that reading, decoding, hashing and the cache are measured."""

    width = WIDTH
    key = "blind"

    def crop_key(self, mpp: float | None) -> str:
        return ""

    def crops(self, pixels: np.ndarray, mpp: float | None) -> np.ndarray:
        return pixels[None]

    def encode(self, crops: np.ndarray) -> np.ndarray:
        return np.ones((len(crops), WIDTH), dtype=np.float32)


def _embed(place: Path, size: int, *, computed: bool) -> Work:
    from his2lip.data.shards import open_shards
    from his2lip.evaluation import EmbeddingCache
    from his2lip.runtime import usable_cpus

    shards = _shards(place, size)

    def work() -> dict[str, float]:
        cache = EmbeddingCache(str(place / "cache"))
        done = cache.embed(BlindTower(), open_shards(shards), "train", threads=usable_cpus())
        assert (cache.counts.images > 0) == computed
        assert done.features.shape == (len(done.table), WIDTH)
        return {"images": float(len(done.table)), "table_bytes": float(done.table.nbytes)}

    return work


def embed(place: Path, size: int, _: Any) -> Work:
    """The features of a split, with an empty cache."""
    shutil.rmtree(place / "cache", ignore_errors=True)
    return _embed(place, size, computed=True)


def look_up(place: Path, size: int, _: Any) -> Work:
    """The features of a split that the cache has."""
    if not (place / "cache").exists():
        _embed(place, size, computed=True)()
    return _embed(place, size, computed=False)


def order(_: Path, size: int, __: Any) -> Work:
    """The plan of a training run over `size` patches, what to read in an epoch, and its order."""
    from his2lip.data.stream.order import Plan

    def work() -> dict[str, float]:
        begun = time.perf_counter()
        plan = Plan([1_000] * (size // 1_000), seed=0, batch_size=256, lanes=8, window=4)
        built = time.perf_counter()
        plan.reads(0, plan.steps_per_epoch, range(8))
        read = time.perf_counter()
        plan.epoch(0)
        return {"build_s": built - begun, "reads_s": read - built, "epoch_s": time.perf_counter() - read}

    return work


def wise(_: Path, size: int, args: Any) -> Work:
    """The WISE loss and its gradients for a batch of `size` pairs."""
    import torch
    from wise_loss import draw, gradients, linear

    torch.set_num_threads(args.threads)
    batch = draw(size, args.d, "cpu")

    def work() -> None:
        gradients(linear(), batch)

    return work


def grid(place: Path, size: int, _: Any) -> Work:
    """A benchmark of `size` grid cells, with its leaderboard, on a Ray that runs."""
    from many_cells import planned, run

    from his2lip.runtime import start_ray

    start_ray()
    models = min(MODELS, size)
    assert size % models == 0, "with more than 10 grid cells a multiple of 10"
    shutil.rmtree(place / "grid", ignore_errors=True)
    config = planned(place / "grid", models, size // models, IMAGES)
    return lambda: run(config)


def sweep(place: Path, size: int, _: Any) -> Work:
    """A sweep of `size` trials, on a Ray that runs."""
    from sweep_overhead import sweep as run

    from his2lip.runtime import start_ray

    start_ray(num_cpus=2)
    shutil.rmtree(place / "sweep", ignore_errors=True)

    def work() -> dict[str, float]:
        run(place / "sweep", size)
        return {"study_bytes": float(next(place.rglob("study.db")).stat().st_size)}

    return work


PARTS = {
    "prepare": Part("patches", "prepare a folder", prepare, 200),
    "check": Part("patches", "check the shards", check, 200),
    "start": Part("patches", "first batch of an epoch", start, 1_000, clock="seconds"),
    "embed": Part("patches", "embed, empty cache", embed, 200),
    "look-up": Part("patches", "look features up", look_up, 200),
    "order": Part("patches", "order of an epoch", order, 10_000),
    "wise": Part("pairs", "WISE, forward and backward", wise, 256, power=2.0),
    "grid": Part("cells", "benchmark", grid, 2),
    "sweep": Part("trials", "sweep", sweep, 4),
}
AXES = {
    "patches": [1_000, 10_000, 100_000, 1_000_000],
    "pairs": [4_096, 8_192, 16_384, 32_768, 65_536],
    "cells": [10, 100, 500, 2_000],
    "trials": [10, 50, 100, 500],
}
QUICK = {"patches": [1_000, 2_000], "pairs": [256, 512], "cells": [2, 4], "trials": [4, 6]}
LABELS = {"patches": "patches", "pairs": "pairs of a batch (N)", "cells": "grid cells", "trials": "trials"}


class Memory(threading.Thread):
    """Samples the memory of a process and all its descendants together; `peak` is in bytes."""

    def __init__(self, process: int) -> None:
        super().__init__(daemon=True)
        self._process, self._ended = process, threading.Event()
        self.peak = 0

    def run(self) -> None:
        while True:
            self.peak = max(self.peak, family_bytes(self._process))
            if self._ended.wait(SAMPLE_S):
                return

    def end(self) -> None:
        self._ended.set()
        self.join()


def family_bytes(process: int) -> int:
    """The memory (PSS) of a process and its descendants; shared pages count once."""
    total = 0
    for one in family(process):
        with suppress(OSError):  # it has ended
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    return total


def alone(part: str, size: int, place: Path, args: Any) -> dict[str, float]:
    """Measures one part at one size in a process of its own."""
    command = [sys.executable, __file__, "--only", part, "--size", str(size), "--place", str(place)]
    command += ["--threads", str(args.threads), "--d", str(args.d)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        memory, last = Memory(process.pid), ""
        for line in process.stdout:
            if line.strip() == STARTED:
                memory.start()
            last = line
        if memory.is_alive():
            memory.end()
    if process.returncode:
        raise SystemExit(f"{part} at {size:,} failed")
    found: dict[str, float] = json.loads(last)
    return {**found, "family_bytes": memory.peak}


def _only(args: Any) -> None:
    part = PARTS[args.only]
    with tempfile.TemporaryDirectory() as folder:
        part.make(Path(folder), part.first, args)()
    args.place.mkdir(parents=True, exist_ok=True)
    work = part.make(args.place, args.size, args)
    gc.collect()
    held = _reset_peak()
    print(STARTED, flush=True)
    begun, before, own = time.perf_counter(), cpu_seconds(), time.process_time()
    found = work() or {}
    own, seconds = time.process_time() - own, time.perf_counter() - begun
    peak = max(0, _status_bytes("VmHWM") - held)
    children = {process: used for process, (_, used) in cpu_seconds().items() if process != os.getpid()}
    cpu = own + sum(used - before.get(process, ("", 0.0))[1] for process, used in children.items())
    print(json.dumps({"seconds": seconds, "cpu_s": cpu, "peak_bytes": peak, **found}), flush=True)


def measured(part: str, size: int, place: Path, args: Any) -> dict[str, Any]:
    """All samples of one part at one size, with the date and the load."""
    load = os.getloadavg()[0]
    samples = [alone(part, size, place, args)]
    while samples[0]["seconds"] < SHORT_S and len(samples) < args.repeats:
        samples.append(alone(part, size, place, args))
    print(f"{part} at {size:,}: {[round(s['seconds'], 2) for s in samples]} s", file=sys.stderr)
    own = {key: value for key, value in samples[-1].items() if key not in ("seconds", "peak_bytes")}
    return {
        **own,
        "size": size,
        **{key: [sample[key] for sample in samples] for key in ("seconds", "cpu_s")},
        **{
            f"median_{key}": float(np.median([sample[key] for sample in samples]))
            for key in ("seconds", "cpu_s")
        },
        "peak_bytes": max(sample["peak_bytes"] for sample in samples),
        "family_bytes": max(sample["family_bytes"] for sample in samples),
        "load_1min": [round(load, 2), round(os.getloadavg()[0], 2)],  # before and after
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
    }


def power(sizes: Sequence[float], values: Sequence[float]) -> dict[str, float]:
    """The slope of log value against log size: over all sizes, and from the second largest to the largest."""
    x, y = np.log(np.asarray(sizes, dtype=float)), np.log(np.asarray(values, dtype=float))
    whole = float(np.polyfit(x, y, 1)[0])
    return {"all": whole, "last": float((y[-1] - y[-2]) / (x[-1] - x[-2]))}


def grown(part: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The powers of time and memory, and whether both are linear or better."""
    if len(rows) < 2:
        return {}
    sizes = [row["size"] for row in rows]
    time_power = power(sizes, [row[PARTS[part].time] for row in rows])
    memory = power(sizes, [max(row["peak_bytes"], LEAST_BYTES) for row in rows])
    most = 1 + TOLERANCE
    return {
        "base": f"{len(rows)} sizes, {sizes[0]:,} to {sizes[-1]:,}",
        "time_power": time_power,
        "memory_power": memory,
        "linear": {"time": time_power["last"] <= most, "memory": memory["last"] <= most},
        "as_defined": time_power["last"] <= PARTS[part].power + TOLERANCE,
    }


def _merged(earlier: Path, found: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """The sizes of an earlier call, with those of this one in their place."""
    known = json.loads(earlier.read_text(encoding="utf-8"))["parts"] if earlier.exists() else {}
    merged = {}
    for part in PARTS:
        rows = {row["size"]: row for row in (*known.get(part, {}).get("sizes", ()), *found.get(part, ()))}
        if rows:
            merged[part] = [rows[size] for size in sorted(rows)]
    return merged


def table(parts: dict[str, Any]) -> str:
    """The result as a table of Markdown, one row per part."""
    lines = [
        "| what | sizes | CPU time | power (last) | memory | power (last) | with children | linear |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for part, found in parts.items():
        rows, growth = found["sizes"], found["growth"]
        columns = [
            f"{PARTS[part].what} (`{part}`)",
            f"{_several(format(row['size'], ',') for row in rows)} {LABELS[PARTS[part].axis]}",
            f"{_several(_seconds(row[PARTS[part].time]) for row in rows)} s",
            _power(growth.get("time_power")),
            f"{_several(_mib(row['peak_bytes']) for row in rows)} MiB",
            _power(growth.get("memory_power")),
            f"{_mib(max(row['family_bytes'] for row in rows))} MiB",
            _verdict(growth),
        ]
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines) + "\n"


def _several(words: Iterable[str]) -> str:
    return "; ".join(words)


def _seconds(seconds: float) -> str:
    digits = max(0, 1 - math.floor(math.log10(max(seconds, 1e-3))))
    return f"{seconds:,.{digits}f}"


def _mib(size: float) -> str:
    return f"{size / 2**20:,.0f}"


def _power(found: dict[str, float] | None) -> str:
    return f"{found['all']:.2f} ({found['last']:.2f})" if found else "–"


def _verdict(growth: dict[str, Any]) -> str:
    kept = [name for name, is_linear in growth.get("linear", {}).items() if is_linear]
    return {2: "yes", 1: f"{kept[0] if kept else ''} only", 0: "no"}[len(kept)] if growth else "–"


def plot(parts: dict[str, Any], picture: Path) -> None:
    """Time and memory against size on logarithmic scales, with lines of the powers 1 and 2."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(AXES), figsize=(15, 7), constrained_layout=True)
    for column, axis in enumerate(AXES):
        own = {part: found for part, found in parts.items() if PARTS[part].axis == axis}
        for row, (key, unit, name) in enumerate(
            (
                ("time", 1.0, "seconds"),
                ("peak_bytes", 2.0**20, "MiB of the process"),
            )
        ):
            panel = axes[row, column]
            for part, found in own.items():
                values = PARTS[part].time if key == "time" else key
                sizes = [one["size"] for one in found["sizes"]]
                least = 1e-4 if row == 0 else LEAST_BYTES
                panel.loglog(
                    sizes, [max(one[values], least) / unit for one in found["sizes"]], "o-", label=part
                )
            if own:
                low, high = panel.get_xlim()
                bottom, top = panel.get_ylim()
                x = np.array([low, high])
                for exponent, style in ((1, ":"), (2, "--")):
                    panel.plot(x, bottom * (x / low) ** exponent, style, color="0.6", lw=1, zorder=0)
                panel.set_ylim(bottom, top)
                panel.set_xlim(low, high)
                panel.legend(fontsize=8)
            panel.set_xlabel(LABELS[axis])
            panel.set_ylabel(name)
    figure.suptitle("Dotted: in proportion to the size. Dashed: in proportion to its square.", fontsize=10)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=80)
    pyplot.close(figure)


def with_table(page: str, lines: str) -> str:
    """A page with the table in its place."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin, "the page has no place for the table"
    assert end, "the page has no end of the table"
    return before + begin + lines + end + after


def _options(parser: argparse.ArgumentParser) -> None:
    for axis, sizes in AXES.items():
        parser.add_argument(f"--{axis}", type=int, nargs="+", default=sizes, help=LABELS[axis])
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--d", type=int, default=128, help="features per pair of `wise`")
    parser.add_argument("--work", type=Path, default=None, help="where a folder for the data is made")
    parser.add_argument("--plot", action="store_true", help="only draw the result, and write its table")
    parser.add_argument("--only", choices=list(PARTS), default=None, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, default=None, help=argparse.SUPPRESS)


def main() -> None:
    """Measures the parts at their sizes, or draws the result."""
    args = arguments("growth", "how time and memory grow", _options)
    if args.only:
        _only(args)
        return
    if args.plot:
        parts = json.loads(args.out.read_text(encoding="utf-8"))["parts"]
        plot(parts, PICTURE)
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), table(parts)), encoding="utf-8")
        return
    if args.quick:
        vars(args).update(QUICK, repeats=1)
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="growth-", dir=args.work) as folder:
        for axis in AXES:
            own = [part for part in args.parts if PARTS[part].axis == axis]
            for size in getattr(args, axis) if own else ():
                for part in own:
                    shared = "patches" if axis == "patches" else part  # files, shards and cache
                    place = Path(folder, f"{shared}-{size}")
                    found.setdefault(part, []).append(measured(part, size, place, args))
                    if axis != "patches":
                        shutil.rmtree(place, ignore_errors=True)
                shutil.rmtree(Path(folder, f"patches-{size}"), ignore_errors=True)
    rows = _merged(args.out, found)
    parts = {part: {"sizes": sizes, "growth": grown(part, sizes)} for part, sizes in rows.items()}
    kept = {part: one["growth"]["as_defined"] for part, one in parts.items() if one["growth"]}
    write(args, {"d": args.d, "px": SIDE, "parts": parts}, limits=kept)
    print(table(parts))


if __name__ == "__main__":
    main()
