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
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from _growth_page import PAGE, PICTURE, plot, table, with_table
from _growth_parts import AXES, LABELS, LEAST_BYTES, PARTS, QUICK, SIDE
from _pairs import _reset_peak, _status_bytes, arguments, cpu_seconds, family, write

SHORT_S = 5.0
SAMPLE_S = 0.25
TOLERANCE = 0.15  # of a power; 1.15 is 1.4 times more per tenfold size
STARTED = "measured from here"


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
