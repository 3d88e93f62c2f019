"""Times two programs in turn in one run, with peak memory, and writes the result beside the machine's name.

    args = arguments("wise_loss", "WISE loss: tiled against naive")
    pair = compare(Program("naive", naive), Program("linear", linear), repeats=args.repeats)
    write(args, {"n": 8192, **pair}, limits={"time_ratio": pair["time_ratio"] <= 1.2})

Programs run in turn (A, B, A, B, ...) so that a busy machine slows both; one unmeasured turn comes first.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import datetime
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "results"


@dataclass(frozen=True)
class Program:
    """One side of a comparison: a name, and a call whose wall time is measured.

    The call may return its own measured seconds (a float) where only a part of it counts.
    """

    name: str
    run: Callable[[], float | None]


@dataclass(frozen=True)
class Sample:
    """One measured call: seconds of wall time, and bytes of peak memory above what was held before it."""

    seconds: float
    peak_bytes: int


def arguments(name: str, description: str, *add: Callable[[argparse.ArgumentParser], object]) -> Any:
    """The options that all scripts share: --quick, --out, --repeats, --threads; `add` may add others."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--quick", action="store_true", help="small sizes: shows that it runs, measures little"
    )
    parser.add_argument(
        "--out", type=Path, default=None, help=f"JSON file (default: benchmarks/results/{name}.json)"
    )
    parser.add_argument(
        "--repeats", type=int, default=5, help="measured turns of each program, at least five"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch")
    for extend in add:
        extend(parser)
    args = parser.parse_args()
    args.name = name
    if args.out is None:
        args.out = RESULTS / (f"{name}.quick.json" if args.quick else f"{name}.json")
    return args


def compare(baseline: Program, candidate: Program, *, repeats: int = 5, warmup: int = 1) -> dict[str, Any]:
    """Both programs in turn: every sample, medians, and candidate over baseline in time and peak memory."""
    samples: dict[str, list[Sample]] = {baseline.name: [], candidate.name: []}
    for turn in range(warmup + repeats):
        for program in (baseline, candidate):
            sample = measure(program)
            if turn >= warmup:
                samples[program.name].append(sample)
            print(
                f"  {program.name}: {sample.seconds:.3f} s, {sample.peak_bytes / 2**20:.0f} MiB",
                file=sys.stderr,
            )
    sides = {name: _summary(taken) for name, taken in samples.items()}
    base, other = sides[baseline.name], sides[candidate.name]
    return {
        "baseline": baseline.name,
        "candidate": candidate.name,
        "repeats": repeats,
        "programs": sides,
        "time_ratio": other["median_s"] / base["median_s"],
        "speedup": base["median_s"] / other["median_s"],
        "memory_ratio": other["peak_bytes"] / base["peak_bytes"] if base["peak_bytes"] else None,
    }


def measure(program: Program) -> Sample:
    """One call of `program`; peak memory is the GPU's where CUDA is in use, else this process's."""
    gc.collect()
    held = _reset_peak()
    start = time.perf_counter()
    reported = program.run()
    _synchronize()
    seconds = time.perf_counter() - start
    return Sample(reported if reported is not None else seconds, max(0, _peak() - held))


def write(args: Any, result: dict[str, Any], *, limits: dict[str, bool] | None = None) -> Path:
    """Writes the result as JSON with machine and commit, prints it, and says which limits were kept."""
    record = {
        "name": args.name,
        "quick": args.quick,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(args.threads),
        "limits_kept": limits or {},
        **result,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=2, default=str) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=2, default=str))
    print(f"written to {args.out}", file=sys.stderr)
    return Path(args.out)


def machine(threads: int | None = None) -> dict[str, Any]:
    """What a reader needs to judge a figure: processor, cores, memory, GPU, versions, commit, load."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": threads,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_1min": round(os.getloadavg()[0], 2),
        "gpu": gpu,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _commit(),
    }


def _summary(taken: list[Sample]) -> dict[str, Any]:
    return {
        "median_s": statistics.median(s.seconds for s in taken),
        "seconds": [s.seconds for s in taken],
        "peak_bytes": statistics.median(s.peak_bytes for s in taken),
        "peaks_bytes": [s.peak_bytes for s in taken],
    }


def _on_cuda() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized()


def _synchronize() -> None:
    if _on_cuda():
        sys.modules["torch"].cuda.synchronize()


def _reset_peak() -> int:
    """Starts a new peak; returns the bytes held now."""
    if _on_cuda():
        cuda = sys.modules["torch"].cuda
        cuda.synchronize()
        cuda.reset_peak_memory_stats()
        return int(cuda.memory_allocated())
    _trim_heap()
    # Writing 5 makes the kernel set VmHWM to the present resident set (proc(5), clear_refs).
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status_bytes("VmRSS")


def _trim_heap() -> None:
    """Gives freed pages back to the system (glibc), which would otherwise hide the next call's peak."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _peak() -> int:
    if _on_cuda():
        return int(sys.modules["torch"].cuda.max_memory_allocated())
    return _status_bytes("VmHWM")


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), platform.processor()
    )


def _commit() -> str | None:
    command = ["git", "-C", str(RESULTS), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
